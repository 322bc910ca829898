"""Known faults of torchrl 0.14.1: each test shows the fault in torchrl, and that it is absent here.

The first half of each test is for torchrl. If it fails one day, torchrl has repaired the fault. Remove it then here
and in the README.
"""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from functional_marl._errors import RandomnessError
from tests.nn.facade_cases import OURS, TORCHRL, mlp, shared, stored, subclass

X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))


def zeros(net: nn.Module) -> dict[str, Tensor]:
    return {k: p * 0 for k, p in net.named_parameters()}


def test_a_deepcopy_computes_with_its_own_parameters() -> None:
    def detached(lib: Any) -> bool:
        net = copy.deepcopy(mlp(lib, use_td_params=False))
        for p in net.parameters():
            p.data.zero_()
        return bool((net(X) != 0).any())

    assert detached(TORCHRL)
    assert not detached(OURS)


def test_functional_call_reaches_the_parameters() -> None:
    theirs = mlp(TORCHRL, use_td_params=False)
    assert bool((functional_call(theirs, zeros(theirs), (X,)) != 0).any())
    theirs = mlp(TORCHRL)
    with pytest.raises(RuntimeError, match="locked"):
        functional_call(theirs, zeros(theirs), (X,))
    for td in (True, False):
        for share in (True, False):
            ours = mlp(OURS, use_td_params=td, share_params=share)
            before = ours(X)
            assert bool((functional_call(ours, zeros(ours), (X,)) == 0).all())
            assert torch.equal(ours(X), before)


def test_export_stores_no_constants_and_does_not_change_the_module() -> None:
    theirs = mlp(TORCHRL, use_td_params=False)
    assert torch.export.export(theirs, (X,), strict=False).constants
    theirs = mlp(TORCHRL, share_params=True)
    torch.export.export(theirs, (X,), strict=False)
    with pytest.raises(RuntimeError, match="meta"):
        theirs(X)
    for td in (True, False):
        for share in (True, False):
            ours = mlp(OURS, use_td_params=td, share_params=share)
            before, keys = ours(X), list(ours.state_dict())
            exported = torch.export.export(ours, (X,), strict=False)
            assert not exported.constants
            torch.testing.assert_close(exported.module()(X), before)
            assert torch.equal(ours(X), before)
            assert list(ours.state_dict()) == keys


def test_params_of_the_template_are_live() -> None:
    for lib, live in ((TORCHRL, False), (OURS, True)):
        net = mlp(lib, use_td_params=False)
        net._empty_net[0].weight = nn.Parameter(torch.zeros(3, 8, 6))
        assert bool((net.params["0", "weight"] == 0).all()) == live
        assert torch.equal(net(X), net(X * 2)) == live


def test_agents_of_a_lazy_network_have_different_dropout_masks() -> None:
    ones = torch.ones(1, 3, 6)
    for lib, mode in ((TORCHRL, "same"), (OURS, "different")):
        torch.manual_seed(0)
        net = lib.MultiAgentMLP(None, 8, 3, centralized=False, share_params=False, num_cells=[64], dropout=0.5)
        net(ones)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(p[:1].expand_as(p).clone())
        y = net(ones)[0]
        assert torch.allclose(y[0], y[1]) == (mode == "same")


def test_vmap_randomness_has_an_effect_under_sharing() -> None:
    ones = torch.ones(1, 3, 6)
    for share in (True, [0, 0, 0]):
        net = mlp(OURS, share_params=share, dropout=0.5, num_cells=64, vmap_randomness="same")
        y = net(ones)[0]
        torch.testing.assert_close(y[0], y[1])  # rows of one product may be rounded differently
        with pytest.raises(RandomnessError):
            mlp(OURS, share_params=share, dropout=0.5, vmap_randomness="error")(ones)
    y = mlp(TORCHRL, share_params=True, dropout=0.5, num_cells=64, vmap_randomness="same")(ones)[0]
    assert not torch.equal(y[0], y[1])
    mlp(TORCHRL, share_params=True, dropout=0.5, vmap_randomness="error")(ones)


