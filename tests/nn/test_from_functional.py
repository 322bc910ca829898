"""``from_functional``: every network that ``network`` makes, as an ``nn.Module``."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_marl as fm
from functional_marl.nn import from_functional
from tests.nn.facade_cases import stored


class Two(nn.Module):
    """Two inputs, a keyword input, two outputs in a dict."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(features, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor, scale: Any = 1.0) -> dict[str, Tensor]:
        y = torch.tanh(self.x(x) + self.h(h)) * scale
        return {"y": y, "flat": y.flatten(-2)}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.bare


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(18, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.x(x) + self.h(h)


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), parametrizations.spectral_norm(nn.Linear(4, 2)))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(-3))


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# what to build, how, the inputs, the keyword inputs
CASES: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...], dict[str, Any]]] = {
    "plain": (lambda: nn.Linear(6, 2), {}, (r(5, 3, 6),), {}),
    "agents first": (lambda: nn.Linear(6, 2), {"agent_dim": 0}, (r(3, 5, 6),), {}),
    "agents go last": (lambda: nn.Linear(6, 2), {"agent_dim": 0, "out_agent_dim": -1}, (r(3, 5, 6),), {}),
    "images": (conv, {"agent_dim": -4}, (r(5, 3, 2, 5, 5),), {}),
    "whole": (lambda: nn.Linear(6, 2), {"agent_dim": None, "out_agent_dim": 0}, (r(5, 6),), {}),
    "two inputs": (Two, {}, (r(5, 3, 2, 6).movedim(1, -2), r(5, 2, 3, 4)), {}),
    "prefix": (Two, {"agent_dim": (0, None), "out_agent_dim": {"y": 1, "flat": 0}}, (r(3, 5, 6), r(5, 4)), {}),
    "keyword": (Two, {"agent_dim": (-2, -2, {"scale": 0})}, (r(5, 2, 3, 6), r(5, 2, 3, 4)), {"scale": r(3, 1)}),
    "joint": (lambda: nn.Linear(18, 2), {"centralized": True}, (r(5, 3, 6),), {}),
    "joint and own": (Joint, {"centralized": True}, (r(5, 3, 6), r(5, 3, 4)), {}),
    "recurrent": (lambda: nn.GRUCell(6, 4), {}, (r(5, 3, 6), r(5, 3, 4)), {}),
    "sequence": (lambda: nn.GRU(6, 4), {"agent_dim": (2, None), "out_agent_dim": (2, 2)}, (r(7, 5, 3, 6),), {}),
    "bare": (Own, {}, (r(5, 3, 6),), {}),
    "buffers": (normed, {}, (r(5, 3, 6),), {}),
    "parametrized": (lambda: parametrized(), {}, (r(5, 3, 6),), {}),
    "no leaves": (lambda: nn.Tanh(), {}, (r(5, 3, 6),), {}),
    "loop": (lambda: nn.Linear(6, 2), {"strategy": "loop"}, (r(5, 3, 6),), {}),
}
SHARES: list[Any] = ["shared", "independent", [0, 1, 0], fm.Sharing([2, 0, 2], 4)]
cases = pytest.mark.parametrize("case", CASES)
shares = pytest.mark.parametrize("share", SHARES, ids=str)


def squares(out: Any) -> Tensor:
    return torch.stack([leaf.square().sum() for leaf in optree.tree_leaves(out)]).sum()


def made(case: str, share: Any) -> tuple[fm.Network, dict[str, Tensor], dict[str, Tensor], tuple[Any, ...], Any]:
    build, how, inputs, kwargs = CASES[case]
    if case == "sequence":
        inputs = (*inputs, torch.zeros(1, 5, 4))
    net = fm.network(build, n_agents=3, sharing=share, **how)
    return net, fm.init_params(net, 0), fm.init_state(net, 0), inputs, kwargs


@stored
@cases
@shares
def test_the_module_is_apply(case: str, share: Any, td: bool) -> None:
    net, params, state, inputs, kwargs = made(case, share)
    module = from_functional(net, params, state, use_td_params=td)
    params = {k: p.requires_grad_() for k, p in params.items()}
    for train in (False, True):
        out, state = fm.apply(net, params, *inputs, kwargs=kwargs or None, state=state, train=train, mutable=True)
        torch.testing.assert_close(module.train(train)(*inputs, **kwargs), out)
    again, copied, buffers = module.functional()
    assert (again.agent_dim, again.out_agent_dim, again.strategy) == (net.agent_dim, net.out_agent_dim, net.strategy)
    assert again.sharing == net.sharing
    torch.testing.assert_close(buffers, state)
    assert all(torch.equal(copied[k], p) for k, p in params.items())
    if not params:
        return
    squares(out).backward()
    squares(module(*inputs, **kwargs)).backward()
    root = "params." if td else "_empty_net."
    for name, p in module.named_parameters() if case != "buffers" else ():  # those have moved on
        grad = params[name.removeprefix(root)].grad
        assert grad is not None
        if case != "parametrized":  # its power iteration has moved on
            torch.testing.assert_close(p.grad, grad[0] if module.share_params is True else grad)


@stored
@cases
@pytest.mark.parametrize("share", ["shared", "independent", [0, 1, 0]], ids=str)
def test_it_lives_as_a_module(case: str, share: Any, td: bool) -> None:
    net, params, state, inputs, kwargs = made(case, share)
    module = from_functional(net, params, state, use_td_params=td).eval()
    y = module(*inputs, **kwargs)
    other = copy.deepcopy(module)
    torch.testing.assert_close(other(*inputs, **kwargs), y)
    for p in other.parameters():
        p.data.zero_()
    torch.testing.assert_close(module(*inputs, **kwargs), y)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(*inputs, **kwargs), y)
    if case != "parametrized":  # torch's own rule
        torch.testing.assert_close(pickle.loads(pickle.dumps(module))(*inputs, **kwargs), y)
    before = {k: p.detach().clone() for k, p in module.named_parameters()}
    module.reset_parameters()
    assert all(not torch.equal(p, before[k]) for k, p in module.named_parameters() if p.ndim > 2)


@pytest.mark.parametrize("net", [None, nn.Linear(6, 2), "net"], ids=str)
def test_what_is_no_network_is_named(net: Any) -> None:
    with pytest.raises(fm.StructureError, match="net: expected a network"):
        from_functional(net, {})


def test_errors_are_those_of_apply() -> None:
    net, params, _, inputs, _ = made("two inputs", "shared")
    module = from_functional(net, params)
    with pytest.raises(fm.StructureError, match="3 agents"):
        module(inputs[0][:, :, :2], inputs[1])
    with pytest.raises(fm.StructureError, match="state"):
        from_functional(net, params, {"mean": torch.zeros(3)})
