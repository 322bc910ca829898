"""Softmax and its logarithm, along one axis."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rules.activation import function_of
from functional_marl._lowering.steps import Run, Step, Value


@lowering_rule(nn.Softmax, nn.LogSoftmax)
def softmax(module: nn.Softmax | nn.LogSoftmax, context: Context) -> Step:
    """Along one axis of what an agent sees."""
    dim = module.dim
    if dim is None:
        raise Unsupported(f"{type(module).__name__} without dim")
    shifted: Any = copy.deepcopy(module)
    shifted.dim = dim + 1 if dim >= 0 else dim
    plain = function_of(module)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if mapped and not -h.ndim < dim < h.ndim - 1:
            raise Unsupported(f"no dim {dim} in {h.ndim - 1} axes")
        return (shifted.forward(h) if mapped else plain(h)), mapped

    return step
