"""Errors of ``torch.func.vmap`` over populations name the fix, and "auto" warns when it uses the loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, numbers

P = 2
pytestmark = pytest.mark.filterwarnings("error::functional_marl.StrategyWarning")


class Recurrent(nn.Module):
    def __init__(self, build: Callable[..., nn.Module], *wrong: int) -> None:
        super().__init__()
        self.cell, self.wrong = build(4, 5).double(), wrong

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x)
        return y[0].sum(self.wrong) if self.wrong else y[0]


KINDS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "gru": (nn.GRU, "use fm.nets.gru in place of nn.GRU, or map over the population by a loop"),
    "lstm": (nn.LSTM, "use fm.nets.lstm in place of nn.LSTM, or map over the population by a loop"),
    "lstm_cell": (nn.LSTMCell, "use fm.nets.lstm in place of nn.LSTMCell, or map over the population by a loop"),
    "rnn_tanh": (nn.RNN, "this network; map over the population by a loop"),
}


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("sharing", ["independent", "shared"])
@pytest.mark.parametrize("name", KINDS)
def test_a_recurrent_module_under_a_map_over_seeds_names_ours(name: str, sharing: Any, strategy: Any) -> None:
    net = fm.network(lambda: Recurrent(KINDS[name][0]), N, sharing=sharing, strategy=strategy)
    params, x = fm.init_params(net, fm.split(fm.key(0), P)), numbers(5, N, 4)
    with pytest.raises(fm.StructureError, match=f"no batching rule for {name}.*{KINDS[name][1]}") as raised:
        torch.func.vmap(lambda p: fm.apply(net, p, x))(params)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_another_error_of_a_recurrent_module_under_a_map_stays() -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(4, 3).double(), Recurrent(nn.GRU)), N, strategy="loop")
    params, x = fm.init_params(net, fm.split(fm.key(0), P)), numbers(5, N, 7)
    with pytest.raises(RuntimeError, match=r"shape|size") as raised:
        torch.func.vmap(lambda p: fm.apply(net, p, x))(params)
    assert not isinstance(raised.value, ValueError)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()


class Dropping(nn.Module):
    """No plan."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dropping()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + torch.zeros(())


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap", "plan"])
@pytest.mark.parametrize("randomness", ["different", "same"])
@pytest.mark.parametrize("sharing", ["independent", "shared"])
@pytest.mark.parametrize("build", [dropping, Dropping])
def test_dropout_under_a_map_over_seeds_asks_for_keys(build: Any, sharing: Any, randomness: Any, strategy: Any) -> None:
    if build is Dropping and strategy == "plan":
        return
    net = fm.network(build, N, sharing=sharing, strategy=strategy, randomness=randomness)
    params, x = fm.init_params(net, fm.split(fm.key(0), P)), numbers(5, N, 4)
    for _ in range(2):
        with pytest.raises(fm.RandomnessError, match=r"map over keys too: .*key=key, .*fm.split\(key, P\)"):
            torch.func.vmap(lambda p: fm.apply(net, p, x, train=True))(params)
    keys = fm.split(fm.key(1), P)
    y = torch.func.vmap(lambda p, key: fm.apply(net, p, x, key=key, train=True))(params, keys)
    for k in range(P):
        expected = fm.apply(net, {name: v[k] for name, v in params.items()}, x, key=keys[k], train=True)
        torch.testing.assert_close(y[k], expected, rtol=1e-10, atol=1e-10)
    mapped = torch.func.vmap(lambda p: fm.apply(net, p, x, train=True), randomness="different")(params)
    assert mapped.shape == y.shape
    assert torch.func.vmap(lambda p: fm.apply(net, p, x))(params).shape == y.shape  # nothing drops in evaluation


def test_another_error_of_a_dropping_module_under_a_map_stays() -> None:
    net = fm.network(dropping, N)
    params, x = fm.init_params(net, fm.split(fm.key(0), P)), numbers(5, N, 7)
    for randomness in ("error", "different"):
        with pytest.raises(RuntimeError) as raised:
            torch.func.vmap(lambda p: fm.apply(net, p, x, train=True), randomness=randomness)(params)
        assert not isinstance(raised.value, fm.RandomnessError)


# --- what auto says about the loop ---------------------------------------------------------------------


def test_the_warning_comes_once_for_each_module_at_the_line_of_the_caller() -> None:
    net = fm.network(lambda: Recurrent(nn.GRU), N)
    x = numbers(5, N, 4)
    fix = r'no batching rule for GRU \(.cell.\); use fm.nets.gru in place of nn.GRU, or set strategy="loop" if'
    with pytest.warns(fm.StrategyWarning, match=f"^3 agents are evaluated one after the other: .*{fix}") as found:
        fm.apply(net, fm.init_params(net, 0), x, train=True)
    assert [warning.filename for warning in found] == [__file__]
    for tried in (net, net, net.replace(sharing="shared")):  # a second warning would be an error
        fm.apply(tried, fm.init_params(tried, 0), x, train=True)
        fm.apply(tried, fm.init_params(tried, 0), x)
    assert "loop (torch.func.vmap has no batching rule for GRU" in fm.tabulate(net)


@pytest.mark.parametrize("settings", [{"strategy": "loop"}, {"n_agents": 1, "sharing": "shared"}], ids=str)
def test_a_loop_that_is_meant_or_of_one_says_nothing(settings: dict[str, Any]) -> None:
    net = fm.network(lambda: Recurrent(nn.GRU), N).replace(**settings)
    fm.apply(net, fm.init_params(net, 0), numbers(5, net.n_agents, 4))  # a warning is an error


def test_the_warning_can_be_filtered_or_made_an_error() -> None:
    x = numbers(5, N, 4)
    net = fm.network(lambda: Recurrent(nn.LSTM), N)
    params = fm.init_params(net, 0)
    for _ in range(2):
        with pytest.raises(fm.StrategyWarning, match=r"fm\.nets\.lstm"):
            fm.apply(net, params, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.StrategyWarning)
        fm.apply(net, params, x)
    fm.apply(net, params, x)
    assert issubclass(fm.StrategyWarning, UserWarning)


def test_the_loop_is_said_where_vmap_fails() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    net = fm.network(Branching, N)
    what = "one after the other: vmap raised RuntimeError: .*; set strategy="
    with pytest.warns(fm.StrategyWarning, match=what):
        fm.apply(net, {}, numbers(5, N, 4))
    for _ in range(3):
        fm.apply(net, {}, numbers(5, N, 4))


class RecurrentTeam(fm.nn.MultiAgentNetBase):
    """A team of the facade."""

    def __init__(self) -> None:
        super().__init__(n_agents=N, centralized=False, share_params=False, agent_dim=-2)

    def _build_single_net(self, **kwargs: Any) -> nn.Module:
        return Recurrent(nn.GRU)

    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        return inputs


def test_a_team_of_the_facade_says_it_too() -> None:
    team = RecurrentTeam()
    with pytest.warns(fm.StrategyWarning, match=r"fm\.nets\.gru"):
        team(numbers(5, N, 4))
    team(numbers(5, N, 4))
