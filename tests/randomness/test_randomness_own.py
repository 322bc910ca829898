"""Modules that draw by themselves: "same", "different" and "error" in every way of evaluating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._randomness.dropout_masks import DROPOUTS
from functional_marl.nn import MultiAgentMLP
from tests.builders import FLAT_SHARINGS, N, generators_untouched, numbers

STRATEGIES: list[Any] = ["auto", "loop", "vmap"]
SHARED = torch.Generator()  # one that lives outside of the module


class Noise(nn.Module):
    """A linear layer, and noise that a function draws."""

    def __init__(self, draw: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.generator = torch.Generator().manual_seed(1)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.draw(self, x)


DRAWS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "its own generator": lambda module, x: torch.randn(x.shape, generator=module.generator),
    "its own, twice": lambda module, x: (
        torch.rand(2, generator=module.generator).sum() * torch.rand(x.shape, generator=module.generator)
    ),
    "one outside": lambda module, x: torch.randn(x.shape, generator=SHARED),
    "the global one, given": lambda module, x: torch.randn(x.shape, generator=torch.default_generator),
    "all of them": lambda module, x: (
        torch.randn(x.shape, generator=module.generator)
        * torch.randn(x.shape, generator=SHARED)
        * torch.randn(x.shape, generator=torch.default_generator)
        * torch.randn_like(x)
    ),
    "the global one": lambda module, x: torch.randn_like(x),
    "an operation without a name of its own": lambda module, x: torch.ops.aten.randn([4]) * x,
}


def drawn(net: fm.Network, calls: int = 3) -> list[Tensor]:
    """Outputs ``[B, n, F]`` of agents that have equal parameters and see equal inputs."""
    params = {name: leaf[:1].expand(leaf.shape).clone() for name, leaf in fm.init_params(net, 0).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [fm.apply(net, params, torch.ones(5, N, 4), train=True) for _ in range(calls)]


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", DRAWS)
def test_same_and_different_hold_for_whatever_a_module_draws_from(name: str, strategy: Any, sharing: Any) -> None:
    net = fm.network(lambda: Noise(DRAWS[name]), N, sharing=sharing, strategy=strategy)
    for y in drawn(net.replace(randomness="same")):
        assert torch.equal(y, y[:, :1].expand_as(y))
    different = drawn(net)
    for y in different:
        assert not any(torch.allclose(y[:, i], y[:, j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert not torch.allclose(different[0], different[1])  # each call draws anew


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", DRAWS)
def test_error_and_keys_refuse_and_name_whatever_a_module_draws_from(name: str, strategy: Any) -> None:
    net = fm.network(lambda: Noise(DRAWS[name]), N, strategy=strategy)
    params, x = fm.init_params(net, 0), torch.ones(5, N, 4)
    before = SHARED.get_state()
    with generators_untouched():
        for _ in range(3):
            with pytest.raises(fm.RandomnessError, match=r"random operation aten.rand.*\"same\" or \"different\""):
                fm.apply(net.replace(randomness="error"), params, x, train=True)
            for randomness in ("error", "same", "different"):
                with pytest.raises(fm.RandomnessError, match=r"random operation \S*rand.*the key"):
                    fm.apply(net.replace(randomness=randomness), params, x, key=0, train=True)
    assert torch.equal(SHARED.get_state(), before)


class Quiet(nn.Module):
    """A layer that draws nothing and that vmap cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize("randomness", ["error", "different"])
def test_errors_that_are_not_about_draws_stay_as_they_are(randomness: Any) -> None:
    net = fm.network(Quiet, N, strategy="vmap", randomness=randomness)
    with pytest.raises(RuntimeError, match=r"vmap.*item") as caught:
        fm.apply(net, {}, torch.ones(5, N, 4))
    assert not isinstance(caught.value, fm.RandomnessError)


def test_the_facade_names_what_draws_too() -> None:
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


# --- dropouts that draw nothing ------------------------------------------------------------------------

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
def test_under_error_a_dropout_that_draws_nothing_passes(shape: tuple[int, ...], kind: Any) -> None:
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
