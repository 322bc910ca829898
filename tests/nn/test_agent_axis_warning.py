"""Shared one-agent modules that read the agent axis warn at the first call, and others do not."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.nn import AgentsApartWarning
from tests.nn.facade_cases import OURS, TORCHRL, Plain, mlp, stored, subclass


class Layer(nn.Module):
    """A linear layer, then a function."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.after = nn.Linear(6, 4), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.linear(x)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)


READ_THE_AXIS: dict[str, Callable[[], nn.Module]] = {
    "relative positions": lambda: Layer(lambda h: h - h.mean(-2, keepdim=True)),
    "attention over agents": Attention,
    "shape": lambda: Layer(lambda h: h * h.shape[-2]),
    "the others": lambda: Layer(lambda h: torch.cat([h, h.roll(1, -2)], -1)),
    "softmax over agents": lambda: Layer(lambda h: h.softmax(1)),
}
ROWWISE: dict[str, Callable[[], nn.Module]] = {
    "plan": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()),
    "tied": Plain,
    "own layer": lambda: Layer(lambda h: h.tanh() + h.square()),
    "features": lambda: Layer(lambda h: h - h.mean(-1, keepdim=True)),
    "dropout": lambda: nn.Sequential(Layer(torch.tanh), nn.Dropout(0.5)),
    "random": lambda: Layer(lambda h: h + torch.randn_like(h)),
    "glu": lambda: nn.Sequential(nn.Linear(6, 4), nn.GLU()),
    "more axes": lambda: Layer(lambda h: h.unflatten(-1, (2, 2))),
    "batch norm": lambda: nn.Sequential(Layer(torch.tanh), nn.BatchNorm1d(4)),  # torchrl's raises
    "no numbers": lambda: Layer(lambda h: h / 0 * 0),
    "integers": lambda: Layer(lambda h: h.argmax(-1, keepdim=True)),
    "half": lambda: Layer(lambda h: h.half().exp()),
}


def warnings_of(net: Any, x: Tensor) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net(x)
    return [one for one in caught if issubclass(one.category, AgentsApartWarning)]


@stored
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "x", [torch.zeros(5, 3, 6), torch.randn(5, 3, 6), torch.randn(2, 5, 3, 6)], ids=["0", "1", "2"]
)
@pytest.mark.parametrize("build", READ_THE_AXIS.values(), ids=READ_THE_AXIS)
def test_a_module_that_reads_the_axis_warns_once(build: Any, x: Tensor, train: bool, td: bool) -> None:
    if x.ndim == 4 and build is READ_THE_AXIS["softmax over agents"]:
        x = x[0]  # axis 1 is a batch otherwise
    net = subclass(OURS, build)(True, use_td_params=td).train(train)
    (warning,) = warnings_of(net, x)
    assert "Net: torchrl calls the one-agent module of a shared network on the inputs of all agents" in str(
        warning.message
    )
    assert warning.filename == __file__
    assert warnings_of(net, x) == []
    assert warnings_of(copy.deepcopy(net), x) == []
    theirs = subclass(TORCHRL, build)(True, use_td_params=td).train(train)
    theirs.load_state_dict(net.state_dict())
    assert not x.any() or not torch.allclose(theirs(x), net(x))


@stored
@pytest.mark.parametrize("share", [True, False, [0, 0, 1]], ids=str)
@pytest.mark.parametrize("build", ROWWISE.values(), ids=ROWWISE)
def test_a_module_that_computes_row_by_row_does_not_warn(build: Any, share: Any, td: bool) -> None:
    for x in (torch.randn(5, 3, 6), torch.zeros(5, 3, 6), torch.randn(2, 5, 3, 6)):
        for train in (True, False):
            net = subclass(OURS, build)(share, use_td_params=td).train(train)
            if isinstance(list(net._empty_net.modules())[-1], nn.BatchNorm1d) and x.ndim == 4:
                continue  # it takes no further axis, in a loop over agents neither
            assert warnings_of(net, x) == []


@pytest.mark.parametrize("share", [False, [0, 0, 0]], ids=str)
@pytest.mark.parametrize("build", READ_THE_AXIS.values(), ids=READ_THE_AXIS)
def test_other_sharings_do_not_warn(build: Any, share: Any) -> None:
    assert warnings_of(subclass(OURS, build)(share), torch.randn(5, 3, 6)) == []


def test_a_module_that_runs_only_on_all_agents_at_once_warns_before_its_error() -> None:
    net = subclass(OURS, lambda: Layer(lambda h: h - h[:, :1, :]))(True)
    with pytest.warns(AgentsApartWarning), pytest.raises(IndexError):
        net(torch.randn(5, 3, 6))


@pytest.mark.parametrize("build", [READ_THE_AXIS["shape"], ROWWISE["random"], ROWWISE["batch norm"]])
def test_the_check_changes_nothing(build: Any) -> None:
    x = torch.randn(5, 3, 6)
    results: list[Any] = []
    for checked in (True, False):
        net = subclass(OURS, build)(True)
        net._compared = not checked
        before = [module.training for module in net.modules()]
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AgentsApartWarning)
            y = net(x)
        y.square().sum().backward()
        assert [module.training for module in net.modules()] == before
        results.append((y, torch.rand(3), dict(net.state_dict()), [p.grad for p in net.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_the_librarys_own_classes_are_not_checked() -> None:
    for kwargs in ({}, {"activation_class": nn.GLU, "depth": 0}, {"centralized": True}):
        net = mlp(OURS, share_params=True, **kwargs)
        assert warnings_of(net, torch.randn(5, 3, 6)) == []
    assert warnings_of(pickle.loads(pickle.dumps(net)), torch.randn(5, 3, 6)) == []


def test_the_recipe_without_the_axis() -> None:
    """The recipe of "Coming from torchrl": further features hold what depends on several agents."""

    class Relative(OURS.MultiAgentMLP):
        def forward(self, *inputs: Tensor) -> Tensor:
            x = inputs[0]
            return super().forward(torch.cat([x, x - x.mean(-2, keepdim=True)], -1))

    x = torch.randn(5, 3, 6)
    net = Relative(12, 2, 3, centralized=False, share_params=True, depth=1)
    plain = net._empty_net
    assert warnings_of(net, x) == []
    theirs = TORCHRL.MultiAgentMLP(12, 2, 3, centralized=False, share_params=True, depth=1)
    theirs.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), theirs(torch.cat([x, x - x.mean(-2, keepdim=True)], -1)))
    assert plain is net._empty_net
