"""Modules of one agent that several tests of ``_module`` use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class CustomForward(nn.Module):
    """A linear layer whose forward a test supplies."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.function = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class TiedWeights(nn.Module):
    """Encoder and decoder share one weight; the decoder stands first in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class TiedModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.steps = nn.ModuleList([norm, nn.Linear(4, 4, dtype=torch.float64), norm])

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Bare(nn.Module):
    """Parameters without any reset, in every container torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.several = nn.ParameterList([torch.randn(4, dtype=torch.float64) for _ in range(2)])
        self.named = nn.ParameterDict({"a[0]": torch.randn(4, dtype=torch.float64), "a0": torch.ones(4)})
        self.register_parameter("absent", None)
        self.frozen = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.several[0] * self.several[1] + self.named["a[0]"] * self.named["a0"] + self.frozen


class Weight(nn.Module):
    """One linear layer; a test says what the forward does before."""

    def __init__(self, change: Callable[[nn.Linear, Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self.linear, x)
        return self.linear(x)


def averaged(old: Tensor, new: Tensor) -> None:
    """The moving average of lucidrains' VQ-VAEs, by a helper."""
    old.data.mul_(0.9).add_(new, alpha=0.1)


class Codes(nn.Module):
    """A moving average in a buffer, updated through ``.data``."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.training:
            averaged(self.mean, h.detach().mean(0))
            self.count.data += x.shape[0]
        return h - self.mean
