"""Buffers as an input and an output: as in ordinary modules for each agent, merged if agents share, never lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import FLAT_SHARINGS, N, Tensors, by_agents, by_apply, copied, generators_untouched, numbers, same

STRATEGIES: list[Any] = ["auto", "loop", "vmap"]


class Writes(nn.Module):
    """One buffer of floats, one of counts and a flag; a function changes them in forward."""

    mean: Tensor
    count: Tensor
    seen: Tensor

    def __init__(self, change: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(False), persistent=False)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self, x)
        return x * self.scale + self.mean


def _in_place(self: Any, x: Tensor) -> None:
    if self.training:
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.count.add_((x > 0).sum())
        self.seen.logical_or_((x > 1).any())


def _assigned(self: Any, x: Tensor) -> None:
    if self.training:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.count = self.count + (x > 0).sum()
        self.seen = self.seen | (x > 1).any()


def _by_a_view(self: Any, x: Tensor) -> None:
    if self.training:
        self.mean[:2].copy_(x.detach()[0, :2])
        self.mean.detach()[2] = 7.0


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).double()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "norm": norm,
    "in place": lambda: Writes(_in_place),
    "assigned": lambda: Writes(_assigned),
    "by a view": lambda: Writes(_by_a_view),
}


def merged(before: Tensors, agents: list[Tensors], sharing: dict[str, fm.Sharing]) -> Tensors:
    """In every slot the mean of its agents' floats and the largest of their integers; unused slots stay as they are."""
    after = copied(before)
    for name, slots in sharing.items():
        for slot in range(slots.n_slots):
            rows = [agents[i][name] for i in range(N) if slots.slots[i] == slot]
            if rows and rows[0].is_floating_point():
                after[name][slot] = torch.stack(rows).mean(0)
            elif rows:
                after[name][slot] = torch.stack(rows).amax(0)
    return after


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("name", MODULES)
def test_two_training_steps_change_buffers_as_single_agents_do(name: str, sharing: Any, strategy: Any) -> None:
    net = fm.network(MODULES[name], N, sharing=sharing, strategy=strategy, agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    for step in range(2):
        x = numbers(N, 6, 4, seed=step)
        before = copied(state)
        agents = by_agents(net, params, x, train=True, state=state)
        y, after = fm.apply(net, params, x, state=state, train=True, mutable=True)
        assert same(state, before)
        torch.testing.assert_close(y, agents.y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after, merged(before, agents.buffers, net.state_sharing), rtol=1e-12, atol=1e-12)
        assert not any(torch.equal(after[k], before[k]) for k in list(after)[:1])
        state = after
    # evaluation uses the learned state
    y = fm.apply(net, params, numbers(N, 6, 4), state=state)
    expected = [fm.agent_module(net, params, i, state)(numbers(N, 6, 4)[i]) for i in range(N)]
    torch.testing.assert_close(y, torch.stack(expected).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("name", MODULES)
def test_changed_buffers_without_mutable_raise(name: str, sharing: Any, strategy: Any) -> None:
    net = fm.network(MODULES[name], N, sharing=sharing, strategy=strategy, agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    before = copied(state)
    message = r"its buffers \['(mean|1.num_batches_tracked)'.*the new state, y, state = apply.*mutable=True"
    for given in (state, None):
        with generators_untouched(), pytest.raises(fm.StructureError, match=message):
            fm.apply(net, params, numbers(N, 6, 4), state=given, train=True)
    assert same(state, before)
    assert isinstance(fm.apply(net, params, numbers(N, 6, 4)), Tensor)


class Labelled(nn.Module):
    """Returns a tree with a string in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Writes(_assigned)

    def forward(self, x: Tensor) -> Any:
        return {"tag": "a", "y": (self.inner(x), x.sum())}


def test_the_state_is_returned_beside_a_tree_of_outputs(strategy: Any) -> None:
    net = fm.network(Labelled, N, sharing="shared", strategy=strategy, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 6, 4)
    got, state = fm.apply(net, params, x, train=True, mutable=True)
    plain = fm.network(lambda: Writes(_assigned), N, sharing="shared", strategy="loop", agent_dim=0)
    y, after = fm.apply(plain, {"scale": params["inner.scale"]}, x, train=True, mutable=True)
    assert got["tag"] == "a"
    torch.testing.assert_close(got["y"], (y, x.sum((1, 2))), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, {f"inner.{name}": leaf for name, leaf in after.items()}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_evaluation_returns_the_state_unchanged(sharing: Any, strategy: Any) -> None:
    net = fm.network(norm, N, sharing=sharing, strategy=strategy)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    state["1.running_mean"] += numbers(*state["1.running_mean"].shape)
    before = copied(state)
    _, after = fm.apply(net, params, numbers(5, N, 4), state=state, mutable=True)
    assert same(after, before)
    for leaf in after.values():
        leaf.zero_()
    assert same(state, before)


def test_a_buffer_changed_in_evaluation_raises_too(strategy: Any) -> None:
    def change(self: Any, x: Tensor) -> None:
        self.mean = self.mean + 1

    net = fm.network(lambda: Writes(change), N, strategy=strategy)
    with pytest.raises(fm.StructureError, match=r"the module changed its buffers \['mean'\] and apply would lose them"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4))


def test_a_write_that_changes_no_number_counts_as_a_change(strategy: Any) -> None:
    def change(self: Any, x: Tensor) -> None:
        self.mean.add_(0)

    net = fm.network(lambda: Writes(change), N, strategy=strategy)
    with pytest.raises(fm.StructureError, match="changed its buffers"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), train=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_state_is_the_initial_one_in_the_dtype_of_the_params(dtype: torch.dtype, strategy: Any) -> None:
    net = fm.network(lambda: nn.BatchNorm1d(4), N, strategy=strategy, agent_dim=0)
    params, x = fm.init_params(net, 0, dtype=dtype), numbers(N, 6, 4).to(dtype)
    y, after = fm.apply(net, params, x, train=True, mutable=True)
    expected, state = fm.apply(net, params, x, state=fm.init_state(net, dtype=dtype), train=True, mutable=True)
    assert torch.equal(y, expected)
    assert same(after, state)
    assert {k: v.dtype for k, v in after.items()} == {
        "running_mean": dtype,
        "running_var": dtype,
        "num_batches_tracked": torch.int64,
    }


def test_a_shared_buffer_with_equal_values_is_kept_to_the_bit(strategy: Any) -> None:
    odd = torch.tensor([0.1, float("inf"), 1e300, -0.7], dtype=torch.float64)

    def change(self: Any, x: Tensor) -> None:
        self.mean = odd + 0 * self.mean

    net = fm.network(lambda: Writes(change), N, sharing="shared", strategy=strategy)
    _, after = fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), mutable=True)
    assert torch.equal(after["mean"], odd[None])


def test_buffers_may_have_another_sharing_than_parameters(strategy: Any) -> None:
    net = fm.network(norm, N, sharing={"1.running_*": "shared", "*": "independent"}, strategy=strategy, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 6, 4)
    y, after = fm.apply(net, params, x, train=True, mutable=True)
    agents = by_agents(net, params, x, train=True)
    torch.testing.assert_close(y, agents.y, rtol=1e-12, atol=1e-12)
    mean = torch.stack([agent["1.running_mean"] for agent in agents.buffers]).mean(0)
    torch.testing.assert_close(after["1.running_mean"], mean[None], rtol=1e-12, atol=1e-12)
    assert after["1.num_batches_tracked"].tolist() == [1, 1, 1]


def test_networks_without_buffers_have_an_empty_state(strategy: Any) -> None:
    net = fm.network(lambda: nn.Linear(4, 2), N, strategy=strategy)
    params, x = fm.init_params(net, 0), torch.zeros(5, N, 4)
    y, state = fm.apply(net, params, x, train=True, mutable=True)
    assert state == {}
    assert torch.equal(y, fm.apply(net, params, x, state={}))


def test_a_state_may_be_a_tensordict(strategy: Any) -> None:
    net = fm.network(norm, N, strategy=strategy)
    params, state, x = fm.init_params(net, 0), fm.init_state(net), numbers(5, N, 4)
    state["1.running_mean"] += 1
    assert torch.equal(fm.apply(net, params, x, state=fm.to_tensordict(state)), fm.apply(net, params, x, state=state))


def test_gradients_in_training_equal_those_of_single_agents(strategy: Any) -> None:
    net = fm.network(norm, N, sharing=[0, 0, 1], strategy=strategy, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 6, 4)
    got, expected = by_apply(net, params, x, train=True), by_agents(net, params, x, train=True)
    torch.testing.assert_close(got.params, expected.params, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got.x, expected.x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, r"state\['1.running_mean'\]: missing, expected \[3, 4\]"),
        (lambda s: {**s, "x": s["1.running_var"]}, r"state\['x'\]: not a leaf of this network; its leaves are"),
        (lambda s: {k: v[0] for k, v in s.items()}, r"state\['1.running_mean'\]: expected \[3, 4\], got \[4\]"),
        (lambda s: {k: v[:2] for k, v in s.items()}, r"state\['1.num_batches_tracked'\]: expected \[3\], got \[2\]"),
        (lambda s: 3, "expected a dict of dotted names to tensors"),
    ],
)
def test_a_wrong_state_is_named(change: Any, message: str) -> None:
    net = fm.network(norm, N)
    with pytest.raises(fm.StructureError, match=message):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), state=change(fm.init_state(net)))
