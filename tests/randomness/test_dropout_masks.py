"""A dropout under ``randomness="error"`` raises only where it samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._randomness.dropout_masks import DROPOUTS
from tests.builders import N, generators_untouched, numbers

STRATEGIES: list[Any] = ["auto", "loop", "vmap"]
BATCHES = {"numbers": (6, 5), "no batch": (0, 5), "no features": (6, 5, 0)}
AXES: dict[Any, int] = {F.dropout1d: 3, nn.Dropout1d: 3, F.dropout3d: 5, nn.Dropout3d: 5}  # the others: 4
LAYERS: list[Any] = [nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout]


class Drops(nn.Module):
    def __init__(self, function: Callable[..., Tensor], p: float) -> None:
        super().__init__()
        self.function, self.p = function, p

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p, self.training) + 0


@pytest.mark.parametrize("kind", [*LAYERS, *DROPOUTS], ids=lambda kind: getattr(kind, "__name__", str(kind)))
@pytest.mark.parametrize("shape", BATCHES.values(), ids=BATCHES)
def test_under_error_a_dropout_that_samples_nothing_passes(shape: tuple[int, ...], kind: Any) -> None:
    x = numbers(N, *shape, *[2] * (AXES.get(kind, 4) - len(shape)))
    for p in (0.0, 1.0) if x.numel() else (0.0, 0.25, 1.0):
        build = lambda: nn.Sequential(kind(p), nn.Tanh()) if kind in LAYERS else Drops(kind, p)  # noqa: B023
        expected = torch.stack([build().train()(one) for one in x])
        strategies: list[Any] = [*STRATEGIES, *(["plan"] if kind in LAYERS else [])]
        for strategy in strategies:
            net = fm.network(build, N, agent_dim=0, randomness="error", strategy=strategy)
            with generators_untouched():
                for key in (None, None, None, 0):
                    torch.testing.assert_close(fm.apply(net, {}, x, key=key, train=True), expected, rtol=0, atol=0)
