"""``python -m functional_marl.laws package.module:Class``: ask a class from any library for its sharing.

Exit code 0: all laws hold; 1: one is violated; 2: it could not run; 130: it was interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from functional_marl._network import Network
from functional_marl._tensordict import to_tensordict
from functional_marl.laws.checking import check, laws_named
from functional_marl.laws.grouping import check_grouping
from functional_marl.laws.host import CheckError, seeded
from functional_marl.laws.infer import infer_sharing
from functional_marl.laws.law import Law

__all__ = ["main"]

_KINDS = {"float": torch.float32, "double": torch.float64, "int": torch.int64, "bool": torch.bool}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CheckError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m functional_marl.laws",
        description="Ask a multi-agent network from any library whether it shares what it claims.",
        epilog="Exit code 0: all laws hold. 1: a law is violated. 2: it could not run. 130: interrupted.",
    )
    add = parser.add_argument
    add("--list", action=_List, help="print what can be asked, and exit")
    add("subject", help="package.module:Class, or a function that builds a module or a pair (net, params)")
    add("--args", default="[]", help="positional arguments of the constructor, as a JSON list")
    add("--kwargs", default="{}", help='keyword arguments, as a JSON object; "@torch.nn:ReLU" is that object')
    add("--n-agents", type=int, help="how many agents, where the subject does not say")
    add("--sharing", help="shared, independent, slots as 0,0,1, or JSON: the claim; by default what the module says")
    add("--centralized", action="store_true", default=None, help="each agent sees all inputs")
    add("--agent-dim", default="-2", help="where inputs have the agents: an int, or JSON; default -2")
    add("--out-agent-dim", help="where outputs have them; by default where the first input does; null: nowhere")
    add("--randomness", choices=["error", "same", "different"], help="what agents draw in training")
    add(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]4,3,6[:KIND]",
        help="the shape of an input; repeat for several; NAME= for a dict; KIND: float, double, bool, int7 (below 7)",
    )
    add("--tensordict", action="store_true", help="named inputs go in as a TensorDict; dots nest")
    add("--groups", type=_groups, help="sizes of groups, as walker=2,runner=1, for dicts of groups")
    add("--batch-dims", type=int, help="how many axes in front are batches; 0 where the first is time")
    add("--single", metavar="PATH", help="package.module:function that builds the module of one agent, to compare with")
    add("--train", action="store_true", help="ask in training")
    add("--laws", default="sharing", help="sharing, all, or names or numbers with commas; default sharing")
    add("--examples", type=int, default=20, metavar="N", help="cases a law; default 20")
    add("--seed", type=int, default=0, help="of the module and of the cases; default 0")
    add("--infer", action="store_true", help="only print who trains what")
    add("--names", help="names of agents with commas: the subject is a function that groups them")
    add("--json", action="store_true", help="print JSON")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


class _List(argparse.Action):
    """Print the laws: number, name, and the law in English; a star where it is not asked by default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        usual = {law.name for law in laws_named("sharing")}
        for law in laws_named("all"):
            print(f"{law.number:>2}{' ' if law.name in usual else '*'} {law.name}: {' '.join(law.english.split())}")
        print("\n* only with --laws all, or by name or number")
        parser.exit()


def _groups(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in (item.split("=") for item in text.split(","))}


def _found(path: str) -> Any:
    """The object at ``package.module:name.name``."""
    module, _, names = path.partition(":")
    if not names:
        raise CheckError(f"{path}: expected package.module:Class")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise CheckError(f"{path}: cannot import {module}: {error}") from None
    for name in names.split("."):
        if not hasattr(found, name):
            raise CheckError(f"{path}: {module} has no {names}")
        found = getattr(found, name)
    return found


