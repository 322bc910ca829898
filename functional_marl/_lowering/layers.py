"""How each known layer runs for all agents at once: the rules of the plan.

Every rule is proved equal to the loop, forward and backward, in the tests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.activations import pure
from functional_marl._lowering.steps import (
    Leaves,
    Run,
    Step,
    Value,
    channels_apart,
    channels_together,
    plain_layout,
)
from functional_marl._randomness.dropout_masks import batched_dropout

__all__ = ["CONVOLUTIONS", "PASSING", "convolution", "lower_layer"]


# --- layers that act on each row, without parameters ---------------------------------------------------


def _rowwise(module: nn.Module, row_ndim: int) -> Step:
    """A layer over rows of ``row_ndim`` axes with at most one batch axis: pooling and the like."""
    if getattr(module, "return_indices", False):
        raise Unsupported("return_indices")
    call = pure(module)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not mapped or h.ndim == row_ndim + 1:  # [n, *row]: the agents are the batch
            return call(h), mapped
        if h.ndim != row_ndim + 2:
            raise Unsupported(f"{type(module).__name__} over {h.ndim - 1} axes")
        inside = not h.is_contiguous()
        h = h.transpose(0, 1) if inside else h
        out = call(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return out.transpose(0, 1) if inside else out, mapped

    return step


def _along(module: nn.Module, dim: int | None) -> Step:
    """A layer along one axis of what an agent sees: softmax."""
    if dim is None:
        raise Unsupported(f"{type(module).__name__} without dim")
    shifted: Any = copy.deepcopy(module)
    shifted.dim = dim + 1 if dim >= 0 else dim
    plain = pure(module)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if mapped and not -h.ndim < dim < h.ndim - 1:
            raise Unsupported(f"no dim {dim} in {h.ndim - 1} axes")
        return (shifted.forward(h) if mapped else plain(h)), mapped

    return step


def _flatten(module: nn.Flatten) -> Step:
    start, end = module.start_dim, module.end_dim

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        ndim = max(h.ndim - mapped, 1)
        if not (-ndim <= start < ndim and -ndim <= end < ndim):
            raise Unsupported(f"no dims {start} to {end} in {h.ndim - mapped} axes")
        if h.ndim == mapped:
            return h.unsqueeze(-1), mapped
        return plain_layout(h, mapped).flatten(start % ndim + mapped, end % ndim + mapped), mapped

    return step


def _unflatten(module: nn.Unflatten) -> Step:
    dim, sizes = module.dim, module.unflattened_size
    if not isinstance(dim, int):
        raise Unsupported("Unflatten of a named axis")

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not mapped - h.ndim <= dim < h.ndim - mapped:
            raise Unsupported(f"no dim {dim} in {h.ndim - mapped} axes")
        return torch.unflatten(h, dim + mapped if dim >= 0 else dim, tuple(sizes)), mapped  # pyright: ignore

    return step


def _dropout(function: Callable[..., Any], module: Any) -> Step:
    p: float = module.p

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not run.train or p == 0.0:
            return h, mapped
        run.site += 1
        return batched_dropout(function, h, p, mapped, run.n_agents, run.key, run.randomness, run.site)

    return step


# --- layers with leaves --------------------------------------------------------------------------------

Rows = Callable[[str], Tensor | None]
# x: [k, B, *row] and the leaves as [k, *leaf] -> [k, B, *row out]
Inner = Callable[[Tensor, Rows, Run], Tensor]


def _lifted(leaves: Leaves, inner: Inner, row_ndim: Callable[[int], int], batch: tuple[int, int] | None = None) -> Step:
    """A layer over rows, for all agents: the axes ahead of a row become one batch axis.

    Where all agents share the layer they are rows too, and ``k`` is 1: behind the batch axes where the caller had
    them there, so that nothing is copied and what comes out is contiguous there. ``row_ndim`` gives the axes of a
    row for the axes that an agent sees; ``batch`` the least and the most batch axes that the layer takes, if not any.
    """

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        seen = h.shape[mapped:]
        cut = len(seen) - row_ndim(len(seen))
        if cut < 0 or (
            batch is not None and not batch[0] <= cut <= batch[1]
        ):  # by size: a tracer finds nothing in them
            raise Unsupported(f"an input of {len(seen)} axes")
        lead, row = seen[:cut], seen[cut:]
        agents = 0  # where the agents are among the leading axes
        if leaves.shared:
            if mapped:
                agents = 0 if h.is_contiguous() else cut
                h, lead = h.movedim(0, agents), (*lead[:agents], run.n_agents, *lead[agents:])
            x = h.reshape(1, math.prod(lead), *row)
        else:
            h, mapped = (h if mapped else h.expand(run.n_agents, *h.shape)), True
            x, lead = h.reshape(run.n_agents, math.prod(lead), *row), (run.n_agents, *lead)
        out = inner(x, lambda attribute: leaves.rows(run, attribute), run)
        out = out.reshape((*lead, *out.shape[2:]))
        return (out.movedim(agents, 0) if agents else out), mapped

    return step


def _affine(x: Tensor, rows: Rows, tail: int) -> Tensor:
    """``x * weight + bias`` with leaves ``[k, *leaf]`` that lie ``tail`` axes from the end of ``x``, in its dtype."""
    out = x
    for attribute, operation in (("weight", torch.mul), ("bias", torch.add)):
        leaf = rows(attribute)
        if leaf is not None:
            lead = x.ndim - tail - leaf.ndim
            out = operation(out, leaf.reshape(leaf.shape[0], *[1] * lead, *leaf.shape[1:], *[1] * tail))
    return out.to(x.dtype)


def _layer_norm(module: nn.LayerNorm, leaves: Leaves) -> Step:
    shape, eps = tuple(module.normalized_shape), module.eps

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if x.shape[0] > 1:
            return _affine(F.layer_norm(x, shape, None, None, eps), rows, 0)
        weight, bias = rows("weight"), rows("bias")
        return F.layer_norm(x, shape, None if weight is None else weight[0], None if bias is None else bias[0], eps)

    return _lifted(leaves, inner, lambda ndim: len(shape))


def _group_norm(module: nn.GroupNorm, leaves: Leaves) -> Step:
    groups, channels, eps = module.num_groups, module.num_channels, module.eps

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if x.ndim < 3 or x.shape[2] != channels:
            raise Unsupported("GroupNorm over other channels")
        out = F.group_norm(x.flatten(0, 1), groups, None, None, eps).reshape(x.shape)
        return _affine(out, rows, x.ndim - 3)

    return _lifted(leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))


_BATCH_NORM_NDIM = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4, 4), nn.BatchNorm3d: (5, 5)}


def _batch_norm(module: Any, leaves: Leaves) -> Step:
    channels, eps, (least, most) = module.num_features, module.eps, _BATCH_NORM_NDIM[type(module)]
    if not module.track_running_stats:
        raise Unsupported("without running statistics")

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if not least <= x.ndim - 1 <= most or x.shape[2] != channels:
            raise Unsupported("BatchNorm over other axes")
        # [k, B, C, ...] -> [B, k * C, ...]: the agents' channels side by side
        flat = [None if row is None else row.flatten() for row in map(rows, ("running_mean", "running_var"))]
        flat += [None if row is None else row.flatten() for row in map(rows, ("weight", "bias"))]
        out = F.batch_norm(channels_together(x), *flat, training=False, eps=eps)
        return channels_apart(out, x.shape[0])

    return _lifted(leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))


CONVOLUTIONS: dict[type[nn.Module], Any] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose2d: F.conv_transpose2d,
}


# A grouped convolution of few agents is faster on channels_last input: 8 agents, batch 32, 16x16 images of 16
# channels, forward 1.1x to 1.8x by machine; of 64 agents it is not. Its backward is slower there, so that forward
# and backward together take 1.2x as long: only where no gradient is recorded.
CHANNELS_LAST_UP_TO = 16


def convolution(module: Any, leaves: Leaves, activations: Sequence[Callable[[Tensor], Tensor]]) -> Step:
    """One grouped convolution, with a group (or as many as the layer has) for each agent; then activations."""
    dims, groups, channels = len(module.kernel_size), module.groups, module.in_channels
    convolve = CONVOLUTIONS[type(module)]
    how = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    if type(module) is nn.ConvTranspose2d:
        how["output_padding"] = module.output_padding
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}")

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if x.shape[2] != channels:
            raise Unsupported("a convolution over other channels")
        k, weight, bias = x.shape[0], rows("weight"), rows("bias")
        assert weight is not None
        flat = None if bias is None else bias.flatten()
        together = channels_together(x)
        if together.ndim == 4 and 1 < k <= CHANNELS_LAST_UP_TO and not torch.is_grad_enabled():
            together = together.contiguous(memory_format=torch.channels_last)
        out = convolve(together, weight.flatten(0, 1), flat, groups=k * groups, **how)
        for act in activations:
            out = act(out)
        return channels_apart(out, k)

    return _lifted(leaves, inner, lambda ndim: dims + 1, batch=(0, 1))


def _embedding(module: nn.Embedding, leaves: Leaves) -> Step:
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq or module.padding_idx is not None:
        raise Unsupported("Embedding with max_norm, sparse, scale_grad_by_freq or padding_idx")

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        table = rows("weight")
        assert table is not None
        if table.shape[0] == 1 or x.dtype not in (torch.int64, torch.int32):
            return F.embedding(x, table[0])
        # Not one long table with offsets: an index out of range would read the next agent's row.
        index = x.long()[..., None].expand(-1, -1, table.shape[2])
        return table.gather(1, index)

    return _lifted(leaves, inner, lambda ndim: 0)


def _prelu(module: nn.PReLU, leaves: Leaves) -> Step:
    one = module.num_parameters == 1

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if not one and (x.ndim < 3 or x.shape[2] != module.num_parameters):
            raise Unsupported("PReLU over other channels")
        weight = rows("weight")
        assert weight is not None
        # [k, B, C, ...] -> [B, k * C, ...]: torch's own operation, so that autocast does with it what it does there
        out = F.prelu(channels_together(x[..., None] if one else x), weight.flatten())
        out = channels_apart(out, x.shape[0])
        return out[..., 0] if one else out

    if one:  # elementwise: any axes, a row is a number
        return _lifted(leaves, inner, lambda ndim: 0)
    return _lifted(leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))


_WITH_LEAVES: dict[type[nn.Module], Callable[[Any, Leaves], Step]] = {
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
}
_ROWWISE: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 2),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 3),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 4),
}
_DROPOUT: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}


# They compute nothing: a plan of these alone would return its input.
PASSING: tuple[type[nn.Module], ...] = (nn.Identity, nn.Flatten, nn.Unflatten, *_DROPOUT)


def lower_layer(module: nn.Module, leaves: Leaves, train: bool) -> Step:
    """The step of a layer that is neither linear nor elementwise, in one of the two modes.

    Raises:
        Unsupported: no rule for this layer.
    """
    kind = type(module)
    if kind in _BATCH_NORM_NDIM and train:
        raise Unsupported("it changes its buffers in training")
    if kind in _WITH_LEAVES:
        return _WITH_LEAVES[kind](module, leaves)
    if kind in _ROWWISE:
        return _rowwise(module, _ROWWISE[kind])
    if kind in _DROPOUT:
        return _dropout(_DROPOUT[kind], module)
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return _flatten(module)
    if isinstance(module, nn.Unflatten) and kind is nn.Unflatten:
        return _unflatten(module)
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)) and kind in (nn.Softmax, nn.LogSoftmax):
        return _along(module, module.dim)
    if kind is nn.Identity:
        return lambda run, h, mapped: (h, mapped)
    raise Unsupported(f"no rule for {kind.__name__}")
