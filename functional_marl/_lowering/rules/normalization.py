"""Layer norm, group norm, batch norm in evaluation; and weight norm under vmap."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl import _torch_compat
from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.registry import Context, batching_rule, lowering_rule
from functional_marl._lowering.rows import Rows, channels_apart, channels_together, over_rows
from functional_marl._lowering.steps import Run, Step


def _affine(*shape: int) -> ExpectedLeaves:
    return ExpectedLeaves({"weight": shape, "bias": shape}, optional=("weight", "bias"))


def _scaled(x: Tensor, rows: Rows, tail: int) -> Tensor:
    """``x * weight + bias`` in the dtype of ``x``; the leaves' last axis is ``tail`` axes ahead of the end of ``x``."""
    out = x
    for attribute, operation in (("weight", torch.mul), ("bias", torch.add)):
        leaf = rows(attribute)
        if leaf is not None:
            lead = x.ndim - tail - leaf.ndim
            out = operation(out, leaf.reshape(leaf.shape[0], *[1] * lead, *leaf.shape[1:], *[1] * tail))
    return out.to(x.dtype)


@lowering_rule(nn.LayerNorm, leaves=lambda module: _affine(*module.normalized_shape))
def layer_norm(module: nn.LayerNorm, context: Context) -> Step:
    """Over the last axes."""
    shape, eps = tuple(module.normalized_shape), module.eps

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if x.shape[0] > 1:
            return _scaled(F.layer_norm(x, shape, None, None, eps), rows, 0)
        weight, bias = rows("weight"), rows("bias")
        return F.layer_norm(x, shape, None if weight is None else weight[0], None if bias is None else bias[0], eps)

    return over_rows(context.leaves, inner, lambda ndim: len(shape))


@lowering_rule(nn.GroupNorm, leaves=lambda module: _affine(module.num_channels))
def group_norm(module: nn.GroupNorm, context: Context) -> Step:
    """Over ``[B, C, ...]``."""
    groups, channels, eps = module.num_groups, module.num_channels, module.eps

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if x.ndim < 3 or x.shape[2] != channels:
            raise Unsupported("GroupNorm over other channels")
        out = F.group_norm(x.flatten(0, 1), groups, None, None, eps).reshape(x.shape)
        return _scaled(out, rows, x.ndim - 3)

    return over_rows(context.leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))


def _batch_norm_leaves(module: Any) -> ExpectedLeaves:
    size = (module.num_features,)
    buffers: dict[str, tuple[int, ...]] = {"running_mean": size, "running_var": size, "num_batches_tracked": ()}
    absent = () if module.track_running_stats else tuple(buffers)
    return ExpectedLeaves({"weight": size, "bias": size}, buffers, ("weight", "bias", *absent))


@lowering_rule(nn.BatchNorm1d, leaves=_batch_norm_leaves)
def batch_norm1d(module: nn.BatchNorm1d, context: Context) -> Step:
    """Over ``[B, C]`` or ``[B, C, L]``."""
    return _batch_norm(module, context, 2, 3)


@lowering_rule(nn.BatchNorm2d, leaves=_batch_norm_leaves)
def batch_norm2d(module: nn.BatchNorm2d, context: Context) -> Step:
    """Over ``[B, C, H, W]``."""
    return _batch_norm(module, context, 4, 4)


@lowering_rule(nn.BatchNorm3d, leaves=_batch_norm_leaves)
def batch_norm3d(module: nn.BatchNorm3d, context: Context) -> Step:
    """Over ``[B, C, D, H, W]``."""
    return _batch_norm(module, context, 5, 5)


def _batch_norm(module: Any, context: Context, least: int, most: int) -> Step:
    """With its running statistics, over inputs of ``least`` to ``most`` axes."""
    if context.train:
        raise Unsupported("it changes its buffers in training")
    if not module.track_running_stats:
        raise Unsupported("without running statistics")
    channels, eps = module.num_features, module.eps

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if not least <= x.ndim - 1 <= most or x.shape[2] != channels:
            raise Unsupported("BatchNorm over other axes")
        flat = [
            None if row is None else row.flatten()
            for row in map(rows, ("running_mean", "running_var", "weight", "bias"))
        ]
        # [k, B, C, ...] -> [B, k * C, ...]: the agents' channels side by side
        out = F.batch_norm(channels_together(x), *flat, training=False, eps=eps)
        return channels_apart(out, x.shape[0])

    return over_rows(context.leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))


@batching_rule(_torch_compat.weight_norm)
def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``v`` scaled to the norms ``g``. Under ``torch.compile`` dynamo does not look up this rule, and vmap warns."""
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    return v * (g / (torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1) if others else v.abs()))
