"""Edits of the one-agent module: attributes, layers and modes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from functional_marl._errors import StructureError
from tests.nn.facade_cases import OURS, both, mlp, shared, stored, subclass

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def no_dropout(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def dropout_in_evaluation(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.eval()


def dropout_replaced(net: Any) -> None:
    for name, part in list(net._empty_net.named_children()):
        if isinstance(part, nn.Dropout):
            setattr(net._empty_net, name, nn.Identity())


@both
@stored
@shared
@pytest.mark.parametrize("edit", [no_dropout, dropout_in_evaluation, dropout_replaced])
def test_the_next_call_sees_edits(lib: Any, td: bool, share: bool, edit: Callable[[nn.Module], None]) -> None:
    net = mlp(lib, use_td_params=td, share_params=share, dropout=0.5)
    assert not torch.equal(net(X), net(X))
    expected = net.eval()(X)
    net.train()
    edit(net)
    torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(net.eval()(X), expected)


@stored
@shared
def test_dropout_is_active_again_after_train(td: bool, share: bool) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share, dropout=0.5)
    dropout_in_evaluation(net)
    assert torch.equal(net(X), net(X))
    assert torch.equal(pickle.loads(pickle.dumps(net))(X), net(X))
    net.train()
    assert not torch.equal(net(X), net(X))


@stored
@shared
def test_a_batch_norm_in_evaluation_keeps_its_buffers(td: bool, share: bool) -> None:
    net = subclass(OURS, normed)(share, use_td_params=td)
    net(X)  # moves the running mean
    net._empty_net[1].eval()
    net._empty_net[2].eval()
    before = {k: t.clone() for k, t in net.state_dict().items()}
    y = net(X)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    torch.testing.assert_close(y, net.eval()(X))
    net.train()(X)
    name = "params.1.running_mean" if td else "_empty_net.1.running_mean"
    assert not torch.equal(net.state_dict()[name], before[name])


@stored
def test_a_mode_of_the_whole_is_no_edit(td: bool) -> None:
    net = mlp(OURS, use_td_params=td)
    net(X)
    made = net._net
    net.eval()(X)
    net.train()(X)
    assert net._net is made
    net._empty_net[1] = nn.ReLU()
    net(X)
    assert net._net is not made


@stored
def test_a_new_layer_with_parameters_is_refused(td: bool) -> None:
    net = mlp(OURS, use_td_params=td)
    net._empty_net[0] = nn.Linear(6, 8)
    with pytest.raises(StructureError, match=r"_empty_net: .*with \['0.weight', '0.bias'\] as new ones; build a new"):
        net(X)
