"""Activations: elementwise layers, in place where nothing else holds their input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rows import Rows, channels_apart, channels_together, over_rows
from functional_marl._lowering.steps import Pointwise, Run, Step

__all__ = ["function_of"]


def function_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward of a copy of a layer without leaves. It never writes over its input."""
    own: Any = copy.deepcopy(module)
    if getattr(own, "inplace", False):
        own.inplace = False
    return own.forward


@lowering_rule(
    *(nn.CELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid),
    *(nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold),
)
def elementwise(module: nn.Module, context: Context) -> Pointwise:
    """Activations without an operation in place that autograd allows."""
    return Pointwise(function_of(module))


@lowering_rule(nn.Tanh)
def tanh(module: nn.Tanh, context: Context) -> Pointwise:
    """Its backward needs its output alone."""
    return Pointwise(torch.tanh, torch.tanh_)


@lowering_rule(nn.ReLU)
def relu(module: nn.ReLU, context: Context) -> Pointwise:
    """Its backward needs its output alone."""
    return Pointwise(torch.relu, torch.relu_)


@lowering_rule(nn.Sigmoid)
def sigmoid(module: nn.Sigmoid, context: Context) -> Pointwise:
    """Its backward needs its output alone."""
    return Pointwise(torch.sigmoid, torch.sigmoid_)


@lowering_rule(nn.ELU)
def elu(module: nn.ELU, context: Context) -> Pointwise:
    """With a negative ``alpha`` its backward needs its input, which must then stay unchanged."""
    in_place = partial(F.elu, alpha=module.alpha, inplace=True) if module.alpha >= 0 else None
    return Pointwise(partial(F.elu, alpha=module.alpha), in_place)


@lowering_rule(nn.PReLU, leaves=lambda module: ExpectedLeaves({"weight": (module.num_parameters,)}))
def prelu(module: nn.PReLU, context: Context) -> Step:
    """One slope, or one for each channel."""
    one = module.num_parameters == 1

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        if not one and (x.ndim < 3 or x.shape[2] != module.num_parameters):
            raise Unsupported("PReLU over other channels")
        weight = rows("weight")
        assert weight is not None
        # [k, B, C, ...] -> [B, k * C, ...]: torch's own operation, so that autocast treats it as in the module
        out = F.prelu(channels_together(x[..., None] if one else x), weight.flatten())
        out = channels_apart(out, x.shape[0])
        return out[..., 0] if one else out

    if one:  # elementwise: a row is a number
        return over_rows(context.leaves, inner, lambda ndim: 0)
    return over_rows(context.leaves, inner, lambda ndim: ndim - 1, batch=(1, 1))
