"""Lazy layers: they get their shapes from ``example=``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import N
from tests.module.modules import CustomForward


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))


def test_lazy_layers_get_their_shapes_from_the_example() -> None:
    net = fm.network(lazy, N, example=torch.zeros(1, 4), agent_dim=0)
    assert net.param_shapes["0.weight"] == (N, 5, 4)
    params = fm.init_params(net, 0)
    assert all(bool(leaf.isfinite().all()) for leaf in params.values())
    assert not torch.equal(params["0.weight"][0], params["0.weight"][1])
    assert float(fm.init_state(net)["1.num_batches_tracked"].sum()) == 0
    assert fm.apply(net, params, torch.zeros(N, 6, 4)).shape == (N, 6, 2)


def test_a_lazy_module_that_was_given_stays_lazy() -> None:
    module = nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(2))
    net = fm.network(module, N, example=(torch.zeros(1, 4),))
    assert isinstance(module[0], nn.LazyLinear)
    assert isinstance(next(module.parameters()), nn.UninitializedParameter)
    assert net.param_shapes["1.weight"] == (N, 2, 5)
    with pytest.raises(fm.StructureError, match=r"cannot be copied .* lazy buffers can only come from a fac"):
        fm.network(lazy(), N, example=torch.zeros(1, 4))


def test_lazy_layers_without_shapes_are_named() -> None:
    with pytest.raises(fm.StructureError, match=r"lazy leaves \['0.weight'.* have no shapes yet; give example="):
        fm.network(lazy, N)
    unused = lambda: CustomForward(lambda self, x: self.linear(x), other=nn.LazyLinear(2))
    with pytest.raises(fm.StructureError, match=r"lazy leaves \['other.weight', 'other.bias'\] got no shapes"):
        fm.network(unused, N, example=torch.zeros(4, dtype=torch.float64))
