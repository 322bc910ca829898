"""Linear layers, and products with the agents' own weights for the rules of other layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from functional_marl._gather_slots import gather_slots
from functional_marl._lowering.expected_leaves import ExpectedLeaves, weight_and_bias
from functional_marl._lowering.fusion import LinearRun
from functional_marl._lowering.linear_kernels import Affine
from functional_marl._lowering.registry import Context, batching_rule, lowering_rule
from functional_marl._lowering.steps import Leaves, Run, Step, Value
from functional_marl._sharing import Sharing

__all__ = ["linear_of", "linear_rows"]


def _leaves(module: nn.Linear) -> ExpectedLeaves:
    return weight_and_bias(module.out_features, module.in_features, bias=module.out_features)


@lowering_rule(nn.Linear, NonDynamicallyQuantizableLinear, leaves=_leaves)
def lower_linear(module: nn.Linear, context: Context) -> Affine | Step:
    """A linear layer. If weight and bias have different slot maps, every agent gets its own copy of both."""
    names, slots = context.leaves.names, context.leaves.slots
    weight, bias = names["weight"], names.get("bias")
    if bias is None or slots["bias"] == slots["weight"]:
        return Affine(weight, bias, slots["weight"])
    independent = Sharing.independent(context.n_agents)
    inner = LinearRun((Affine(weight, bias, independent),), independent)
    sharing = {weight: slots["weight"], bias: slots["bias"]}

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        own = {name: gather_slots(run.params[name], slot_map) for name, slot_map in sharing.items()}
        return inner(replace(run, params=own), h, mapped)

    return step


def linear_of(run: Run, leaves: Leaves, weight: str, bias: str) -> Callable[[Tensor], Tensor]:
    """``[n, ..., F] -> [n, ..., F_out]`` with every agent's weight; one product if all agents share it."""
    w = leaves.rows(run, weight)
    assert w is not None
    return linear_rows(w, leaves.rows(run, bias))


def linear_rows(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``[n, ..., F] -> [n, ..., F_out]`` with weights ``[k, out, in]``, where ``k`` is ``n`` or 1."""
    w, b = weight.mT, None if bias is None else bias.unsqueeze(1)

    def product(h: Tensor) -> Tensor:
        x = h.reshape(w.shape[0], -1, h.shape[-1]) if h.numel() else h.reshape(w.shape[0], 0, h.shape[-1])
        out = torch.bmm(x, w) if b is None else torch.baddbmm(b, x, w)
        return out.reshape(*h.shape[:-1], out.shape[-1])

    return product


@batching_rule(linear, autocast=True)
def linear_under_autocast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Under autocast vmap leaves a product with a bias in float32, and casts one without."""
    out = linear(x, weight)
    return out if bias is None else out + bias.to(out.dtype)
