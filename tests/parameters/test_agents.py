"""One agent's tree and module out of the params of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import functional_marl as fm
from tests.builders import N, copied, mlp, numbers, own, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def normed() -> nn.Module:
    """Leaves of several dtypes, and buffers: 0.* is a linear layer, 1.* a BatchNorm."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module.register_parameter("count", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    return module


def test_one_agents_leaves_are_views_of_its_rows(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    trees = fm.unstack_agents(net, params)
    assert len(trees) == N
    for i in range(N):
        expected = own(net, params, i)
        for got in (fm.agent_params(net, params, i), fm.agent_params(net, params, i - N), trees[i]):
            assert same(got, expected)
            assert all(got[k].untyped_storage().data_ptr() == params[k].untyped_storage().data_ptr() for k in params)


def test_gradients_of_one_agents_leaves_reach_its_slot() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = {k: v.requires_grad_() for k, v in fm.init_params(net, 0).items()}
    functional_call(mlp(), fm.agent_params(net, params, 2), (numbers(5, 4),)).sum().backward()
    for leaf in params.values():
        assert leaf.grad is not None
        assert not bool(leaf.grad[0].any())
        assert bool(leaf.grad[1].any())


def test_one_agents_module_is_an_ordinary_module_with_copies(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, 4)
    before = copied(params)
    for i in range(N):
        module = fm.agent_module(net, params, i)
        assert type(module) is nn.Sequential
        assert not module.training
        assert same({k: v.detach() for k, v in module.named_parameters()}, own(net, params, i))
        assert all(type(p) is nn.Parameter and p.requires_grad and p.is_leaf for p in module.parameters())
        assert torch.equal(module(x), functional_call(mlp(), own(net, params, i), (x,)))
        torch.optim.SGD(module.parameters(), 0.1).zero_grad()
        module(x).sum().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
        fresh = mlp()
        fresh.load_state_dict(module.state_dict())
    assert same(params, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_agents_module_has_its_buffers_in_the_dtype_of_its_params(dtype: torch.dtype) -> None:
    net = fm.network(normed, N, sharing=[0, 0, 1])
    params, x = fm.init_params(net, 0, dtype=dtype), numbers(5, 4).to(dtype)
    assert fm.agent_module(net, params, 0)(x).dtype == dtype
    state = fm.init_state(net, dtype=dtype)
    state["1.running_mean"][1] += 3
    module = fm.agent_module(net, params, 2, state)
    assert dict(module.named_buffers())["1.running_mean"].tolist() == [3.0] * 4
    assert dict(module.named_parameters())["count"].tolist() == [1, 2]
    with torch.no_grad():
        module.get_buffer("1.running_mean").zero_()
    assert state["1.running_mean"][1].tolist() == [3.0] * 4


def test_one_agents_module_of_a_centralized_network_takes_the_joint_input() -> None:
    net = fm.network(lambda: nn.Linear(N * 4, 2, dtype=torch.float64), N, centralized=True)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    joint = torch.cat([x[:, i] for i in range(N)], -1)
    expected = torch.stack([fm.agent_module(net, params, i)(joint) for i in range(N)], 1)
    torch.testing.assert_close(fm.apply(net, params, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [fm.agent_params, fm.agent_module])
def test_a_wrong_agent_and_wrong_params_raise(function: Any) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    for agent in (N, -N - 1):
        with pytest.raises(fm.StructureError, match=f"agent: expected an index below 3, got {agent}"):
            function(net, params, agent)
    with pytest.raises(fm.StructureError, match=r"params\['0.weight'\]: expected \[3, 5, 4\], got \[2, 5, 4\]"):
        function(net, {k: v[:2] for k, v in params.items()}, 0)
    with pytest.raises(fm.StructureError, match=r"expected a dict of dotted names to tensors .* got list"):
        function(net, [params], 0)
