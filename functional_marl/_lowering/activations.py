"""Elementwise layers as functions: in place where nobody else holds what they write over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ELEMENTWISE", "activation", "pure"]

# Written in place behind a product, whose result nobody else holds; autograd allows it for these.
IN_PLACE: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.Tanh: lambda module: torch.tanh_,
    nn.ReLU: lambda module: torch.relu_,
    nn.Sigmoid: lambda module: torch.sigmoid_,
    nn.ELU: lambda module: partial(F.elu, alpha=module.alpha, inplace=True),
}
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *IN_PLACE,
    nn.CELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Threshold,
)


def pure(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """An own copy of a layer without parameters; it must not write into what it is given."""
    own: Any = copy.deepcopy(module)
    if getattr(own, "inplace", False):
        own.inplace = False
    return own.forward


def activation(module: nn.Module, fresh: bool) -> Callable[[Tensor], Tensor]:
    """The function of an elementwise layer; ``fresh``: it may write over its input."""
    kind = type(module)
    if isinstance(module, nn.ELU) and module.alpha < 0:  # its backward needs the input
        fresh = False
    return IN_PLACE[kind](module) if fresh and kind in IN_PLACE else pure(module)
