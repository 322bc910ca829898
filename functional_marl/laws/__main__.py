"""``python -m functional_marl.laws package.module:Class``: check a class from any library.

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
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import nn

from functional_marl._network import Network
from functional_marl.laws._check import check, laws_named
from functional_marl.laws._check_grouping import check_grouping
from functional_marl.laws._claims import Claims
from functional_marl.laws._example_words import example_of
from functional_marl.laws._infer import infer_sharing
from functional_marl.laws._law import LAWS_VERSION, Law
from functional_marl.laws._listing import listing
from functional_marl.laws._report import Report
from functional_marl.laws._restore import seeded
from functional_marl.laws._subject import CheckError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CheckError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m functional_marl.laws",
        description="Check whether a multi-agent network from any library keeps what its author claims of it.",
        epilog="Exit code 0: all laws hold. 1: a law is violated. 2: it could not run. 130: interrupted.",
    )
    parser.add_argument("--list", action=_List, help="print the laws, what they say and what they need, and exit")
    add = parser.add_argument_group("the module").add_argument
    add("subject", help="package.module:Class, or a function that builds a module or a pair (net, params)")
    add("--args", default="[]", help="positional arguments of the constructor, as a JSON list")
    add("--kwargs", default="{}", help='keyword arguments, as a JSON object; "@torch.nn:ReLU" is that object')
    add(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]4,3,6[:KIND]",
        help="the shape of an input; repeat for several; NAME= for a dict; KIND: float, double, bool, int7 (below 7)",
    )
    add("--tensordict", action="store_true", help="named inputs go in as a TensorDict; dots nest")
    _add_claims(parser.add_argument_group("what its author claims"))
    add = parser.add_argument_group("the check").add_argument
    add("--laws", default="default", help="default, all (threads and compilation too), or names of laws or topics")
    add("--skip", default="", metavar="NAMES", help="names of laws, with commas, that are left out")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train", action="store_true", default=None, help="in training alone; by default both modes")
    mode.add_argument("--eval", action="store_false", dest="train", help="in evaluation alone")
    add("--examples", type=int, default=20, metavar="N", help="cases a law; default 20")
    add("--smoke", action="store_const", const=4, dest="examples", help="4 cases a law")
    add("--seed", type=int, default=0, help="of the module and of the cases; default 0")
    add("--infer", action="store_true", help="only print who trains what")
    add("--names", help="names of agents with commas: the subject is a function that groups them")
    add("--verbose", action="store_true", help="print every law, also those that do not apply, with the reason")
    add("--json", action="store_true", help="print JSON")
    add("--junit", metavar="FILE", type=Path, help="also write the report as JUnit XML")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_claims(group: Any) -> None:
    """One option for each field of :class:`Claims`."""
    add = group.add_argument
    add("--n-agents", type=int, help="how many agents, where the module does not state it")
    add("--sharing", help="shared, independent, slots as 0,0,1, or JSON; by default what the module states")
    add("--centralized", action="store_true", default=None, help="each agent's network sees all inputs")
    add(
        "--communication",
        nargs="?",
        const="true",
        metavar="JSON",
        help="agents exchange messages: all with all, or for each agent those that it hears, [[1], [0, 2], [1]]",
    )
    add("--rounds", type=int, default=1, help="rounds of messages over that graph; default 1")
    add("--ids", action="store_true", help="a shared network adds ids or embeddings of agents of its own")
    add(
        "--agents",
        metavar="NAMES",
        help="names with commas: inputs and outputs are dicts keyed by agent; a number: lists, one entry an agent",
    )
    add("--groups", type=_groups, help="sizes of groups, as walker=2,runner=1, for dicts of groups")
    add("--agent-dim", default="-2", help="where inputs have the agents: an int, or JSON; default -2")
    add("--out-agent-dim", help="where outputs have them; by default where the first input does; null: nowhere")
    add("--batch-dims", type=int, help="how many axes in front are batches; 0 where the first is time")
    add("--select", help="what laws look at in the output: a key, index or attribute, such as logits, 0, dist.loc")
    add("--randomness", choices=["error", "same", "different"], help="what agents draw in training")
    add("--samples", action="store_true", help="evaluation draws, as a policy that returns actions does")
    add("--memory", action="store_true", help="the module keeps state from one call to the next")
    add("--single", metavar="PATH", help="package.module:function that builds the module of one agent, to compare with")


class _List(argparse.Action):
    """Print the laws and leave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(listing(laws_named("all"), LAWS_VERSION))
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


