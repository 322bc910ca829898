"""``randomness=`` "same", "different" and "error" of modules that sample by themselves, under every strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl.nn import MultiAgentMLP
from tests.builders import FLAT_SHARINGS, N, generators_untouched

STRATEGIES: list[Any] = ["auto", "loop", "vmap"]
OUTSIDE = torch.Generator()  # does not belong to the module


class Noise(nn.Module):
    """A linear layer, plus noise that a function samples."""

    def __init__(self, sample: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.generator = torch.Generator().manual_seed(1)
        self.sample = sample

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.sample(self, x)


SAMPLES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "its own generator": lambda module, x: torch.randn(x.shape, generator=module.generator),
    "its own, twice": lambda module, x: (
        torch.rand(2, generator=module.generator).sum() * torch.rand(x.shape, generator=module.generator)
    ),
    "a generator outside": lambda module, x: torch.randn(x.shape, generator=OUTSIDE),
    "the global generator, as an argument": lambda module, x: torch.randn(x.shape, generator=torch.default_generator),
    "all generators": lambda module, x: (
        torch.randn(x.shape, generator=module.generator)
        * torch.randn(x.shape, generator=OUTSIDE)
        * torch.randn(x.shape, generator=torch.default_generator)
        * torch.randn_like(x)
    ),
    "the global generator": lambda module, x: torch.randn_like(x),
    "an operation that is no function of torch": lambda module, x: torch.ops.aten.randn([4]) * x,
}


def outputs(net: fm.Network, calls: int = 3) -> list[Tensor]:
    """Outputs ``[B, n, F]`` of agents with equal parameters and equal inputs."""
    params = {name: leaf[:1].expand(leaf.shape).clone() for name, leaf in fm.init_params(net, 0).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [fm.apply(net, params, torch.ones(5, N, 4), train=True) for _ in range(calls)]


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SAMPLES)
def test_same_and_different_hold_for_every_generator(name: str, strategy: Any, sharing: Any) -> None:
    net = fm.network(lambda: Noise(SAMPLES[name]), N, sharing=sharing, strategy=strategy)
    for y in outputs(net.replace(randomness="same")):
        assert torch.equal(y, y[:, :1].expand_as(y))
    different = outputs(net)
    for y in different:
        assert not any(torch.allclose(y[:, i], y[:, j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert not torch.allclose(different[0], different[1])  # each call samples new numbers


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SAMPLES)
def test_error_and_keys_raise_for_every_generator(name: str, strategy: Any) -> None:
    net = fm.network(lambda: Noise(SAMPLES[name]), N, strategy=strategy)
    params, x = fm.init_params(net, 0), torch.ones(5, N, 4)
    before = OUTSIDE.get_state()
    with generators_untouched():
        for _ in range(3):
            with pytest.raises(fm.RandomnessError, match=r"random operation aten.rand.*\"same\" or \"different\""):
                fm.apply(net.replace(randomness="error"), params, x, train=True)
            for randomness in ("error", "same", "different"):
                with pytest.raises(fm.RandomnessError, match=r"random operation \S*rand.*the key"):
                    fm.apply(net.replace(randomness=randomness), params, x, key=0, train=True)
    assert torch.equal(OUTSIDE.get_state(), before)


class Quiet(nn.Module):
    """A layer that samples nothing and that vmap cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize("randomness", ["error", "different"])
def test_other_errors_stay_as_they_are(randomness: Any) -> None:
    net = fm.network(Quiet, N, strategy="vmap", randomness=randomness)
    with pytest.raises(RuntimeError, match=r"vmap.*item") as caught:
        fm.apply(net, {}, torch.ones(5, N, 4))
    assert not isinstance(caught.value, fm.RandomnessError)


def test_the_facade_names_the_random_operation_too() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + torch.randn(self.out_features)

    for share in (True, False):
        with torch.random.fork_rng(devices=[]):
            team = MultiAgentMLP(
                4, 2, N, centralized=False, share_params=share, layer_class=Noisy, depth=0, vmap_randomness="error"
            )
        with generators_untouched(), pytest.raises(fm.RandomnessError, match=r"random operation aten\.randn\.default"):
            team(torch.ones(5, N, 4))
