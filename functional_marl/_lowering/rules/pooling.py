"""Pooling."""

from __future__ import annotations

from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rules.activation import function_of
from functional_marl._lowering.steps import Run, Step, Value


@lowering_rule(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
def pool1d(module: nn.Module, context: Context) -> Step:
    """Over ``[B, C, L]`` or ``[C, L]``."""
    return _pool(module, 2)


@lowering_rule(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
def pool2d(module: nn.Module, context: Context) -> Step:
    """Over ``[B, C, H, W]`` or ``[C, H, W]``."""
    return _pool(module, 3)


@lowering_rule(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
def pool3d(module: nn.Module, context: Context) -> Step:
    """Over ``[B, C, D, H, W]`` or ``[C, D, H, W]``."""
    return _pool(module, 4)


def _pool(module: nn.Module, item_ndim: int) -> Step:
    """A layer over items of ``item_ndim`` axes, with at most one batch axis."""
    if getattr(module, "return_indices", False):
        raise Unsupported("return_indices")
    pool = function_of(module)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not mapped or h.ndim == item_ndim + 1:  # [n, *item]: the agents are the batch
            return pool(h), mapped
        if h.ndim != item_ndim + 2:
            raise Unsupported(f"{type(module).__name__} over {h.ndim - 1} axes")
        inside = not h.is_contiguous()
        h = h.transpose(0, 1) if inside else h
        out = pool(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return out.transpose(0, 1) if inside else out, mapped

    return step