def _places(text: str, option: str) -> Any:
    """Positions as JSON; a list has one for each positional input."""
    value = _json(text, option, object)
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _agents(text: str | None) -> list[str] | int | None:
    """Names with commas, or a number."""
    return None if text is None else int(text) if text.isdecimal() else text.split(",")


def _claims(options: argparse.Namespace) -> Claims:
    agents = _agents(options.agents)
    where: dict[str, Any] = {}
    if options.out_agent_dim is not None:
        where["out_agent_dim"] = _places(options.out_agent_dim, "--out-agent-dim")
    return Claims(
        example_of(options.input, options.tensordict, agents),
        n_agents=options.n_agents,
        sharing=_sharing(options.sharing),
        centralized=options.centralized,
        communication=None
        if options.communication is None
        else _json(options.communication, "--communication", object),
        rounds=options.rounds,
        ids=options.ids,
        agents=agents,
        groups=options.groups,
        agent_dim=_places(options.agent_dim, "--agent-dim"),
        batch_dims=options.batch_dims,
        select=options.select,
        randomness=options.randomness,
        samples=options.samples,
        memory=options.memory,
        single=options.single and _found(options.single),
        **where,
    )


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
        pass  # the call raises the error that matters

    def build() -> Any:
        try:
            return subject(*args, **kwargs)
        except Exception as error:
            raise CheckError(f"{options.subject} does not build: {type(error).__name__}: {error}") from None

    return build


def _bar(quiet: bool) -> Any:
    """tqdm's progress bar, where it is installed and stderr is a terminal."""
    try:
        tqdm: Any = importlib.import_module("tqdm").tqdm
    except ImportError:
        return iter

    def wrap(laws: Iterable[Law]) -> Iterable[Law]:
        return tqdm(laws, desc="laws", unit="law", file=sys.stderr, leave=False, disable=quiet or None)

    return wrap


def _report(options: argparse.Namespace, argv: Sequence[str]) -> Report:
    if options.names:
        return check_grouping(_found(options.subject), options.names.split(","), name=options.subject)
    report = check(
        _builder(options),
        _claims(options),
        laws=options.laws,
        skip=[name for name in options.skip.split(",") if name],
        train=options.train,
        examples=options.examples,
        seed=options.seed,
        name=options.subject,
        progress=_bar(options.quiet),
    )
    again = shlex.join(["python", "-m", "functional_marl.laws", *argv])
    commands = [
        replace(v, snippet=f"{again} --laws {v.law}{' --train' * v.train}" if v.snippet else "") for v in report
    ]
    return replace(report, verdicts=tuple(commands))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if options.infer:
        build, claims = _builder(options), _claims(options)
        with seeded(options.seed):
            module = build()
        print(infer_sharing(module, claims, train=bool(options.train)))
        return 0
    report = _report(options, argv)
    if options.junit is not None:
        options.junit.write_text(report.to_junit(), encoding="utf-8")
    print(report.to_json() if options.json else report.text(verbose=options.verbose))
    return 0 if report else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    >>> main(["torch.nn:Linear", "--args", "[4, 2]", "--n-agents", "2", "--sharing", "shared", "--input", "3,2"])
    2
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # the reader of the output, such as head, has left
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("functional_marl.laws: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        text = str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
        print(f"functional_marl.laws: could not run: {' '.join(text.split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
