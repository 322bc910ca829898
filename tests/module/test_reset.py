"""A module given in place of a factory: copies of it, initialized by its own resets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import N, copied, same
from tests.module.modules import Bare


def test_a_module_is_copied_not_changed_and_initialized_again() -> None:
    linear, norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    norm.register_buffer("extra", torch.tensor([7.0]))
    module = nn.Sequential(linear, norm, nn.Dropout(0.5))
    module.requires_grad_(False).eval()
    before = copied(module.state_dict())
    net = fm.network(module, N)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    fm.apply(net, params, torch.ones(2, N, 4), train=True, mutable=True, key=0)
    assert same(module.state_dict(), before)
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(part.training for part in module.modules())
    assert not torch.equal(params["0.weight"][0], linear.weight)
    assert state["1.extra"].tolist() == [[7.0]] * N
    with torch.no_grad():
        linear.weight.zero_()
    assert same(fm.init_params(net, 0), params)


def test_a_module_whose_reset_leaves_a_leaf_is_refused_and_the_leaf_named() -> None:
    net: Callable[[], Any] = lambda: fm.network(Bare(), N)
    with pytest.raises(fm.StructureError, match=r"no reset_parameters.. fills \['scale', 'several.0'.*give a factory"):
        net()
    kept = nn.Linear(2, 2)
    kept.register_parameter("frozen", nn.Parameter(torch.tensor([3, 4]), requires_grad=False))
    given = fm.network(kept, N)
    assert fm.init_params(given, 0)["frozen"].tolist() == [[3, 4]] * N


def test_a_module_may_be_given_where_only_parameters_from_elsewhere_are_used() -> None:
    module = nn.Linear(4, 2)
    net = fm.network(module, N, sharing="shared")
    params = fm.stack_agents(module, n_agents=N, sharing="shared")
    x = torch.ones(2, N, 4)
    torch.testing.assert_close(fm.apply(net, params, x), module(x).detach())
