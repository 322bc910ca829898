"""Layers that change the shape alone, or nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rows import plain_layout
from functional_marl._lowering.steps import PassThrough, Run, Value


@lowering_rule(nn.Identity)
def identity(module: nn.Identity, context: Context) -> PassThrough:
    """It returns its input."""
    return PassThrough(lambda run, h, mapped: (h, mapped))


@lowering_rule(nn.Flatten)
def flatten(module: nn.Flatten, context: Context) -> PassThrough:
    """Some axes that the agent sees become one."""
    start, end = module.start_dim, module.end_dim

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        ndim = max(h.ndim - mapped, 1)
        if not (-ndim <= start < ndim and -ndim <= end < ndim):
            raise Unsupported(f"no dims {start} to {end} in {h.ndim - mapped} axes")
        if h.ndim == mapped:
            return h.unsqueeze(-1), mapped
        return plain_layout(h, mapped).flatten(start % ndim + mapped, end % ndim + mapped), mapped

    return PassThrough(step)


@lowering_rule(nn.Unflatten)
def unflatten(module: nn.Unflatten, context: Context) -> PassThrough:
    """One axis that the agent sees becomes several."""
    dim, sizes = module.dim, module.unflattened_size
    if not isinstance(dim, int):
        raise Unsupported("Unflatten of a named axis")

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not mapped - h.ndim <= dim < h.ndim - mapped:
            raise Unsupported(f"no dim {dim} in {h.ndim - mapped} axes")
        return torch.unflatten(h, dim + mapped if dim >= 0 else dim, tuple(sizes)), mapped  # pyright: ignore

    return PassThrough(step)
