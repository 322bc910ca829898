"""The fast path of the plan, at the edges of its size rules, and calls that it leaves to the plan."""

import pytest
import torch

import functional_marl as fm
from functional_marl._strategies.plan_fast_path import PlanFastPath
from tests.builders import N, numbers
from tests.lowering.test_plan import assert_plan_is_loop


@pytest.mark.parametrize("agents", [2, 20])
@pytest.mark.parametrize("batch", [0, 1, 2, 20])
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_the_fast_path_is_the_loop_at_the_edges_of_the_size_rules(sharing: str, batch: int, agents: int) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), agents, sharing=sharing)
    assert isinstance(net.evaluators[False].fast_path, PlanFastPath)
    assert_plan_is_loop(net, (numbers(batch, agents, 4),))


def test_the_fast_path_takes_no_other_call() -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N)
    params = fm.init_params(net, 0)
    x = torch.randn(5, N, 4)
    fast = net.evaluators[False].fast_path
    assert isinstance(fast, PlanFastPath)
    assert fast(params, x) is not None
    assert fast(params, x[0]) is None
    assert fast(params, x[:, :2]) is None
    assert fast({k: p[:2] for k, p in params.items()}, x) is None
    assert fast({k: p for k, p in params.items() if k != "0.bias"}, x) is None
    assert fast({**params, "more": x}, x) is None
    for settings in ({"centralized": True}, {"agent_dim": 1}, {"out_agent_dim": 0}, {"strategy": "loop"}):
        assert not isinstance(net.replace(**settings).evaluators[False].fast_path, PlanFastPath)
