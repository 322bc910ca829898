"""Edits of the one-agent module that change its leaves: pruning, weight norms, parametrizations, quantization."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from functional_marl._errors import StructureError
from tests.nn.facade_cases import OURS, mlp, shared, stored, subclass

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")  # torch's own


class Half(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / 2


def pruned(layer: Any) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)


EDITS: dict[str, Callable[[Any], Any]] = {
    "prune": pruned,
    "prune twice": lambda layer: (pruned(layer), pruned(layer)),
    "prune rows": lambda layer: prune.ln_structured(layer, "weight", 0.5, 2, 0),
    "old weight norm": torch.nn.utils.weight_norm,
    "old spectral norm": spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "half": lambda layer: parametrize.register_parametrization(layer, "weight", Half()),
}
edits = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)


@edits
@pytest.mark.parametrize("called", [True, False])
def test_a_shared_network_accepts_edits_of_its_leaves(edit: Callable[[Any], Any], called: bool) -> None:
    """The oracle is the module of one agent under the same edit, called on each agent's input."""
    net = mlp(OURS, share_params=True, use_td_params=False).eval()
    alone = copy.deepcopy(net._empty_net)
    if called:
        net(X)
    for module in (net._empty_net, alone):
        torch.manual_seed(1)
        edit(module[2])
    expected = torch.stack([alone(x) for x in X.unbind(1)], 1)
    torch.testing.assert_close(net(X), expected)
    assert list(net.state_dict()) == [f"_empty_net.{k}" for k in alone.state_dict()]
    expected.square().sum().backward()
    net(X).square().sum().backward()
    for (name, p), q in zip(alone.named_parameters(), net.parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(q.grad, p.grad)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert all(not torch.equal(p, before[k]) for k, p in net.named_parameters())
    assert not torch.allclose(net(X), expected)


def test_pruning_is_added_and_removed() -> None:
    net = mlp(OURS, share_params=True, use_td_params=False)
    y, keys = net(X), list(net.state_dict())
    prune.identity(net._empty_net[0], "weight")
    assert "_empty_net.0.weight_mask" in net.state_dict()
    torch.testing.assert_close(net(X), y)
    prune.remove(net._empty_net[0], "weight")
    torch.testing.assert_close(net(X), y)
    assert sorted(net.state_dict()) == sorted(keys)
    net.reset_parameters()
    assert not torch.allclose(net(X), y)


@edits
@pytest.mark.parametrize(("td", "share"), [(True, True), (True, False), (False, False), (False, [0, 0, 1])], ids=str)
def test_other_networks_refuse_edits_of_their_leaves(edit: Callable[[Any], Any], td: bool, share: Any) -> None:
    """Those of several agents at once would mix them: a spectral norm of ``[n, out, in]``, say."""
    net = mlp(OURS, share_params=share, use_td_params=td)
    net(X)
    try:
        edit(net._empty_net[0])
    except (TypeError, KeyError, ValueError, IndexError):  # torch's: no parameter of this name, or one of three axes
        assert td or edit is EDITS["prune"]
        return
    with pytest.raises(StructureError, match=r"_empty_net: .*as new ones.*_build_single_net.*share_params=True"):
        net(X)


@edits
@stored
@pytest.mark.parametrize("share", [True, False, [0, 0, 1]], ids=["shared", "independent", "clusters"])
def test_edits_in_build_single_net(edit: Callable[[Any], Any], td: bool, share: Any) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
        edit(net[0])
        return net

    net = subclass(OURS, build)(share, use_td_params=td).eval()
    slots = [0, 0, 0] if share is True else [0, 1, 2] if share is False else share
    torch.manual_seed(0)  # that of subclass()
    modules = [build().eval() for _ in range(max(slots) + 1)]
    torch.testing.assert_close(net(X), torch.stack([modules[s](x) for s, x in zip(slots, X.unbind(1), strict=True)], 1))
    net(X).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_shared_network_accepts_a_new_head() -> None:
    net = mlp(OURS, share_params=True, use_td_params=False)
    net(X)
    net._empty_net[4] = nn.Linear(8, 5)
    assert net(X).shape == (5, 3, 5)
    torch.testing.assert_close(net(X), net._empty_net(X))
    net._empty_net[4] = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    torch.testing.assert_close(net(X), net._empty_net(X))
    assert "_empty_net.4.1.weight" in net.state_dict()
    assert pickle.loads(pickle.dumps(net))(X).shape == copy.deepcopy(net)(X).shape == (5, 3, 1)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # torch.ao's own
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_shared_network_is_quantized() -> None:
    net = mlp(OURS, share_params=True, use_td_params=False).eval()
    small: Any = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})  # pyright: ignore
    expected = torch.stack([small._empty_net(x) for x in X.unbind(1)], 1)
    torch.testing.assert_close(small(X), expected)
    torch.testing.assert_close(small(X), net(X), atol=0.1, rtol=0.1)
    assert not torch.equal(small(X), net(X))


@stored
@shared
def test_a_removed_leaf_is_named(td: bool, share: bool) -> None:
    net = mlp(OURS, share_params=share, use_td_params=td)
    net(X)
    if td:
        net._empty_net[0] = nn.Identity()
    else:
        net._empty_net[0].bias = None
    if share and not td:
        net._empty_net[1] = nn.Tanh()
        torch.testing.assert_close(net(X), net._empty_net(X))
    else:
        with pytest.raises(StructureError, match=r"_empty_net: .*0\.bias"):
            net(X)


@stored
def test_a_stateful_net_without_a_copy_is_no_new_layer(td: bool) -> None:
    net = mlp(OURS, use_td_params=td, dropout=0.5)
    net(X)
    net.get_stateful_net(copy=False)
    net._empty_net[1].p = 0.0
    net._empty_net[4].p = 0.0
    torch.testing.assert_close(net(X), net.eval()(X))


USES: dict[str, Callable[[Any], Any]] = {
    "call": lambda net: net(X),
    "functional": lambda net: net.functional(),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_an_edit_that_is_refused_is_refused_by_every_use(use: Callable[[Any], Any]) -> None:
    net = mlp(OURS, share_params=False, use_td_params=False)
    parametrize.register_parametrization(net._empty_net[0], "weight", Half(), unsafe=True)
    with pytest.raises(StructureError, match=r"_empty_net: expected the leaves .*original.* as new ones"):
        use(net)


def test_edits_before_the_first_call_are_taken_over() -> None:
    net = mlp(OURS, share_params=True, use_td_params=False)
    parametrize.register_parametrization(net._empty_net[0], "weight", Half())
    functional, params, _ = net.functional()
    assert "0.parametrizations.weight.original" in params
    assert functional.param_shapes.keys() == params.keys()
    torch.testing.assert_close(copy.deepcopy(net)(X), net(X))