def _json(text: str, option: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckError(f"{option}: expected JSON, got {text!r}: {error}") from None
    if not isinstance(value, kind):
        raise CheckError(f"{option}: expected a JSON {kind.__name__}, got {text}")
    return _resolved(value)


def _resolved(value: Any) -> Any:
    """JSON with the objects that its ``"@package.module:name"`` name."""
    if isinstance(value, str) and value.startswith("@"):
        return _found(value[1:])
    if isinstance(value, list):
        return [_resolved(v) for v in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {k: _resolved(v) for k, v in cast("dict[str, Any]", value).items()}
    return value


def _sharing(text: str | None) -> Any:
    if text is None or text in ("shared", "independent"):
        return text
    if text.startswith(("[", "{")):
        return _json(text, "--sharing", object)
    try:
        return [int(slot) for slot in text.split(",")]
    except ValueError:
        raise CheckError(f"--sharing: expected shared, independent or slots as 0,0,1, got {text!r}") from None


def _input(text: str) -> tuple[str, Tensor]:
    name, _, rest = text.rpartition("=")
    shape, _, kind = rest.partition(":")
    high = int(kind[3:]) if kind[:3] == "int" and kind[3:].isdigit() else 2
    try:
        sizes = [int(size) for size in shape.split(",")]
        dtype = _KINDS["int" if kind.startswith("int") else kind or "float"]
    except (ValueError, KeyError):
        raise CheckError(f"--input: expected [name=]4,3,6[:float|double|bool|int7], got {text!r}") from None
    zeros = torch.zeros(sizes, dtype=dtype)
    return name, torch.arange(zeros.numel()).remainder(high).reshape(sizes) if dtype == torch.int64 else zeros


def _example(given: Sequence[str], tensordict: bool) -> Any:
    if not given:
        raise CheckError("--input: expected the shape of an example input, such as 4,3,6")
    inputs = [_input(text) for text in given]
    if not any(name for name, _ in inputs):
        return inputs[0][1] if len(inputs) == 1 else tuple(leaf for _, leaf in inputs)
    if not all(name for name, _ in inputs):
        raise CheckError("--input: expected a name for every input, or for none")
    if tensordict:
        return to_tensordict(dict(inputs))
    nested: dict[str, Any] = {}
    for name, leaf in inputs:
        *path, last = name.split(".")
        at = nested
        for key in path:
            at = at.setdefault(key, {})
        at[last] = leaf
    return nested


def _builder(options: argparse.Namespace) -> Any:
    """A function that builds the subject; what it needs and was not given comes from the claims."""
    subject = _found(options.subject)
    args, kwargs = _json(options.args, "--args", list), _json(options.kwargs, "--kwargs", dict)
    if isinstance(subject, nn.Module | tuple | Network):
        return lambda: subject
    if not callable(subject):
        raise CheckError(f"{options.subject}: expected a class or a function, got {type(subject).__name__}")
    filled: dict[str, Any] = {} if options.n_agents is None else {"n_agents": options.n_agents}
    if options.sharing in ("shared", "independent"):
        filled["share_params"] = options.sharing == "shared"
    filled["centralized"] = bool(options.centralized)
    try:
        signature = inspect.signature(subject)
        known = signature.bind_partial(*args, **kwargs).arguments
        kwargs |= {k: v for k, v in filled.items() if k in signature.parameters and k not in known}
    except (TypeError, ValueError):
        pass  # the call says what is wrong

    def build() -> Any:
        try:
            return subject(*args, **kwargs)
        except Exception as error:
            raise CheckError(f"{options.subject} does not build: {type(error).__name__}: {error}") from None

    return build


def _bar(quiet: bool) -> Any:
    """tqdm's progress bar, where it is installed and somebody sees it."""
    try:
        tqdm: Any = importlib.import_module("tqdm").tqdm
    except ImportError:
        return iter

    def wrap(laws: Iterable[Law]) -> Iterable[Law]:
        return tqdm(laws, desc="laws", unit="law", file=sys.stderr, leave=False, disable=quiet or None)

    return wrap


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if options.names:
        report = check_grouping(_found(options.subject), options.names.split(","), name=options.subject)
    else:
        build, example = _builder(options), _example(options.input, options.tensordict)
        where: dict[str, Any] = {"agent_dim": _json(options.agent_dim, "--agent-dim", object)}
        if options.out_agent_dim is not None:
            where["out_agent_dim"] = _json(options.out_agent_dim, "--out-agent-dim", object)
        where |= {"n_agents": options.n_agents, "example": example, "groups": options.groups, "train": options.train}
        if options.infer:
            with seeded(options.seed):
                module = build()
            print(infer_sharing(module, **where))
            return 0
        report = check(
            build,
            sharing=_sharing(options.sharing),
            centralized=options.centralized,
            randomness=options.randomness,
            batch_dims=options.batch_dims,
            single=options.single and _found(options.single),
            laws=options.laws,
            examples=options.examples,
            seed=options.seed,
            name=options.subject,
            progress=_bar(options.quiet),
            **where,
        )
        again = shlex.join(["python", "-m", "functional_marl.laws", *argv])
        commands = [replace(v, snippet=f"{again} --laws {v.law}" if v.snippet else "") for v in report]
        report = replace(report, verdicts=tuple(commands))
    print(report.to_json() if options.json else report)
    return 0 if report else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    >>> main(["torch.nn:Linear", "--args", "[4, 2]", "--n-agents", "2", "--sharing", "shared", "--input", "3,2"])
    2
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("functional_marl.laws: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        text = str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
        print(f"functional_marl.laws: could not run: {' '.join(text.split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
