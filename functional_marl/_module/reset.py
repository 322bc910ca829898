"""Initialising a given module again: a copy of it, filled by its own ``reset_parameters``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from functional_marl._errors import StructureError
from functional_marl._module.leaves import LeafNames, as_parameter, get_leaves, is_float, set_leaves

__all__ = ["ResetFactory", "call_resets", "in_construction_order", "mark_unfilled", "unfilled_names"]


def call_resets(parts: Iterable[nn.Module]) -> None:
    """Call ``reset_parameters``, or else ``_reset_parameters``, of each part that has one."""
    for part in parts:
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()


def in_construction_order(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a module in their order and before the whole, as constructors initialise them."""
    for child in module.children():
        yield from in_construction_order(child)
    yield module


def mark_unfilled(leaf: Tensor) -> Tensor:
    """A leaf full of NaN, which no reset writes. A leaf of integers cannot hold NaN: a copy of it."""
    return torch.full_like(leaf, torch.nan) if is_float(leaf) else leaf.detach().clone()


def unfilled_names(leaves: Mapping[str, Tensor]) -> list[str]:
    """The leaves that still hold NaN: no reset has filled all of them."""
    return [name for name, leaf in leaves.items() if bool(leaf.detach().isnan().any())]


class ResetFactory:
    """A factory made of a module: each call gives a copy of it, initialised by its own resets.

    Args:
        module: one agent's module.
        empty: the same without leaves, from which the copies are made.
    """

    def __init__(self, module: nn.Module, empty: nn.Module) -> None:
        self.names = LeafNames.of(module)
        leaves = {name: leaf.detach() for name, leaf in get_leaves(module, self.names).items()}
        # Integers keep their numbers. Of the others, shape, dtype and device: all elements are one in memory.
        self.params = {
            name: leaves[name].new_zeros(()).expand(leaves[name].shape) if is_float(leaves[name]) else leaves[name]
            for name in self.names.params
        }
        self.buffers = {name: leaves[name] for name in self.names.buffers}
        self.empty = empty

    def __call__(self) -> nn.Module:
        """A copy whose leaves its own resets have filled.

        Raises:
            StructureError: names the leaves that no reset fills.
        """
        module = copy.deepcopy(self.empty)
        params = {name: as_parameter(mark_unfilled(leaf)) for name, leaf in self.params.items()}
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        set_leaves(module, self.names, {**params, **buffers})
        call_resets(reversed(list(module.modules())))  # the parts before the whole, as constructors do
        unfilled = unfilled_names(params)
        if unfilled:
            raise StructureError(
                f"build: a module was given, and no reset_parameters() fills {unfilled}; give a factory instead: "
                "a function that builds the module"
            )
        return module