def test_tied_weights_stay_tied() -> None:
    for lib, tied in ((TORCHRL, False), (OURS, True)):
        net = subclass(lib)(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(X).square().sum().backward()
        optimizer.step()
        assert torch.equal(net.params["a", "weight"], net.params["b", "weight"]) == tied


@shared
def test_reset_reaches_bare_parameters(share: bool) -> None:
    for lib, reached in ((TORCHRL, False), (OURS, True)):
        net = subclass(lib)(share)
        before = net.params["bare"].detach().clone()
        net.reset_parameters()
        assert bool((net.params["bare"] != before).all()) == reached


def test_reset_reaches_the_cells_of_independent_networks() -> None:
    for lib, reached in ((TORCHRL, False), (OURS, True)):
        net = subclass(lib, lambda: nn.Sequential(nn.GRUCell(6, 4)))(False)
        before = {k: leaf.detach().clone() for k, leaf in net.params.items(True, True)}
        net.reset_parameters()
        assert all(bool((leaf != before[k]).all()) == reached for k, leaf in net.params.items(True, True))


def test_a_pruned_template_is_called() -> None:
    for lib, called in ((TORCHRL, False), (OURS, True)):
        net = mlp(lib, share_params=True, use_td_params=False)
        prune.l1_unstructured(net._empty_net[0], "weight", 0.5)
        if called:
            torch.testing.assert_close(net(X), net._empty_net(X))
        else:
            with pytest.raises(TypeError, match="cannot assign"):
                net(X)


def test_independent_lazy_networks_have_other_initial_parameters() -> None:
    """Not a fault, but a difference: the README lists it beside the masks of dropout."""
    weights: list[Tensor] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        net = lib.MultiAgentMLP(None, 2, 3, centralized=False, share_params=False, depth=1)
        net(X)
        weights.append(net.params["0", "weight"].detach())
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


@stored
def test_a_checkpoint_loads_into_a_lazy_network(td: bool) -> None:
    full = mlp(TORCHRL, use_td_params=td)

    def lazy(lib: Any) -> Any:
        given: dict[str, Any] = {"centralized": False, "share_params": False, "depth": 2, "num_cells": 8}
        return lib.MultiAgentMLP(None, 2, 3, use_td_params=td, **given)

    with pytest.raises((ValueError, RuntimeError)):
        lazy(TORCHRL).load_state_dict(full.state_dict())
    ours = lazy(OURS)
    ours.load_state_dict(full.state_dict())
    torch.testing.assert_close(ours(X), full(X))


def test_a_lazy_network_saves_and_copies() -> None:
    options: dict[str, Any] = {"centralized": False, "share_params": False, "depth": 1}
    theirs = TORCHRL.MultiAgentMLP(None, 2, 3, **options)
    with pytest.raises(ValueError, match="uninitialized"):
        theirs.state_dict()
    with pytest.raises(RuntimeError):
        copy.deepcopy(theirs)
    ours = OURS.MultiAgentMLP(None, 2, 3, **options)
    other = OURS.MultiAgentMLP(None, 2, 3, **options)
    other.load_state_dict(ours.state_dict())
    torch.manual_seed(0)
    y = copy.deepcopy(ours)(X)
    torch.manual_seed(0)
    torch.testing.assert_close(other(X), y)


def test_batch_norm_is_per_agent_and_moves_between_devices() -> None:
    options: dict[str, Any] = {"norm_class": nn.BatchNorm1d, "norm_kwargs": {"num_features": 8}}
    with pytest.raises(RuntimeError, match="running_mean"):
        mlp(TORCHRL, share_params=True, **options)(X)
    with pytest.raises(NotImplementedError, match="meta"):
        mlp(TORCHRL, **options).to("cpu")
    one, own = mlp(OURS, share_params=True, **options), mlp(OURS, share_params=False, **options)
    own.load_state_dict(OURS.convert_state_dict(one.state_dict(), own))
    torch.testing.assert_close(one(X), own(X))
    assert not any(b.is_meta for b in one.to("cpu").buffers())


def test_calls_from_threads_do_not_affect_each_other() -> None:
    def wrong(lib: Any, calls: int) -> int:
        net = mlp(lib)
        expected = net(X).detach()
        good: list[bool] = []

        def work() -> None:
            for _ in range(calls):
                try:
                    good.append(torch.allclose(net(X), expected))
                except Exception:
                    good.append(False)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        return good.count(False)

    assert any(wrong(TORCHRL, 100) for _ in range(20))  # nearly every try shows it
    assert wrong(OURS, 300) == 0


def test_a_group_map_does_not_alias_the_callers_list() -> None:
    for lib, aliased in ((TORCHRL, True), (OURS, False)):
        names = ["a", "b"]
        groups = lib.MarlGroupMapType.ALL_IN_ONE_GROUP.get_group_map(names)
        names.append("c")
        assert ("c" in groups["agents"]) == aliased


def test_qmix_accepts_any_memory_layout_and_no_other_batch() -> None:
    values, state = torch.randn(5, 2, 3, 1), torch.randn(5, 2, 4)
    flipped = (values.transpose(0, 1), state.transpose(0, 1))
    theirs, ours = (lib.QMixer((4,), 8, 3, "cpu") for lib in (TORCHRL, OURS))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(values, state), theirs(values, state))
    with pytest.raises(RuntimeError, match="view"):
        theirs(*flipped)
    torch.testing.assert_close(ours(*flipped), ours(values, state).transpose(0, 1))
    other = state.transpose(0, 1).contiguous()
    theirs(values, other)  # mixes rows of one batch with states of another
    with pytest.raises(ValueError, match=r"batch axes.*\[5, 2\].*\[2, 5\]"):
        ours(values, other)
    with pytest.raises(ValueError, match="state"):
        TORCHRL.QMixer([4], 8, 3, "cpu")(values, state)
    assert OURS.QMixer([4], 8, 3, "cpu")(values, state).shape == (5, 2, 1)


def test_a_checkpoint_of_another_sharing_raises_with_the_fix() -> None:
    one, own = mlp(OURS, share_params=True), mlp(OURS)
    with pytest.raises(RuntimeError, match=r"params.0.weight: expected \[3, 8, 6\], got \[8, 6\].*convert_state_dict"):
        own.load_state_dict(one.state_dict())
