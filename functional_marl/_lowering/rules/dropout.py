"""Dropouts: the masks that each agent would sample alone, for all agents at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.steps import PassThrough, Run, Value
from functional_marl._randomness.dropout_masks import batched_dropout

_FUNCTIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}


@lowering_rule(*_FUNCTIONS)
def dropout(module: Any, context: Context) -> PassThrough:
    """In evaluation, or with probability 0, it returns its input."""
    function, p = _FUNCTIONS[type(module)], float(module.p)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if not run.train or p == 0.0:
            return h, mapped
        run.site += 1
        return batched_dropout(function, h, p, mapped, run.n_agents, run.key, run.randomness, run.site)

    return PassThrough(step)
