"""The fast path of the plan: one run of linear layers on one tensor, ``[*B, n, F] -> [*B, n, F_out]``.

At 3 agents, width 64 and batch 1 the products take most of 17 us, so that every check around them counts. Here all
decisions that depend on the network alone are taken when it is made. A call that does not fit gets None; the plan's
general path then evaluates it, or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from functional_marl._lowering import Plan
from functional_marl._lowering.linear_kernels import CHUNK_ABOVE, FEATURE_MAJOR_FROM, Affine, one, product, traced
from functional_marl._network_settings import NetworkSettings
from functional_marl._sharing import Sharing
from functional_marl._torch_compat import GLOBAL_HOOKS

__all__ = ["PlanFastPath"]

_PRE, _POST, _BACKWARD_PRE, _BACKWARD = GLOBAL_HOOKS

_Layer = tuple[str, tuple[int, ...], str | None, tuple[int, ...], tuple[Callable[[Tensor], Tensor], ...]]


class PlanFastPath:
    """A run of linear layers: shared by all agents over ``[*B, n, F]``, or by none over ``[B, n, F]``."""

    def __init__(self, layers: Sequence[Affine], shapes: dict[str, tuple[int, ...]], sharing: Sharing) -> None:
        self.layers: list[_Layer] = [
            (a.weight, shapes[a.weight], a.bias, shapes[a.bias] if a.bias else (), a.activations) for a in layers
        ]
        self.count = len(shapes)
        self.n_agents = sharing.n_agents
        self.features = shapes[layers[0].weight][2]
        self.shared = sharing.is_shared
        widest = max(shapes[a.weight][1] for a in layers)
        self.outputs = shapes[layers[-1].weight][1]
        self.most = CHUNK_ABOVE // (8 * max(1, widest))  # rows that need no chunks, also in float64

    @staticmethod
    def of(net: NetworkSettings, plan: Plan) -> PlanFastPath | None:
        """None for another layout or sharing, or if a leaf is in no layer: nothing here would check its shape."""
        run = plan.linear_run
        if run is None or net.agent_dim != -2 or net.out_agent_dim is not None or net.centralized:
            return None
        layers, sharing = run.layers, run.sharing
        used = {name for a in layers for name in (a.weight, a.bias) if name is not None}
        if used != net.param_shapes.keys() or not (sharing.is_shared or sharing.is_independent):
            return None
        return PlanFastPath(layers, net.param_shapes, sharing)

    def __call__(self, params: Mapping[str, Any], x: Tensor) -> Tensor | None:
        """The output, or None where the call does not fit."""
        if len(params) != self.count or x.is_meta or _PRE or _POST or _BACKWARD_PRE or _BACKWARD:
            return None
        shape, n, shared, tracing = x.shape, self.n_agents, self.shared, is_dynamo_compiling()
        if len(shape) == 3:
            rows = shape[0] * n
        elif shared and len(shape) > 1:
            rows = FEATURE_MAJOR_FROM  # not three axes: one() counts the rows itself
        else:
            return None
        if shape[-2] != n or shape[-1] != self.features:
            return None
        known = type(rows) is int and not tracing
        if not (shared or tracing) and (not known or rows > self.most):
            return None
        weights: list[tuple[Tensor, Tensor | None, tuple[Callable[[Tensor], Tensor], ...]]] = []
        try:
            for name, weight_shape, bias_name, bias_shape, activations in self.layers:
                weight: Any = params[name]
                bias: Any = None
                if not isinstance(weight, Tensor) or weight.shape != weight_shape or weight.is_meta:
                    return None
                if bias_name is not None:
                    bias = params[bias_name]
                    if not isinstance(bias, Tensor) or bias.shape != bias_shape or bias.is_meta:
                        return None
                weights.append((weight, bias, activations))
        except KeyError:
            return None
        if weights[0][0].dtype is not x.dtype:  # the loop's error is the clearer one
            return None
        if not shared:
            return (traced if tracing else product)(weights, x.transpose(0, 1)).transpose(0, 1)
        # Agents are rows like any other. One batch of a few agents has the layout already: two views cost a tenth.
        if not known or rows >= FEATURE_MAJOR_FROM:
            return one(weights, x)
        if rows == n:
            return product(weights, x)
        return product(weights, x.reshape(1, rows, self.features)).reshape(shape[0], n, self.outputs)
