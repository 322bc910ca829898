"""Writes of a forward into its leaves: parameters are never changed, a buffer's change is never lost in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
import functional_marl.nn as fnn
from tests.builders import FLAT_SHARINGS, N, by_agents, copied, numbers, same
from tests.module.modules import Codes, Weight

STRATEGIES: list[Any] = ["auto", "vmap", "loop"]
calls = [0]


def _data(linear: nn.Linear, x: Tensor) -> None:
    linear.weight.data.clamp_(-0.01, 0.01)


def _data_of_a_view(linear: nn.Linear, x: Tensor) -> None:
    linear.weight[0].data.zero_()


def _data_item(linear: nn.Linear, x: Tensor) -> None:
    linear.weight.data[1] = 0.0


def _data_set(linear: nn.Linear, x: Tensor) -> None:
    linear.weight.data = linear.weight.data * 2


def _all(linear: nn.Linear, x: Tensor) -> None:
    for leaf in linear.parameters():
        leaf.data.mul_(0.5)


def _later(linear: nn.Linear, x: Tensor) -> None:
    calls[0] += 1
    if calls[0] > 2 * N:
        with torch.no_grad():
            linear.weight.mul_(0.5)


def _later_data(linear: nn.Linear, x: Tensor) -> None:
    calls[0] += 1
    if calls[0] > 2 * N:
        linear.weight.data *= 0.5


def _of_large_batches(linear: nn.Linear, x: Tensor) -> None:
    if x.shape[0] > 5:
        with torch.no_grad():
            linear.weight.add_(1)


CHANGES = [_data, _data_of_a_view, _data_item, _data_set, _all, _later, _later_data, _of_large_batches]


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("change", CHANGES)
def test_parameters_are_never_written_to(change: Any, strategy: Any, sharing: Any, context: Any) -> None:
    calls[0] = 0
    net = fm.network(lambda: Weight(change), N, strategy=strategy, sharing=sharing)
    params = fm.init_params(net, 0)
    before, refused = copied(params), 0
    for size in (2, 3, 2, 6, 6, *[6] * 2 * N):
        try:
            with context():
                fm.apply(net, params, numbers(size, N, 4))
        except fm.StructureError as error:
            assert "the module writes into ['linear." in str(error)  # noqa: PT017
            refused += 1
        assert same(params, before)
    assert refused > 1


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("change", [_data, _all, _of_large_batches])
def test_a_compiled_call_loses_no_parameters(change: Any, strategy: Any) -> None:
    net = fm.network(lambda: Weight(change), N, strategy=strategy)
    params = fm.init_params(net, 0)
    before = copied(params)
    torch._dynamo.reset()
    call = torch.compile(lambda p, x: fm.apply(net, p, x), backend="aot_eager", fullgraph=True)
    call(params, numbers(6, N, 4))
    assert same(params, before)


# --- buffers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["independent", "shared", [0, 0, 1]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_buffer_written_through_data_comes_out(strategy: Any, sharing: Any) -> None:
    net = fm.network(Codes, N, strategy=strategy, sharing=sharing, agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    for step in range(3):
        x, before = numbers(N, 6, 4, seed=step), copied(state)
        agents = by_agents(net, params, x, train=True, state=state)
        y, after = fm.apply(net, params, x, state=state, train=True, mutable=True)
        assert same(state, before)
        torch.testing.assert_close(y, agents.y, rtol=1e-12, atol=1e-12)
        for name, slots in net.state_sharing.items():
            for slot in range(slots.n_slots):
                rows = torch.stack([agents.buffers[i][name] for i in slots.members(slot)])
                torch.testing.assert_close(after[name][slot], rows.mean(0), rtol=1e-12, atol=1e-12)
        assert not torch.equal(after["mean"], before["mean"])
        state = after
    assert "loop (" not in fm.tabulate(net)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("sharing", ["independent", "shared"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("build", [Codes, lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()])
def test_a_change_that_nobody_takes_is_refused(build: Any, strategy: Any, sharing: Any, context: Any) -> None:
    net = fm.network(build, N, strategy=strategy, sharing=sharing, agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    before = copied(state)
    for _ in range(3):
        with context(), pytest.raises(fm.StructureError, match=r"its buffers \['(mean|1.num).*mutable=True"):
            fm.apply(net, params, numbers(N, 6, 4), state=state, train=True)
    assert same(state, before)
    with context():
        fm.apply(net, params, numbers(N, 6, 4), state=state)


class CodesOfAgents(fnn.MultiAgentNetBase):
    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        return Codes()

    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize("td", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_facade_keeps_what_is_written_through_data(shared: bool, td: bool) -> None:
    team = CodesOfAgents(
        n_agents=N, centralized=False, share_params=shared, agent_dim=-2, use_td_params=td, device=None
    )
    net, params, state = team.functional()
    x = numbers(6, N, 4)
    wanted, after = fm.apply(net.replace(strategy="loop"), params, x, state=state, train=True, mutable=True)
    torch.testing.assert_close(team.train()(x), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(team.functional()[2], after, rtol=1e-12, atol=1e-12)
