"""Compiled and exported calls give what eager ones give."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from functional_marl.laws._capabilities import COMPILES, EVALUATION, EXPORTS, NUMBERS, REPEATABLE, RUNS, SLOTS
from functional_marl.laws._compare import Broken, agree
from functional_marl.laws._law import law
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._subject import Subject

__all__ = ["compile_is_eager", "export_is_eager", "inductor_is_eager"]


def _compiled(s: Subject, backend: str) -> None:
    torch.compiler.reset()
    try:
        found = list(s.compiled(backend))
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise Broken(f"backend {backend}: expected outputs, got {type(error).__name__}: {why}") from error
    for what, output, wanted in found:
        agree(output, wanted, f"backend {backend}, {what}: outputs")


@law(51, RUNS, NUMBERS, EVALUATION, REPEATABLE, COMPILES, default=False, every_case=False, cost=20)
def compile_is_eager(s: Subject) -> None:
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
    run, given = s.program()

    class Program(nn.Module):
        def forward(self, params: Any, state: Any, key: Any, args: Any, kwargs: Any) -> Any:
            """The call."""
            return run(params, state, key, args, kwargs)

    for strict in (False, True):
        program: Any = torch.export.export(Program(), next(iter(given.values())), strict=strict)
        for what, arguments in given.items():
            agree(program.module()(*arguments), run(*arguments), f"strict={strict}, {what}: outputs")
