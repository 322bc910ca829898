"""What a forward may do to its module, and what it may not do to its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import FLAT_SHARINGS, N, copied, looped, numbers, same
from tests.module.modules import CustomForward


def _counts(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.linear(x) * self.calls


def _remembers(self: Any, x: Tensor) -> Tensor:
    self.hidden = x if getattr(self, "hidden", None) is None else self.hidden + x
    return self.linear(self.hidden)


def _caches_a_buffer(self: Any, x: Tensor) -> Tensor:
    if not hasattr(self, "cache"):
        self.register_buffer("cache", x.detach() * 2)
    return self.linear(x) + self.cache


def _changes_its_mode(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x) if self.training else self.linear(x) + 1
    self.eval()
    return y


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("forward", [_counts, _remembers, _caches_a_buffer, _changes_its_mode])
def test_what_a_forward_sets_on_its_module_is_forgotten(forward: Any, strategy: Any) -> None:
    net = fm.network(lambda: CustomForward(forward), N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    expected = torch.stack([fm.agent_module(net, params, i).train()(x[:, i]) for i in range(N)], 1)
    for _ in range(3):
        got = fm.apply(net, params, x, train=True)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def _in_place(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.linear.weight.clamp_(-0.01, 0.01)
    return self.linear(x)


def _through_a_view(self: Any, x: Tensor) -> Tensor:
    self.linear.weight.detach()[0].add_(1)
    return self.linear(x)


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("forward", [_in_place, _through_a_view])
def test_a_forward_that_writes_into_its_parameters_is_refused(forward: Any, strategy: Any, sharing: Any) -> None:
    net = fm.network(lambda: CustomForward(forward), N, strategy=strategy, sharing=sharing)
    params = fm.init_params(net, 0)
    before = copied(params)
    for _ in range(2):
        with pytest.raises(fm.StructureError, match=r"writes into \['linear.weight'\] in its forward"):
            fm.apply(net, params, numbers(2, N, 4))
        assert same(params, before)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_embeddings_with_max_norm_are_scaled_in_a_copy(kind: Any, sharing: Any) -> None:
    net = fm.network(lambda: kind(5, 3, max_norm=0.5, dtype=torch.float64), N, agent_dim=0, sharing=sharing)
    params, index = fm.init_params(net, 0), torch.tensor([[[0, 1]], [[2, 2]], [[4, 3]]])
    before = copied(params)
    expected = torch.stack([fm.agent_module(net, params, i)(index[i]) for i in range(N)]).detach()
    assert float(expected.norm(dim=-1).max()) <= 0.5 + 1e-6
    for strategy in ("auto", "loop"):
        for _ in range(2):
            got = fm.apply(net.replace(strategy=strategy), params, index)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert same(params, before)


class FrozenNorm(nn.BatchNorm1d):
    """Stays in evaluation mode whatever it is told, as frozen backbones do."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


def test_train_goes_through_the_modules_own_train() -> None:
    net = fm.network(lambda: nn.Sequential(FrozenNorm(4), nn.Dropout(1.0)), N)
    x = numbers(2, N, 4).float()
    params = fm.init_params(net, 0)
    assert float(fm.apply(net, params, x, train=True).abs().sum()) == 0.0  # and no buffer changed
    torch.testing.assert_close(fm.apply(net, params, x), x / (1 + 1e-5) ** 0.5)


def test_a_network_on_the_meta_device_takes_numbers_from_elsewhere() -> None:
    net = fm.network(lambda: nn.Linear(4, 2, device="meta"), N)
    real = fm.init_params(fm.network(lambda: nn.Linear(4, 2), N), 0)
    x = torch.ones(2, N, 4)
    torch.testing.assert_close(fm.apply(net, real, x), looped(net, real, x).detach())
