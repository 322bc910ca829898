"""The same call again and again, of modules without a plan: nothing is remembered that does not hold."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import functional_marl as fm

N = 3


class Drops(nn.Module):
    """Dropout, and a second output or a draw at larger batches, as a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = nn.functional.dropout(self.linear(x), 0.5, self.training)
        return y, y.sum(-1)


class DrawsForMany(Drops):
    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return y if len(x) < 3 else y + torch.rand_like(y)


def numbers(net: fm.Network, x: Tensor, times: int) -> list[Tensor]:
    params, out = fm.init_params(net, 0), list[Tensor]()
    for _ in range(times):
        torch.manual_seed(0)
        y = fm.apply(net, params, x, train=True)
        out.append(y[0] if isinstance(y, tuple) else y)
    return out


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("build", [Drops, DrawsForMany])
def test_a_seed_means_the_same_at_every_call(build: Any, strategy: Any) -> None:
    with torch.random.fork_rng():
        first, *others = numbers(fm.network(build, N, strategy=strategy), torch.ones(5, N, 4), 4)
        assert all(torch.equal(first, other) for other in others)


def test_what_draws_is_seen_for_every_kind_of_input() -> None:
    """Where vmap fails after a draw, the draw is given back, also when smaller inputs have drawn nothing."""

    class Late(DrawsForMany):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y if len(x) < 3 or y.sum() > -1e9 else -y  # a branch on numbers, which vmap refuses

    warm, fresh = fm.network(Late, N), fm.network(Late, N)
    with torch.random.fork_rng():
        for _ in range(3):
            numbers(warm, torch.ones(2, N, 4), 1)
        assert torch.equal(numbers(warm, torch.ones(5, N, 4), 1)[0], numbers(fresh, torch.ones(5, N, 4), 1)[0])


def test_fake_tensors_at_every_call() -> None:
    net = fm.network(DrawsForMany, N)
    params = fm.init_params(net, 0)
    fm.apply(net, params, torch.ones(5, N, 4))
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(p) for k, p in params.items()}
        for _ in range(3):
            assert fm.apply(net, fake, torch.ones(2, N, 4)).shape == (2, N, 4)


class Around(nn.Module):
    """A module of two inputs inside one without a plan."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y)


@pytest.mark.parametrize("build", [lambda: nn.GRUCell(4, 6), lambda: nn.RNNCell(4, 6), lambda: nn.Bilinear(4, 6, 2)])
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
def test_inputs_of_two_batches_are_refused_as_torch_refuses_them(build: Any, strategy: Any) -> None:
    net = fm.network(lambda: Around(build()), N, agent_dim=1, strategy=strategy)
    params = fm.init_params(net, 0)
    assert fm.apply(net, params, torch.ones(5, N, 4), torch.ones(5, N, 6)).shape[:2] == (5, N)
    with pytest.raises(RuntimeError):
        fm.apply(net, params, torch.ones(5, N, 4), torch.ones(1, N, 6))


def test_a_network_is_gone_when_nobody_holds_it() -> None:
    net = fm.network(DrawsForMany, N)
    numbers(net, torch.ones(2, N, 4), 3)
    gone = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert gone() is None
    finally:
        gc.enable()
