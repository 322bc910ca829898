"""From agents to slots and from one sharing to another: lossless where it can be, lossy only when asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import SHARINGS, N, Tensors, copied, looped, mlp, numbers, own, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def tree(seed: int) -> Tensors:
    """One agent's parameters, from plain torch."""
    return {name: numbers(*p.shape, seed=seed + 10 * k) for k, (name, p) in enumerate(mlp().named_parameters())}


@pytest.fixture(params=SHARINGS.values(), ids=list(SHARINGS))
def sharing(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[s for n, s in SHARINGS.items() if n != "unused"], ids=[n for n in SHARINGS if n != "unused"])
def full_sharing(request: pytest.FixtureRequest) -> Any:
    """Sharings without unused slots, which nothing could fill."""
    return request.param


def slots_of(sharing: Any) -> dict[str, fm.Sharing]:
    return fm.network(mlp, N, sharing=sharing).sharing


# --- stack ---------------------------------------------------------------------------------------------


def test_stacking_is_the_inverse_of_unstacking(full_sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=full_sharing)
    params = fm.init_params(net, 0)
    stacked = fm.stack_agents(fm.unstack_agents(net, params), sharing=full_sharing)
    assert same(stacked, params)
    mine, given = ({leaf.untyped_storage().data_ptr() for leaf in p.values()} for p in (stacked, params))
    assert not mine & given


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_agents_of_a_slot_are_merged_as_asked(full_sharing: Any, merge: Any) -> None:
    trees = [tree(seed) for seed in range(N)]
    before = [copied(t) for t in trees]
    got = fm.stack_agents(trees, sharing=full_sharing, merge=merge)
    assert list(got) == NAMES
    for name, slots in slots_of(full_sharing).items():
        for slot in range(slots.n_slots):
            members = [trees[i][name] for i in range(N) if slots[i] == slot]
            expected = members[0] if merge == "first" else sum(members, torch.zeros(())) / len(members)
            torch.testing.assert_close(got[name][slot], expected, rtol=1e-14, atol=1e-14)
    assert all(same(a, b) for a, b in zip(trees, before, strict=True))


@pytest.mark.parametrize("merge", ["error", "mean", "first"])
def test_agents_that_agree_merge_to_the_bit(full_sharing: Any, merge: Any) -> None:
    odd = {"0.weight": torch.tensor([0.1, 1e30, float("nan"), float("inf")]), "2.count": torch.tensor([3, 4])}
    slots = full_sharing
    if isinstance(slots, dict):
        slots = {"0.*": "shared", "*": "shared"}
    got = fm.stack_agents([copied(odd) for _ in range(N)], sharing=slots, merge=merge)
    for name, leaf in got.items():
        assert leaf.dtype == odd[name].dtype
        for row in leaf:
            torch.testing.assert_close(row, odd[name], rtol=0, atol=0, equal_nan=True)


def test_integers_and_bools_merge_to_the_largest() -> None:
    trees = [{"n": torch.tensor([i, 5 - i]), "b": torch.tensor([i == 1, False])} for i in range(N)]
    got = fm.stack_agents(trees, sharing="shared", merge="mean")
    assert got["n"].tolist() == [[2, 5]]
    assert got["b"].tolist() == [[True, False]]


def test_one_tree_goes_to_all_agents(full_sharing: Any) -> None:
    module = mlp()
    trees: list[Any] = [dict(module.named_parameters()), module, fm.to_tensordict(dict(module.named_parameters()))]
    stacked = [fm.stack_agents(given, n_agents=N, sharing=full_sharing) for given in trees]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    for got in stacked:
        for name, slots in slots_of(full_sharing).items():
            assert torch.equal(got[name], torch.stack([before[name]] * slots.n_slots))
            assert not got[name].requires_grad


def test_modules_and_trees_of_agents_stack_alike() -> None:
    modules = [mlp() for _ in range(N)]
    from_modules = fm.stack_agents(modules)
    assert same(from_modules, fm.stack_agents([dict(m.named_parameters()) for m in modules]))
    net, x = fm.network(mlp, N), numbers(5, N, 4)
    expected = torch.stack([m(x[:, i]) for i, m in enumerate(modules)], 1).detach()
    torch.testing.assert_close(fm.apply(net, from_modules, x), expected, rtol=1e-12, atol=1e-12)


P, Q = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 3.5])}
GAP = {"w": torch.tensor([1.0, float("nan")])}
YES, NO = {"b": torch.tensor(True)}, {"b": torch.tensor(False)}
SHARED: dict[str, Any] = {"sharing": "shared"}


