"""One layer over rows, for all agents at once: the layouts that convolutions, normalizations and embeddings share."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from functional_marl._errors import Unsupported
from functional_marl._lowering.steps import Leaves, Run, Step, Value

__all__ = ["Rows", "channels_apart", "channels_together", "over_rows", "plain_layout"]

# The name of a leaf -> [k, *leaf], or None
Rows = Callable[[str], Tensor | None]
# x: [k, B, *row] and the leaves [k, *leaf] -> [k, B, *row out]
Inner = Callable[[Tensor, Rows, Run], Tensor]


def over_rows(
    leaves: Leaves, inner: Inner, row_ndim: Callable[[int], int], batch: tuple[int, int] | None = None
) -> Step:
    """The step of a layer over rows: all axes ahead of a row become one batch axis.

    ``inner`` computes ``x: [k, B, *row]``. If all agents share the layer, ``k`` is 1 and agents are part of the batch.
    They stay behind the batch axes if the caller has them there: nothing is copied, and the output is contiguous in
    the caller's layout.

    Args:
        leaves: the leaves of the layer.
        inner: the layer on ``[k, B, *row]``.
        row_ndim: the number of axes that an agent sees -> the number of axes of a row.
        batch: the least and the largest number of batch axes that the layer takes; None for any number.
    """

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        seen = h.shape[mapped:]
        cut = len(seen) - row_ndim(len(seen))
        if cut < 0 or (batch is not None and not batch[0] <= cut <= batch[1]):  # a tracer cannot do "in" on sizes
            raise Unsupported(f"an input of {len(seen)} axes")
        lead, row = seen[:cut], seen[cut:]
        agents = 0  # the position of the agents among the leading axes
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


def channels_together(x: Tensor) -> Tensor:
    """``[k, B, C, ...] -> [B, k * C, ...]``: the agents' channels side by side."""
    return x[0] if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)


def channels_apart(x: Tensor, k: int) -> Tensor:
    """``[B, k * C, ...] -> [k, B, C, ...]``."""
    return x[None] if k == 1 else x.unflatten(1, (k, -1)).transpose(0, 1)


def plain_layout(h: Tensor, mapped: bool) -> Tensor:
    """Images ``[n, B, C, H, W]`` in torch's default memory layout, so that ``.view`` works as on the loop's output.

    Inside, a plan may use channels_last.
    """
    if mapped and h.ndim == 5 and h.stride(-1) != 1:
        return channels_apart(channels_together(h).contiguous(), h.shape[0])
    return h
