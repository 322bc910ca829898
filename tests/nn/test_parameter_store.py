"""Any sharing for ``nn.Module`` users: what is registered, and ``functional()`` and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl import laws
from functional_marl.nn import MultiAgentMLP, convert_state_dict, from_functional
from tests.nn.facade_cases import OURS, cnn, joint, mlp, stored, subclass

SHARES: list[Any] = [True, False, "shared", [0, 0, 1], {"0.*": "shared", "*": [1, 0, 1]}, fm.Sharing([2, 1, 2], 3)]
X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))


def maps(net: Any) -> dict[str, fm.Sharing]:
    return net.functional()[0].sharing


def agent_outputs(net: Any) -> Tensor:
    """Every agent's output for the input of agent 0: ``[n, B, F]``."""
    return net(X[:, :1].expand(4, 3, 6)).movedim(1, 0)


@stored
@joint
def test_clusters_share_and_slot_axes_are_as_documented(td: bool, centralized: bool) -> None:
    net = mlp(OURS, share_params=[0, 0, 1], use_td_params=td, centralized=centralized)
    root = "params." if td else "_empty_net."
    assert net.state_dict()[root + "0.weight"].shape == (2, 8, 18 if centralized else 6)
    assert str(net).endswith(
        f"n_agents=3,\n    share_params=[0, 0, 1],\n    centralized={centralized},\n    agent_dim=-2)"
    )
    y = agent_outputs(net)
    assert torch.equal(y[0], y[1])
    assert not torch.allclose(y[0], y[2])


def test_sharing_by_layer() -> None:
    net = mlp(OURS, share_params={"0.*": "shared", "*": [1, 0, 1]})
    shapes = {k: tuple(p.shape) for k, p in net.state_dict().items()}
    assert shapes["params.0.weight"] == (1, 8, 6)
    assert shapes["params.2.weight"] == (2, 8, 8)
    assert net.params.batch_size == ()
    y = agent_outputs(net)
    assert torch.equal(y[0], y[2])
    assert not torch.allclose(y[0], y[1])


@pytest.mark.parametrize("share", [[0, 0], "none", {"0.*": "shared"}, [0, 0, -1], 3])
def test_a_sharing_that_does_not_fit_is_refused(share: Any) -> None:
    with pytest.raises(fm.SharingError, match="sharing"):
        mlp(OURS, share_params=share)


def test_a_subclass_takes_any_sharing() -> None:
    net = subclass(OURS)([0, 1, 0])
    assert net.params["a", "weight"].shape == (2, 6, 6)
    assert net(X).shape == (4, 3, 6)


@pytest.mark.parametrize("share", SHARES, ids=str)
def test_slots_are_initialized_in_order(share: Any) -> None:
    """Slot ``s`` holds the numbers of the ``s``-th module built: those of agent ``s`` under no sharing."""
    own = mlp(OURS, share_params=False).state_dict()
    for name, leaf in mlp(OURS, share_params=share).state_dict().items():
        rows = leaf[None] if share is True else leaf
        assert torch.equal(rows, own[name][: len(rows)])


@stored
@joint
@pytest.mark.parametrize("share", SHARES, ids=str)
def test_functional_and_back(share: Any, centralized: bool, td: bool) -> None:
    module = mlp(OURS, share_params=share, centralized=centralized, use_td_params=td)
    net, params, state = module.functional()
    assert isinstance(net, fm.Network)
    assert not any(p.requires_grad for p in params.values())
    assert state == {}
    y = module(X)
    torch.testing.assert_close(fm.apply(net, params, X), y)
    back = from_functional(net, params, use_td_params=not td)
    torch.testing.assert_close(back(X), y)
    again, copied, _ = back.functional()
    assert again.sharing == net.sharing
    assert all(torch.equal(copied[k], params[k]) for k in params)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    torch.testing.assert_close(back(X), y)  # copies
    assert fm.init_params(net, 0).keys() == params.keys()
    back.reset_parameters()
    assert not torch.allclose(back(X), y)


def test_functional_of_a_convnet_and_from_a_plain_network() -> None:
    image = torch.randn(2, 3, 2, 9, 9)
    for centralized in (True, False):
        module = cnn(OURS, centralized=centralized)
        net, params, _ = module.functional()
        torch.testing.assert_close(fm.apply(net, params, image), module(image))
    plain = fm.network(fm.nets.mlp(6, 8, 2), n_agents=3, sharing={"*.weight": "shared", "*": "independent"})
    params = fm.init_params(plain, 0)
    module = from_functional(plain, params)
    torch.testing.assert_close(module(X), fm.apply(plain, params, X))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(X).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(module(X), fm.apply(plain, params, X))
    with pytest.raises(ValueError, match="3 agents"):
        module(torch.zeros(4, 2, 6))


def test_from_functional_refuses_what_a_module_cannot_be() -> None:
    net = fm.network(nn.Linear(6, 2), n_agents=3)
    with pytest.raises(fm.StructureError, match="weight"):
        from_functional(net, {"bias": torch.zeros(3, 2)})
    lazy = MultiAgentMLP(None, 2, 3, centralized=False, share_params=True)
    with pytest.raises(fm.StructureError, match="lazy"):
        lazy.functional()


class KeyedDropout(nn.Module):
    """Names that are patterns, or look like them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a[0]": nn.Linear(6, 2), "b*": nn.Linear(6, 2), "?": nn.BatchNorm1d(2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["?"](self.parts["a[0]"](x) + self.parts["b*"](x))


@stored
@pytest.mark.parametrize("share", [True, False, [0, 0, 1], {"parts.a[[]0].*": "shared", "*": [0, 1, 0]}], ids=str)
def test_names_with_brackets(td: bool, share: Any) -> None:
    net = subclass(OURS, KeyedDropout)(share, use_td_params=td)
    net(X)
    y = net.eval()(X)
    functional, params, state = net.functional()
    torch.testing.assert_close(fm.apply(functional, params, X, state=state), y)
    torch.testing.assert_close(from_functional(functional, params, state).eval()(X), y)
    torch.testing.assert_close(copy.deepcopy(net)(X), y)
    own = subclass(OURS, KeyedDropout)(False).eval()
    own.load_state_dict(convert_state_dict(net.state_dict(), own, sharing=share))
    torch.testing.assert_close(own(X), y)


@stored
def test_the_laws_take_the_patterns_of_the_facade(td: bool) -> None:
    share = {"0.*": "shared", "*": [0, 1, 1]}
    net = mlp(OURS, share_params=share, use_td_params=td, depth=1)
    for claim in (None, share):
        assert laws.check(net, example=X, sharing=claim, laws=["gradient_reaches_own_slot"], examples=4)
    wrong = laws.check(net, example=X, sharing={"0.*": [0, 0, 1], "*": [0, 1, 1]}, examples=4)
    broken = ["gradient_reaches_own_slot", "training_others_changes_nothing"]
    assert [verdict.law for verdict in wrong.violated] == broken
    with pytest.raises(laws.CheckError, match=r"9\.\*.* decide no leaf"):
        laws.check(net, example=X, sharing={"9.*": "shared", "*": [0, 1, 1]})