@pytest.mark.parametrize(
    ("trees", "given", "error", "message"),
    [
        ([P, P, Q], {"sharing": [1, 0, 0]}, fm.SharingError, r"w: agents \[1, 2\] are to share slot 0, but agent 2 di"),
        ([P, Q], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to 2.5"),
        ([P, Q], SHARED, fm.SharingError, 'give merge="mean" or merge="first"'),
        ([YES, NO], SHARED, fm.SharingError, r"b: agents .* differs from agent 0 by up to 1;"),
        ([P, GAP], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to nan"),
        ([GAP, P], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to nan"),
        (
            [P, Q],
            {"sharing": fm.Sharing([0, 2])},
            fm.SharingError,
            r"no agent is in the slots \[1\] .*; use its .canon",
        ),
        ([P, Q], {"merge": "median"}, fm.SharingError, "'error', 'mean' or 'first', got 'median'"),
        ([P, Q], {"sharing": [0, 0, 1]}, fm.SharingError, "for each of 2 agents, got 3"),
        ([P, {"v": P["w"]}], {}, fm.StructureError, r"trees\[1\]\['w'\]: missing, expected \[2\]"),
        ([P, {**P, "v": P["w"]}], {}, fm.StructureError, r"trees\[1\]\['v'\]: not a leaf"),
        ([P, {"w": torch.ones(3)}], {}, fm.StructureError, r"trees\[1\]\['w'\]: expected \[2\], got \[3\]"),
        (
            [P, {"w": torch.ones(3)}, {"w": torch.ones(())}],
            {},
            fm.StructureError,
            r"^stack_agents: the agents' trees differ from that of agent 0\ntrees\[1\].*\ntrees\[2\]\['w'\]: expected",
        ),
        ([P, {"w": 1.0}], {}, fm.StructureError, r"expected a tensor \[2\], got float"),
        ([P, 3], {}, fm.StructureError, r"expected a dict of dotted names .* got int"),
        (iter([P, P]), {"n_agents": 2}, fm.StructureError, r"expected a dict of dotted names .* got list_iterator"),
        ([], {}, fm.StructureError, "^stack_agents: expected at least one tree, got none$"),
        (P, {}, fm.StructureError, "^stack_agents: one tree alone needs n_agents=; several trees go in a list$"),
        ([P, P], {"n_agents": 3}, fm.StructureError, "expected n_agents=3 trees, got 2"),
    ],
)
def test_trees_that_do_not_fit_are_refused(trees: Any, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fm.stack_agents(trees, **given)


# --- reshare -------------------------------------------------------------------------------------------


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


def test_what_is_split_merges_again_without_loss(full_sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=full_sharing)
    params = fm.init_params(net, 0)
    back, leaves = fm.reshare(*fm.reshare(net, params, "independent"), full_sharing)
    assert back == net
    assert same(leaves, params)


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_merging_is_that_of_the_agents_parameters(sharing: Any, full_sharing: Any, merge: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    new_net, got = fm.reshare(net, params, full_sharing, merge=merge)
    agents = [own(net, params, i) for i in range(N)]
    assert new_net.sharing == slots_of(full_sharing)
    assert same(got, fm.stack_agents(agents, sharing=full_sharing, merge=merge))


def test_relabelling_moves_rows_and_nothing_else() -> None:
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


def test_state_and_optimizer_moments_are_reshared_as_params_are() -> None:
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
        ("shared", {}, fm.SharingError, r"0.weight: agents \[0, 1, 2\] are to share slot 0, but agent 1 differs"),
        ("shared", {"merge": "max"}, fm.SharingError, "merge: expected 'error', 'mean' or 'first', got 'max'"),
        ([0, 1], {}, fm.SharingError, "for each of 3 agents, got 2"),
        ("independent", {"agents": []}, fm.StructureError, "indices below 3, at least one, got"),
        ("independent", {"agents": [0, 3]}, fm.StructureError, r"indices below 3, at least one, got \[0, 3\]"),
        ("independent", {"agents": [-1]}, fm.StructureError, r"got \[-1\]"),
        (fm.Sharing([0, 1, 2], 4), {}, fm.SharingError, r"no agent is in the slots \[3\]"),
        ({"0.*": "shared"}, {}, fm.SharingError, "no pattern of"),
    ],
)
def test_sharings_that_do_not_fit_are_refused_and_change_nothing(
    spec: Any, given: Any, error: Any, message: str
) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    before = copied(params)
    with pytest.raises(error, match=message):
        fm.reshare(net, params, spec, **given)
    assert same(params, before)


def test_params_of_another_network_are_refused() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net.replace(sharing="shared"), 0)
    with pytest.raises(fm.StructureError, match=r"params\['0.weight'\]: expected \[3, 5, 4\], got \[1, 5, 4\]"):
        fm.reshare(net, params, "shared")


def test_the_mean_of_one_agent_is_that_agent_to_the_bit() -> None:
    zeros = torch.tensor([0.0, -0.0])
    got = fm.stack_agents([{"w": zeros}, {"w": zeros + 1}], merge="mean")["w"]
    assert torch.equal(got[0].view(torch.int32), zeros.view(torch.int32))


def test_the_mean_of_agents_that_agree_is_theirs_to_the_bit() -> None:
    numbers = torch.tensor([0.8597666025161743, -0.0, 3e38, float("inf")])
    assert numbers.expand(3, 4).mean(0).tolist()[::2] != numbers.tolist()[::2]  # it rounds, and overflows
    got = fm.stack_agents([{"w": numbers}] * 3, sharing="shared", merge="mean")["w"]
    assert torch.equal(got[0].view(torch.int32), numbers.view(torch.int32))


def test_the_mean_is_taken_in_every_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        leaves: list[Tensor] = [torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([3.0, 2.0], dtype=dtype)]
        got = fm.stack_agents([{"w": leaf} for leaf in leaves], sharing="shared", merge="mean")["w"]
        assert got.dtype == dtype
        assert got[0].tolist() == [2.0, 2.0]
