"""Compiled and exported calls give what eager ones give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from functional_marl._pytrees import Tree
from functional_marl.laws._capabilities import COMPILES, EVALUATION, EXPORTS, NUMBERS, REPEATABLE, RUNS, SLOTS
from functional_marl.laws._compare import Broken, agree
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._restore import kept

__all__ = ["compile_is_eager", "export_is_eager", "inductor_is_eager"]


def _compiled(s: NetworkSubject | ModuleSubject, backend: str) -> None:
    calls = _network_calls(s, backend) if isinstance(s, NetworkSubject) else _module_calls(s, backend)
    torch.compiler.reset()
    try:
        found = list(calls)
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise Broken(f"backend {backend}: expected outputs, got {type(error).__name__}: {why}") from error
    for what, output, wanted in found:
        agree(output, wanted, f"backend {backend}, {what}: outputs")


# What was traced must not have kept the first numbers: every function is called with others, too.
Calls = Iterator[tuple[str, Tree, Tree]]


def _network_calls(s: NetworkSubject, backend: str) -> Calls:
    run, given = _program(s)
    compiled: Any = torch.compile(run, fullgraph=True, backend=backend)  # pyright: ignore
    for what, arguments in given.items():
        yield what, compiled(*arguments), run(*arguments)


def _module_calls(s: ModuleSubject, backend: str) -> Calls:
    module, read = s.host.module, s.host.read
    with kept(module), torch.no_grad():
        module.eval()
        compiled: Any = torch.compile(module, backend=backend)
        for what, case in (("the traced inputs", s), ("other inputs", s.redrawn(s.seed + 1))):
            args, kwargs = s.host.rebuild(case.leaves)
            wanted = read(module(*args, **kwargs))
            yield what, read(compiled(*args, **kwargs)), wanted


def _program(s: NetworkSubject) -> tuple[Callable[..., Tree], dict[str, tuple[Any, ...]]]:
    """Calls as a function of tensors alone, in training where that draws or writes, and arguments for it."""
    train = bool(s.state) or s.draws_in_training
    apply, net = s.ops.apply, s.net
    args, kwargs = s.placed()

    def run(params: Any, state: Any, key: Any, args: Any, kwargs: Any) -> Tree:
        how: dict[str, Any] = {"state": state} if state else {}
        evaluated = apply(net, params, *args, kwargs=kwargs, **how)
        if not train:
            return evaluated
        return evaluated, apply(net, params, *args, kwargs=kwargs, key=key, train=True, mutable=True, **how)

    others = {name: leaf + 0.5 for name, leaf in s.params.items()}
    return run, {
        "the traced parameters": (s.params, s.state, s.key(), args, kwargs),
        "other parameters": (others, s.state, s.key(1), args, kwargs),
    }


@law(51, RUNS, NUMBERS, EVALUATION, REPEATABLE, COMPILES, default=False, every_case=False, cost=20)
def compile_is_eager(s: NetworkSubject | ModuleSubject) -> None:
    """compile(y) = y.

    ``torch.compile`` (backend aot_eager) gives what eager gives, for these numbers and for others; a network of ours
    with ``fullgraph=True``, in training, too.
    """
    _compiled(s, "aot_eager")


@law(51, SLOTS, COMPILES, default=False, every_case=False, cost=200)
def inductor_is_eager(s: NetworkSubject) -> None:
    """inductor(y) = y.

    The same with the compiler that torch uses by default.
    """
    _compiled(s, "inductor")


@law(51, SLOTS, EXPORTS, default=False, every_case=False, cost=20)
def export_is_eager(s: NetworkSubject) -> None:
    """export(y) = y.

    ``torch.export``, strict or not, gives what eager gives, for these parameters and for others.
    """
    run, given = _program(s)

    class Program(nn.Module):
        def forward(self, params: Any, state: Any, key: Any, args: Any, kwargs: Any) -> Any:
            """The call."""
            return run(params, state, key, args, kwargs)

    for strict in (False, True):
        program: Any = torch.export.export(Program(), next(iter(given.values())), strict=strict)
        for what, arguments in given.items():
            agree(program.module()(*arguments), run(*arguments), f"strict={strict}, {what}: outputs")
