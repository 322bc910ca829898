"""What users do to the one-agent module inside: edits of it, and the buffers that torchrl keeps there twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import functional_marl as fm
import functional_marl.nn as fnn
from functional_marl._errors import StructureError
from tests.nn.facade_cases import OURS, TORCHRL, both, mlp, shared, stored, subclass

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


# --- edits ------------------------------------------------------------------------------------------------


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
def test_edits_of_the_template_are_seen(lib: Any, td: bool, share: bool, edit: Callable[[nn.Module], None]) -> None:
    net = mlp(lib, use_td_params=td, share_params=share, dropout=0.5)
    assert not torch.equal(net(X), net(X))
    expected = net.eval()(X)
    net.train()
    edit(net)
    torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(net.eval()(X), expected)


@stored
@shared
def test_dropout_back_in_training_drops_again(td: bool, share: bool) -> None:
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
def test_a_mode_of_the_whole_makes_nothing_anew(td: bool) -> None:
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


# --- checkpoints with buffers -----------------------------------------------------------------------------


@stored
@shared
def test_checkpoints_with_buffers(td: bool, share: bool) -> None:
    ours, theirs = (subclass(lib, normed)(share, use_td_params=td) for lib in (OURS, TORCHRL))
    with torch.no_grad():
        for leaf in (*ours.parameters(), *ours.buffers()):
            leaf.copy_(torch.arange(leaf.numel()).reshape(leaf.shape))
    own, other = ours.state_dict(), theirs.state_dict()
    # With td_params torchrl writes the buffers of its template too, on the meta device: tensors of no numbers.
    empty = {k for k, t in other.items() if t.is_meta}
    assert empty == (
        {f"_empty_net.1.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")} if td else set()
    )
    assert {k: t.shape for k, t in own.items()} == {k: t.shape for k, t in other.items() if k not in empty}
    again = subclass(OURS, normed)(share, use_td_params=td)
    again.load_state_dict(other)  # strict
    # torchrl demands them back when strict; nothing else is missing.
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert (set(missing), unexpected) == (empty, [])
    assert all(torch.equal(t, own[k]) for k, t in theirs.state_dict().items() if k not in empty)
    theirs.load_state_dict({**own, **{k: other[k] for k in empty}})


@stored
def test_a_checkpoint_with_buffers_is_all_numbers(td: bool) -> None:
    # why ours leaves torchrl's meta tensors out: what holds them can neither be stored nor averaged
    own, other = (dict(subclass(lib, normed)(False, use_td_params=td).state_dict()) for lib in (OURS, TORCHRL))
    loaded = safetensors.torch.load(safetensors.torch.save(own))
    assert all(torch.equal(t, own[k]) for k, t in loaded.items())
    if td:
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            {k: t.cpu() for k, t in other.items()}


# --- a team in the place of one agent ------------------------------------------------------------------


class Squad(nn.Module):
    """One agent that is a team of three: the parameters of the team are its own."""

    def __init__(self, team: Any) -> None:
        super().__init__()
        self.net, params, _ = team.functional()
        self.names = list(params)
        self.leaves = nn.ParameterList(params.values())

    def forward(self, x: Tensor) -> Tensor:
        return fm.apply(self.net, dict(zip(self.names, self.leaves, strict=True)), x)


@pytest.mark.parametrize("td", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_a_team_is_no_agent_but_its_functional_form_is(share: bool, td: bool) -> None:
    def team() -> Any:
        return fnn.MultiAgentMLP(4, 2, 3, centralized=False, share_params=share, depth=1, use_td_params=td)

    for build, where in ((team, "the module"), (lambda: nn.Sequential(nn.Tanh(), team()), "1")):
        for given in (build, build()):
            with pytest.raises(fm.StructureError, match=rf"build: {where} \(MultiAgentMLP\) is a network of several"):
                fm.network(given, 2)
    for strategy in ("auto", "vmap", "loop"):
        net = fm.network(lambda: Squad(team()), 2, agent_dim=0, strategy=strategy)
        params, x = fm.init_params(net, 0), torch.randn(2, 5, 3, 4)
        wanted = [fm.agent_module(net, params, i)(x[i]) for i in range(2)]
        torch.testing.assert_close(fm.apply(net, params, x), torch.stack(wanted).detach())
