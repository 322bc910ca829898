"""How "auto" chooses: the plan, vmap, the loop; what it restores before it falls back, and which errors it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._errors import Unsupported
from functional_marl._strategies import Call, Result, auto, supports
from functional_marl._strategies.plan import PlanEvaluator
from functional_marl._strategies.plan_fast_path import PlanFastPath
from functional_marl._strategies.vmap_fast_path import VmapFastPath
from tests.builders import N, mlp, numbers


class Unknown(nn.Module):
    """No rule of the plan knows it; vmap can map it."""

    calls = 0

    def __init__(self, forward: Callable[[Any, Tensor], Tensor] = lambda m, x: m.linear(x)) -> None:
        super().__init__()
        self.linear, self.body = nn.Linear(4, 2, dtype=torch.float64), forward

    def forward(self, x: Tensor) -> Tensor:
        Unknown.calls += 1
        return self.body(self, x)


def gru() -> nn.Module:
    return nn.GRU(4, 2, batch_first=True, dtype=torch.float64)


def looped(net: fm.Network, params: Any, x: Tensor, **how: Any) -> Any:
    return fm.apply(net.replace(strategy="loop"), params, x, **how)


@pytest.mark.parametrize("train", [False, True])
def test_the_fast_path_is_that_of_the_fastest_strategy(train: bool) -> None:
    assert isinstance(fm.network(mlp, N).evaluators[train].fast_path, PlanFastPath)
    assert isinstance(fm.network(Unknown, N).evaluators[train].fast_path, VmapFastPath)
    # a plan without a fast path of its own does not use that of vmap
    for build in (lambda: nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), gru):
        fast_path = fm.network(build, N).evaluators[train].fast_path
        assert not isinstance(fast_path, PlanFastPath | VmapFastPath)
        assert fast_path({}, numbers(5, N, 4)) is None


def test_strategies_that_can_be_prepared() -> None:
    for build, names in ((mlp, {"auto", "loop", "vmap", "plan"}), (Unknown, {"auto", "loop", "vmap"})):
        net = fm.network(build, N)
        assert {name for name in auto.STRATEGIES if supports(net, name)} == names
    assert {name for name in auto.STRATEGIES if supports(fm.network(gru, N), name)} == {"auto", "loop"}
    training = fm.network(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), N)
    assert not supports(training, "plan")  # it has a plan in evaluation only


@pytest.mark.parametrize(
    ("build", "how", "read"),
    [
        (mlp, {"kwargs": {}}, 0),  # a plan samples nothing in evaluation
        (mlp, {"train": True, "kwargs": {}}, 1),
        (mlp, {"train": True, "key": 1}, 0),
        (Unknown, {"kwargs": {}}, 1),
        (Unknown, {"key": 1}, 0),
    ],
)
def test_rng_states_are_read_where_a_call_may_sample(
    build: Any, how: dict[str, Any], read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    states = auto.rng_states
    monkeypatch.setattr(auto, "rng_states", lambda tensors, needed: calls.append(needed) or states(tensors, needed))
    net = fm.network(build, N)
    fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), **how)
    assert calls == [False] * read


def test_a_plan_that_fails_leaves_no_trace_in_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)

    def run(which: fm.Network) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return fm.apply(which, params, x, train=True), torch.rand(2)

    by_plan, wanted = run(net), run(net.replace(strategy="vmap"))
    assert not torch.equal(by_plan[0], wanted[0])  # the plan samples in another order
    tried: list[Call] = []

    def fails(self: PlanEvaluator, call: Call) -> Unsupported:
        tried.append(call)
        torch.rand(7)
        return Unsupported("it fails here")

    monkeypatch.setattr(PlanEvaluator, "evaluate", fails)
    torch.testing.assert_close(run(net), wanted)
    assert len(tried) == 1


def test_the_plan_evaluates_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Result | Unsupported] = []
    evaluate = PlanEvaluator.evaluate

    def counted(self: PlanEvaluator, call: Call) -> Result | Unsupported:
        results.append(evaluate(self, call))
        return results[-1]

    monkeypatch.setattr(PlanEvaluator, "evaluate", counted)
    net = fm.network(mlp, N, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 5, 4)
    torch.testing.assert_close(fm.apply(net, params, x), looped(net, params, x), rtol=1e-12, atol=1e-12)
    assert [type(result) for result in results] == [Result]


def test_the_loop_evaluates_what_no_other_strategy_can() -> None:
    net = fm.network(gru, N, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 5, 3, 4)
    with pytest.warns(fm.StrategyWarning, match=r"one after the other: torch.func.vmap has no batching rule for GRU;"):
        found = fm.apply(net, params, x)
    torch.testing.assert_close(found, looped(net, params, x), rtol=0, atol=0)


def test_a_kind_of_calls_that_failed_is_not_tried_again() -> None:
    net = fm.network(lambda: Unknown(lambda m, x: m.linear(x) if bool(x.sum() < 1e9) else x), N, agent_dim=(-2,))
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    calls: list[int] = []
    for given in (x, x + 1, x[0]):
        Unknown.calls = 0
        torch.testing.assert_close(fm.apply(net, params, given), looped(net, params, given), rtol=0, atol=0)
        calls.append(Unknown.calls - N)  # those of "auto"
    assert calls == [1 + N, N, 1 + N]  # vmap and the loop; the loop; another number of axes: vmap is tried again


def test_a_final_error_is_raised_by_the_first_strategy() -> None:
    class Counts(Unknown):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return super().forward(x)

    net = fm.network(Counts, N)
    params = fm.init_params(net, 0)
    Unknown.calls = 0
    with pytest.raises(fm.StructureError, match="changed its buffers"):
        fm.apply(net, params, numbers(5, N, 4), train=True)
    assert Unknown.calls == 1
