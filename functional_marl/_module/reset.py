"""Initializing a given module again: a copy of it, filled by its own ``reset_parameters``."""

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
    """The parts of a module in their order and before the whole, as constructors initialize them."""
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
    """A factory made of a module: each call gives a copy of it, initialized by its own resets.

    Args:
        module: one agent's module.
        names: of its leaves.
        empty: the same module without leaves, from which the copies are made.
    """

    def __init__(self, module: nn.Module, names: LeafNames, empty: nn.Module) -> None:
        leaves = get_leaves(module, names)
        floats = [name for name in names.params if is_float(leaves[name])]
        self.forms = {name: (leaves[name].shape, leaves[name].dtype, leaves[name].device) for name in floats}
        # parameters of integers, which cannot hold NaN, and buffers: a copy starts with their numbers
        self.kept = {name: leaf.detach() for name, leaf in leaves.items() if name not in self.forms}
        self.names, self.empty = names, empty

    def __call__(self) -> nn.Module:
        """A copy whose leaves its own resets have filled.

        Raises:
            StructureError: names the leaves that no reset fills.
        """
        module = copy.deepcopy(self.empty)
        leaves = {name: leaf.clone() for name, leaf in self.kept.items()}
        for name, (shape, dtype, device) in self.forms.items():
            leaves[name] = torch.full(shape, torch.nan, dtype=dtype, device=device)
        params = {name: as_parameter(leaves[name]) for name in self.names.params}
        set_leaves(module, self.names, {**leaves, **params})
        call_resets(reversed(list(module.modules())))  # the parts before the whole, as constructors do
        unfilled = unfilled_names(params)
        if unfilled:
            raise StructureError(
                f"build: a module was given, and no reset_parameters() fills {unfilled}; give a factory instead: "
                "a function that builds the module"
            )
        return module
