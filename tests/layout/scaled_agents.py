"""Agents that each have a scale: the modules of the tests in this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, Tensors


class Agent(nn.Module):
    """Holds one agent's scale and calls a function of the scale and the inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.scale, *args, **kwargs)


class Observation(NamedTuple):
    pixels: Any
    features: Any


SCALES = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
PARAMS: Tensors = {"scale": SCALES}


def call(function: Callable[..., Any], *inputs: Any, kwargs: Any = None, **settings: Any) -> Any:
    """Apply a network of three agents, each with its scale, to the inputs."""
    return fm.apply(fm.network(lambda: Agent(function), N, **settings), PARAMS, *inputs, kwargs=kwargs)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
