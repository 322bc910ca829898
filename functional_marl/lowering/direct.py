"""The commonest call with nothing in its way: one run of linear layers on one tensor ``[B, n, F]``.

At 3 agents, width 64 and batch 1 the products cost 18 us and everything around them counts. This is the
plan's own arithmetic with all decisions taken ahead: it answers None to any call that it was not made
for, and the general way then answers or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl.lowering.dense import CHUNK_ABOVE, Affine, product, traced
from functional_marl.sharing import Sharing

__all__ = ["Direct"]

_Layer = tuple[str, tuple[int, ...], str | None, tuple[int, ...], tuple[Callable[[Tensor], Tensor], ...]]


class Direct:
    """A run of linear layers, shared by all agents or by none, over ``x: [B, n, F] -> [B, n, F_out]``."""

    def __init__(self, layers: Sequence[Affine], shapes: dict[str, tuple[int, ...]], sharing: Sharing) -> None:
        self.layers: list[_Layer] = [
            (a.weight, shapes[a.weight], a.bias, shapes[a.bias] if a.bias else (), a.activations) for a in layers
        ]
        self.count = len(shapes)
        self.n_agents = sharing.n_agents
        self.features = shapes[layers[0].weight][2]
        self.shared = sharing.is_shared
        widest = max(shapes[a.weight][1] for a in layers)
        self.most = CHUNK_ABOVE // (8 * widest)  # rows that need no chunks, also in float64

    def __call__(self, params: Mapping[str, Any], x: Tensor) -> Tensor | None:
        """The output, or None where the call is not of this kind or does not fit."""
        if len(params) != self.count or x.dim() != 3:
            return None
        batch, n, features = x.shape
        tracing = torch.compiler.is_dynamo_compiling()
        if n != self.n_agents or features != self.features:
            return None
        if not tracing and (isinstance(batch, torch.SymInt) or batch * n > self.most):
            return None
        weights: list[tuple[Tensor, Tensor | None, tuple[Callable[[Tensor], Tensor], ...]]] = []
        for name, shape, bias_name, bias_shape, activations in self.layers:
            weight: Any = params.get(name)
            bias: Any = None if bias_name is None else params.get(bias_name)
            if not isinstance(weight, Tensor) or weight.shape != shape:
                return None
            if bias_name is not None and (not isinstance(bias, Tensor) or bias.shape != bias_shape):
                return None
            weights.append((weight, bias, activations))
        if weights[0][0].dtype is not x.dtype:  # the loop's error is the plainer one
            return None
        run = traced if tracing else product
        if self.shared:  # agents are rows like others
            if batch == 1 and not tracing:  # they stand so already, and two views cost a tenth of the call
                return run(weights, x)
            return run(weights, x.reshape(1, batch * n, features)).reshape(batch, n, -1)
        return run(weights, x.transpose(0, 1)).transpose(0, 1)
