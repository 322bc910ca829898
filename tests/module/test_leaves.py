"""The leaves of a module: a tied one is one leaf under its first name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, numbers
from tests.module.modules import TiedModules, TiedWeights


def test_a_tied_weight_is_one_leaf_under_its_first_name_and_stays_tied() -> None:
    net = fm.network(TiedWeights, N)
    params = fm.init_params(net, 0)
    assert list(params) == ["encode.weight", "encode.bias"]
    module = fm.agent_module(net, params, 1)
    assert module.get_parameter("decode.weight") is module.get_parameter("encode.weight")
    x = torch.ones(N, 4)
    for leaf in params.values():
        leaf.requires_grad_()
    fm.apply(net, params, x).sum().backward()
    module(x[1]).sum().backward()
    mine, alone = params["encode.weight"].grad, module.get_parameter("encode.weight").grad
    assert mine is not None
    assert alone is not None
    torch.testing.assert_close(mine[1], alone)
    assert list(fm.stack_agents([TiedWeights(), TiedWeights()])) == ["encode.weight", "encode.bias"]


def test_a_tied_module_is_one_set_of_leaves_and_its_buffers_change_once_a_use() -> None:
    net = fm.network(TiedModules, N, agent_dim=0)
    params = fm.init_params(net, 0)
    assert list(params) == ["steps.0.weight", "steps.0.bias", "steps.1.weight", "steps.1.bias"]
    x = numbers(N, 6, 4)
    _, state = fm.apply(net, params, x, train=True, mutable=True)
    assert state["steps.0.num_batches_tracked"].tolist() == [2] * N
    for i in range(N):
        module = fm.agent_module(net, params, i).train()
        module(x[i])
        torch.testing.assert_close(state["steps.0.running_mean"][i], module.get_buffer("steps.0.running_mean"))


class ParameterAsBuffer(nn.Module):
    """One tensor is registered as a parameter and as a buffer."""

    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.register_buffer("again", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.again


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_a_parameter_that_is_also_a_buffer_stays_one_leaf(strategy: Any) -> None:
    net = fm.network(ParameterAsBuffer, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    assert (list(params), fm.init_state(net)) == (["scale"], {})
    assert torch.equal(fm.apply(net, params, x), x * params["scale"] + params["scale"])
