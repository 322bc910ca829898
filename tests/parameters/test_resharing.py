"""From one sharing to another: splitting slots is lossless, merging them is lossy and only on request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import N, Tensors, copied, looped, mlp, numbers, own, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def tree(seed: int) -> Tensors:
    """One agent's parameters, from plain torch."""
    return {name: numbers(*p.shape, seed=seed + 10 * k) for k, (name, p) in enumerate(mlp().named_parameters())}


def slots_of(sharing: Any) -> dict[str, fm.Sharing]:
    return fm.network(mlp, N, sharing=sharing).sharing


def test_splitting_slots_changes_no_output(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing, randomness="same", strategy="loop")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    before = copied(params)
    split, leaves = fm.reshare(net, params, "independent")
    assert split == net.replace(sharing="independent")
    assert torch.equal(fm.apply(split, leaves, x), fm.apply(net, params, x))
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.zero_()
    assert same(params, before)


def test_split_slots_merge_again_without_loss(full_sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=full_sharing)
    params = fm.init_params(net, 0)
    back, leaves = fm.reshare(*fm.reshare(net, params, "independent"), full_sharing)
    assert back == net
    assert same(leaves, params)


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_resharing_merges_as_stacking_the_agents_does(sharing: Any, full_sharing: Any, merge: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    new_net, got = fm.reshare(net, params, full_sharing, merge=merge)
    agents = [own(net, params, i) for i in range(N)]
    assert new_net.sharing == slots_of(full_sharing)
    assert same(got, fm.stack_agents(agents, sharing=full_sharing, merge=merge))


def test_renumbering_slots_only_moves_rows() -> None:
    net = fm.network(mlp, N, sharing=[0, 1, 0])
    params = fm.init_params(net, 0)
    _, got = fm.reshare(net, params, [1, 0, 1])
    assert same(got, {name: leaf[[1, 0]] for name, leaf in params.items()})


@pytest.mark.parametrize("agents", [[0], [2, 1, 0], [0, 0, 1, 1, 2, 2], [1, 1], (2,)])
def test_a_team_grows_shrinks_and_reorders(sharing: Any, agents: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    team, leaves = fm.reshare(net, params, "independent", agents=agents)
    assert team.n_agents == len(agents)
    for new, old in enumerate(agents):
        assert same(fm.agent_params(team, leaves, new), own(net, params, old))
    x = numbers(5, N, 4)
    expected = looped(net, params, x)[:, list(agents)]
    torch.testing.assert_close(fm.apply(team, leaves, x[:, list(agents)]), expected, rtol=1e-12, atol=1e-12)


def test_a_grown_team_may_share() -> None:
    net = fm.network(mlp, 2)
    params = fm.init_params(net, 0)
    team, leaves = fm.reshare(net, params, [0, 0, 1, 1], agents=[1, 1, 0, 0])
    assert same(leaves, {name: leaf[[1, 0]] for name, leaf in params.items()})
    assert team.sharing["0.bias"] == fm.Sharing([0, 0, 1, 1])


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()


def test_states_and_optimizer_moments_reshare_like_params() -> None:
    net = fm.network(normed, N)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    x = numbers(N, 6, 4)
    net = net.replace(agent_dim=0)
    _, state = fm.apply(net, params, x, state=state, train=True, mutable=True)
    merged_net, merged = fm.reshare(net, params, [0, 0, 1], merge="mean")
    other_net, merged_state = fm.reshare(net, state, [0, 0, 1], merge="mean")
    assert other_net == merged_net
    mean = state["1.running_mean"]
    torch.testing.assert_close(merged_state["1.running_mean"], torch.stack([mean[:2].mean(0), mean[2]]))
    assert merged_state["1.num_batches_tracked"].tolist() == [1, 1]
    assert fm.apply(merged_net, merged, x, state=merged_state).shape == (N, 6, 4)
    squares = {name: leaf**2 for name, leaf in params.items()}
    _, moments = fm.reshare(net, squares, [0, 0, 1], merge="mean")
    expected = (params["0.bias"][0] ** 2 + params["0.bias"][1] ** 2) / 2
    torch.testing.assert_close(moments["0.bias"][0], expected)


def test_the_empty_state_of_a_network_without_buffers_is_reshared_too() -> None:
    net = fm.network(mlp, N)
    new_net, state = fm.reshare(net, fm.init_state(net), "shared")
    assert state == {}
    assert new_net.sharing["0.bias"].is_shared
    assert fm.unstack_agents(net, {}) == [{}] * N


def test_gradients_stop_at_new_parameters() -> None:
    net = fm.network(mlp, N)
    params = {name: leaf.requires_grad_() for name, leaf in fm.init_params(net, 0).items()}
    for merge in ("mean", "first"):
        _, leaves = fm.reshare(net, params, "shared", merge=merge)
        assert not any(leaf.requires_grad for leaf in leaves.values())


@pytest.mark.parametrize(
    ("spec", "given", "error", "message"),
    [
        ("shared", {}, fm.SharingError, r"0.weight: agents \[0, 1, 2\] should share slot 0, but agent 1 differs"),
        ("shared", {"merge": "max"}, fm.SharingError, "merge: expected one of 'error', 'mean', 'first', got 'max'"),
        ([0, 1], {}, fm.SharingError, "for each of 3 agents, got 2"),
        ("independent", {"agents": []}, fm.StructureError, "indices below 3, at least one, got"),
        ("independent", {"agents": [0, 3]}, fm.StructureError, r"indices below 3, at least one, got \[0, 3\]"),
        ("independent", {"agents": [-1]}, fm.StructureError, r"got \[-1\]"),
        (fm.Sharing([0, 1, 2], 4), {}, fm.SharingError, r"no agent is in the slots \[3\]"),
        ({"0.*": "shared"}, {}, fm.SharingError, "no pattern of"),
    ],
)
def test_wrong_sharings_raise_and_change_nothing(spec: Any, given: Any, error: Any, message: str) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    before = copied(params)
    with pytest.raises(error, match=message):
        fm.reshare(net, params, spec, **given)
    assert same(params, before)


def test_params_of_another_network_raise() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net.replace(sharing="shared"), 0)
    with pytest.raises(fm.StructureError, match=r"params\['0.weight'\]: expected \[3, 5, 4\], got \[1, 5, 4\]"):
        fm.reshare(net, params, "shared")
