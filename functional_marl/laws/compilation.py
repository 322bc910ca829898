"""Law 51: compiled and exported calls give what eager ones give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from functional_marl._pytrees import Tree
from functional_marl.laws.law import agree, law
from functional_marl.laws.subject import Subject

__all__ = ["compile_is_eager", "export_is_eager", "inductor_is_eager"]


def _function(s: Subject) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A call as a function of tensors alone, in training where that draws or writes, and its arguments."""
    args, kwargs = s.placed()
    train = bool(s.state) or "random" in s.traits
    apply, net = s.ops.apply, s.net

    def run(params: Any, state: Any, key: Any, args: Any, kwargs: Any) -> Tree:
        how: dict[str, Any] = {"state": state} if state else {}
        evaluated = apply(net, params, *args, kwargs=kwargs, **how)
        if not train:
            return evaluated
        return evaluated, apply(net, params, *args, kwargs=kwargs, key=key, train=True, mutable=True, **how)

    return run, (s.own, s.state, s.key(), args, kwargs)


def _other(s: Subject) -> tuple[Any, ...]:
    """The same arguments with other parameters: what was traced must not have kept the first."""
    other = replace(s, params={name: leaf + 0.5 for name, leaf in s.own.items()}, seed=s.seed + 1)
    return _function(other)[1]


def _compiled(s: Subject, backend: str) -> None:
    run, given = _function(s)
    torch.compiler.reset()
    compiled: Any = torch.compile(run, fullgraph=True, backend=backend)  # pyright: ignore
    for what, arguments in (("the traced", given), ("other", _other(s))):
        agree(compiled(*arguments), run(*arguments), f"backend {backend}, {what} parameters: outputs")


@law(51, "compiles", "parameters", foreign=False, cost=20)
def compile_is_eager(s: Subject) -> None:
    """compile(y) = y.

    ``torch.compile`` with ``fullgraph=True`` gives what eager gives, for these parameters and for others.
    """
    _compiled(s, "aot_eager")


@law(51, "compiles", "parameters", foreign=False, cost=200)
def inductor_is_eager(s: Subject) -> None:
    """inductor(y) = y.

    The same with the compiler that torch uses by default.
    """
    _compiled(s, "inductor")


@law(51, "exports", "parameters", foreign=False, cost=20)
def export_is_eager(s: Subject) -> None:
    """export(y) = y.

    ``torch.export``, strict or not, gives what eager gives, for these parameters and for others.
    """
    run, given = _function(s)

    class Program(nn.Module):
        def forward(self, params: Any, state: Any, key: Any, args: Any, kwargs: Any) -> Any:
            """The call."""
            return run(params, state, key, args, kwargs)

    for strict in (False, True):
        program: Any = torch.export.export(Program(), given, strict=strict)
        for what, arguments in (("the traced", given), ("other", _other(s))):
            agree(program.module()(*arguments), run(*arguments), f"strict={strict}, {what} parameters: outputs")
