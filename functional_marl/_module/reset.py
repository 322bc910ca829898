"""A factory made of a module: copies of it that their own resets draw anew."""

from __future__ import annotations

import copy

import torch
from torch import nn

from functional_marl._errors import StructureError
from functional_marl._module.leaves import as_parameter, is_float, named_tensors, set_leaves

__all__ = ["Redraw"]


class Redraw:
    """A factory made of a module and its skeleton: copies redrawn by their own ``reset_parameters``."""

    def __init__(self, module: nn.Module, skeleton: nn.Module) -> None:
        params, self.param_aliases = named_tensors(module, "_parameters")
        self.leaves = {k: (p.shape, p.dtype, p.device) for k, p in params.items()}
        self.integers = {k: p for k, p in params.items() if not is_float(p)}  # no NaN to mark these: kept
        self.buffers, self.buffer_aliases = named_tensors(module, "_buffers")
        self.skeleton = skeleton

    def __call__(self) -> nn.Module:
        """A copy whose leaves its own resets have filled."""
        module = copy.deepcopy(self.skeleton)
        # NaN marks what no reset has filled.
        fresh = {
            k: as_parameter(
                self.integers[k].clone()
                if k in self.integers
                else torch.full(shape, torch.nan, dtype=dtype, device=device)
            )
            for k, (shape, dtype, device) in self.leaves.items()
        }
        set_leaves(module, fresh, self.param_aliases)
        set_leaves(module, {k: b.clone() for k, b in self.buffers.items()}, self.buffer_aliases)
        for part in reversed(list(module.modules())):  # the parts before the whole, as constructors do
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
        bare = [k for k, p in fresh.items() if bool(torch.isnan(p.detach()).any())]
        if bare:
            raise StructureError(
                f"build: a module was given, and no reset_parameters() fills {bare}; give a factory instead: "
                "a function that builds the module anew"
            )
        return module
