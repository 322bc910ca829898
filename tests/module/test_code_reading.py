"""What a forward may write into, as its code shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl._module.code_reading import Writes, read_code
from tests.module.modules import Codes, Weight


def _in_place(linear: nn.Linear, x: Tensor) -> None:
    if x.shape[0] > 5:
        with torch.no_grad():
            linear.weight.mul_(0.5)


def _by_data(linear: nn.Linear, x: Tensor) -> None:
    linear.weight.data.clamp_(-0.01, 0.01)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class Residual(nn.Module):
    """Writes in place, and names no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y += x
        y[..., 0] = 0
        return y.relu_()


class ByProperty(Plain):
    @property
    def clamped(self) -> Tensor:
        self.scale.data.clamp_(0, 1)
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.clamped


@pytest.mark.parametrize(
    ("build", "writes"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(True)), Writes.NEVER),
        (lambda: nn.TransformerEncoderLayer(4, 2), Writes.NEVER),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), Writes.NEVER),
        (Plain, Writes.NEVER),
        (Residual, Writes.NEVER),
        (lambda: Weight(_in_place), Writes.COUNTED),
        (lambda: Weight(_by_data), Writes.UNCOUNTED),
        (Codes, Writes.UNCOUNTED),
        (ByProperty, Writes.UNCOUNTED),
    ],
)
def test_what_code_shows(build: Any, writes: Writes) -> None:
    assert read_code(build()).writes is writes


def test_a_hook_is_code_too() -> None:
    module = Plain()
    module.register_forward_pre_hook(lambda module, args: module.scale.data.clamp_(0, 1))  # pyright: ignore
    assert read_code(module).writes is Writes.UNCOUNTED
