"""The loop under a tracer that records random operations: a call that samples nothing is traced, others raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import functional_marl as fm
from tests.builders import N, mlp, numbers


def noisy() -> nn.Module:
    return nn.Sequential(mlp(), nn.Dropout(0.5))


def network(randomness: Any) -> fm.Network:
    return fm.network(noisy, N, strategy="loop", randomness=randomness)


@pytest.mark.parametrize("randomness", ["same", "different", "error"])
def test_a_loop_that_draws_nothing_is_traced(randomness: Any) -> None:
    net = network(randomness)
    params = fm.init_params(net, 0)
    graph = make_fx(lambda x: fm.apply(net, params, x))(numbers(5, N, 4))
    other = numbers(5, N, 4, seed=1)
    assert torch.equal(graph(other), fm.apply(net, params, other))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_a_traced_loop_may_draw_under_a_key(randomness: Any) -> None:
    net = network(randomness)
    params, key = fm.init_params(net, 0), fm.key(3)
    graph = make_fx(lambda x: fm.apply(net, params, x, key=key, train=True))(numbers(5, N, 4))
    other = numbers(5, N, 4, seed=1)
    assert torch.equal(graph(other), fm.apply(net, params, other, key=key, train=True))


def test_a_traced_loop_may_draw_apart() -> None:
    net = network("different")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with torch.random.fork_rng(devices=[]):
        graph = make_fx(lambda x: fm.apply(net, params, x, train=True))(x)
        drawn: list[Tensor] = []
        for function in (graph, lambda x: fm.apply(net, params, x, train=True)):
            torch.manual_seed(0)
            drawn.append(function(x))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0][:, 0] == 0, drawn[0][:, 1] == 0)


@pytest.mark.parametrize(
    ("randomness", "message"),
    [
        ("same", 'randomness="same": a traced loop over agents cannot sample the same .*; give apply a key='),
        ("error", 'sampled in training under randomness="error": make the network with'),
    ],
)
def test_a_traced_loop_that_draws_says_why_not(randomness: Any, message: str) -> None:
    net = network(randomness)
    params = fm.init_params(net, 0)
    with pytest.raises(fm.RandomnessError, match=message):
        make_fx(lambda x: fm.apply(net, params, x, train=True))(numbers(5, N, 4))


class Watches(TorchDispatchMode):
    """A mode that is no tracer."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_untraced_samples_are_the_same_for_all_agents() -> None:
    net = network("same")
    params, x = fm.init_params(net, 0), torch.ones(5, N, 4, dtype=torch.float64)

    def drawn() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return fm.apply(net, params, x, train=True)

    expected = drawn()
    with Watches():
        assert torch.equal(drawn(), expected)
    assert torch.equal(expected[:, 0] == 0, expected[:, 1] == 0)
