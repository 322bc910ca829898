"""Replaying a recorded initialization: one slot's leaves are filled without building a module.

Building a module of three linear layers takes 140 to 300 us, nearly all of it Python around six random operations.
The operations alone take a few microseconds each. A trace is used only if it reproduces, under another seed, bitwise
what the factory builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl import _torch_compat
from functional_marl._module.leaves import all_leaves
from functional_marl._randomness.use_generator import seeded_generator

__all__ = ["InitTrace", "RecordedOp", "Several", "in_plain_context"]


class Several(tuple[Any, ...]):
    """An argument that is a list of tensors: for each its index among the values, or None for none."""


@dataclass(frozen=True)
class RecordedOp:
    """One operation. Its tensor arguments come from the values, and its results go into them."""

    operation: Any
    args: tuple[Any, ...]
    inputs: tuple[tuple[int, Any], ...]  # (index of an argument, index of its value, or Several)
    kwargs: dict[str, Any]
    random: bool
    outputs: tuple[int, ...]  # indices of the results among the values; none for an operation in place


@dataclass(frozen=True)
class InitTrace:
    """The random operations of a factory and those that depend on them, in order, and how they fill its leaves."""

    steps: tuple[RecordedOp, ...]
    values: tuple[Tensor | None, ...]  # tensors that do not depend on the seed; None for what a step or a row gives
    rows: tuple[tuple[str, int], ...]  # leaves that the steps write directly into the caller's rows
    copies: tuple[tuple[str, int], ...]  # leaves that the steps make elsewhere
    constants: dict[str, Tensor]  # leaves that do not depend on the seed
    dtype: torch.dtype  # torch's default when it was recorded

    def matches_context(self) -> bool:
        """Whether the factory would run the same operations in the present context."""
        return in_plain_context() and self.dtype == torch.get_default_dtype()

    def replay(self, rows: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        """Fill one slot's leaves with random numbers from the generator, by default torch's global one.

        ``rows`` holds a tensor for every leaf, constants too: contiguous, on the CPU, of the leaf's shape and dtype.
        """
        values = list(self.values)
        for name, at in self.rows:
            values[at] = rows[name]
        for step in self.steps:
            args = step.args
            if step.inputs:
                given = list(args)
                for place, at in step.inputs:
                    given[place] = (
                        values[at] if type(at) is int else [None if one is None else values[one] for one in at]
                    )
                args = given
            if step.random:
                out = step.operation(*args, generator=generator, **step.kwargs)
            else:
                out = step.operation(*args, **step.kwargs)
            if step.outputs:
                for at, value in zip(step.outputs, (out,) if isinstance(out, Tensor) else out, strict=True):
                    values[at] = value
        for name, at in self.copies:
            rows[name].copy_(values[at])  # pyright: ignore[reportArgumentType]
        for name, value in self.constants.items():
            rows[name].copy_(value)

    def reproduces(self, module: nn.Module, seed: int) -> bool:
        """Whether a replay gives bitwise the leaves of a module that the factory has built under the same seed."""
        leaves = all_leaves(module)
        if leaves.keys() != {*self.constants, *(name for name, _ in (*self.rows, *self.copies))}:
            return False
        rows = {name: torch.full_like(leaf, 7, requires_grad=False) for name, leaf in leaves.items()}
        with torch.no_grad(), seeded_generator(seed) as generator:
            self.replay(rows, generator)
        return all(rows[name].equal(leaf) for name, leaf in leaves.items())


def in_plain_context() -> bool:
    """Whether a factory would build plain tensors on the CPU: no device, mode or transform changes its work."""
    if (
        torch.get_default_device().type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or _torch_compat.dispatch_modes() > 0
    ):
        return False
    return not _torch_compat.in_transform()
