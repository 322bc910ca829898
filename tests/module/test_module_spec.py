"""Which modules compute as their agents alone: ties, parametrizations, own containers, constants, hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import FLAT_SHARINGS, N, double, looped, numbers
from tests.module.modules import Bare, CustomForward, TiedModules, TiedWeights

Build = Callable[[], nn.Module]
PARAMETRIZATIONS = nn.utils.parametrizations


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize(
    "build",
    [
        double(TiedWeights),
        TiedModules,
        Bare,
        partial(nn.Linear, 4, 3, bias=False, dtype=torch.float64),
        double(lambda: PARAMETRIZATIONS.weight_norm(nn.Linear(4, 4))),
        double(lambda: PARAMETRIZATIONS.spectral_norm(nn.Linear(4, 4))),
        double(lambda: PARAMETRIZATIONS.orthogonal(nn.Linear(4, 4))),
        double(lambda: nn.utils.spectral_norm(nn.Linear(4, 4))),
        double(lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(), nn.Identity())),
    ],
    ids=["tied", "tied modules", "bare", "partial", "weight_norm", "spectral_norm", "orthogonal", "old", "empty"],
)
def test_every_kind_of_module_computes_as_its_agents_alone(build: Build, strategy: Any, sharing: Any) -> None:
    net = fm.network(build, N, sharing=sharing, strategy=strategy)
    params, state, x = fm.init_params(net, 0), fm.init_state(net, 0), numbers(5, N, 4)
    got = fm.apply(net, params, x, state=state)
    torch.testing.assert_close(got, looped(net, params, x, state=state), rtol=1e-12, atol=1e-12)


# --- plain attributes and buffers ----------------------------------------------------------------------


def _twice(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def test_constant_tensors_hooks_and_odd_attributes_are_kept() -> None:
    def build() -> nn.Module:
        module = CustomForward(
            lambda self, x: self.linear(x) * self.constant + len(self.words), constant=torch.arange(4.0)
        )
        module.words = ["a", {"b": (1, None)}]  # pyright: ignore
        module.linear.register_forward_hook(_twice)
        return module.double()

    net = fm.network(build, N)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    expected = looped(net, params, x)
    torch.testing.assert_close(fm.apply(net, params, x), expected, rtol=1e-12, atol=1e-12)
    weight, bias = params["linear.weight"], params["linear.bias"]
    by_hand = torch.stack([(x[:, i] @ weight[i].T + bias[i]) * 2 * torch.arange(4.0) + 2 for i in range(N)], 1)
    torch.testing.assert_close(expected, by_hand, rtol=1e-12, atol=1e-12)
