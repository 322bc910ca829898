"""The fast path of the plan, at the edges of its size rules, and calls that it leaves to the plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._strategies.plan_fast_path import PlanFastPath
from tests.builders import N, numbers
from tests.lowering.test_plan import assert_plan_is_loop

Tensors = dict[str, Tensor]


def fast_path(net: fm.Network) -> PlanFastPath:
    found = net.evaluators[False].fast_path
    assert isinstance(found, PlanFastPath)
    return found


def double(net: fm.Network) -> Tensors:
    return fm.init_params(net, 0, dtype=torch.float64)


@pytest.mark.parametrize("agents", [1, 2, 15, 16, 20])
@pytest.mark.parametrize("batch", [0, 1, 2, 20])
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_the_fast_path_is_the_loop_at_the_edges_of_the_size_rules(sharing: str, batch: int, agents: int) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), agents, sharing=sharing)
    x = numbers(batch, agents, 4)
    found = fast_path(net)(double(net), x)
    assert found is not None
    assert found.shape == (batch, agents, 2)
    torch.testing.assert_close(found, fm.apply(net.replace(strategy="loop"), double(net), x), rtol=1e-12, atol=1e-12)
    assert_plan_is_loop(net, (x,))


@pytest.mark.parametrize("shape", [(N, 4), (5, N, 4), (2, 3, N, 4), (2, 0, N, 4), (8, N, 4), (2, 1, 3, N, 4)], ids=str)
def test_a_shared_network_takes_any_batch_axes(shape: tuple[int, ...]) -> None:
    net = fm.network(
        lambda: nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 2)), N, sharing="shared"
    )
    x = numbers(*shape)
    found = fast_path(net)(double(net), x)
    assert found is not None
    assert found.shape == (*shape[:-1], 2)
    torch.testing.assert_close(found, fm.apply(net.replace(strategy="loop"), double(net), x), rtol=1e-12, atol=1e-12)


def test_large_activations_are_left_to_the_plan() -> None:
    """Which computes them in chunks."""
    net = fm.network(fm.nets.mlp(4, 8, 2), N)
    fast = fast_path(net)
    rows = fast.most // N
    assert fast(double(net), numbers(rows, N, 4)) is not None
    assert fast(double(net), numbers(rows + 1, N, 4)) is None


def wrong_params(params: Tensors) -> dict[str, dict[str, Any]]:
    few = {name: leaf for name, leaf in params.items() if name != "0.bias"}
    return {
        "fewer slots": {name: leaf[:2] for name, leaf in params.items()},
        "a missing leaf": few,
        "another leaf": {**params, "more": params["0.bias"]},
        "another name": {**few, "more": params["0.bias"]},
        "a weight that is no tensor": {**params, "0.weight": params["0.weight"].tolist()},
        "a weight of another shape": {**params, "0.weight": params["0.weight"].mT},
        "a weight on meta": {**params, "2.weight": params["2.weight"].to("meta")},
        "a bias that is no tensor": {**params, "0.bias": None},
        "a bias of another shape": {**params, "2.bias": params["2.bias"][:, :1]},
        "a bias on meta": {**params, "0.bias": params["0.bias"].to("meta")},
        "another dtype": {name: leaf.float() for name, leaf in params.items()},
    }


@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_the_fast_path_takes_no_other_call(sharing: str) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing=sharing)
    fast, params, x = fast_path(net), double(net), numbers(5, N, 4)
    assert fast(params, x) is not None
    for other in (x[0, 0], x[:, :2], x[..., :3], x.to("meta"), x.float(), numbers(4)):
        assert fast(params, other) is None
    assert (fast(params, x[0]) is None) == (sharing == "independent")
    wrong = wrong_params(params)
    assert [name for name, given in wrong.items() if fast(given, x) is not None] == (
        ["fewer slots"] if sharing == "shared" else []  # there is one slot, so that two are the same one
    )
    for settings in ({"centralized": True}, {"agent_dim": 1}, {"out_agent_dim": 0}, {"strategy": "loop"}):
        assert not isinstance(net.replace(**settings).evaluators[False].fast_path, PlanFastPath)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_no_fast_path_while_hooks_for_all_modules_are_registered(kind: str) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N)
    fast, params, x = fast_path(net), double(net), numbers(5, N, 4)
    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(lambda *_: None)
    try:
        assert fast(params, x) is None
    finally:
        handle.remove()
    assert fast(params, x) is not None


def test_a_sharing_of_another_kind_has_no_fast_path() -> None:
    for sharing in ([0, 0, 1], {"0.*": "shared", "*": "independent"}, fm.Sharing([0, 1, 2], 4)):
        net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing=sharing)
        assert not isinstance(net.evaluators[False].fast_path, PlanFastPath)
