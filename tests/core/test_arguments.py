"""What users type first: numpy's integers, populations, lists of slots, and what is no call at all."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import functional_marl as fm
from functional_marl._merging import merged_state
from functional_marl.laws import check
from tests.builders import N, mlp, numbers, same

I: Any = np.int64  # as of env.action_space(agent).n  # noqa: E741


def test_integers_of_numpy_go_wherever_an_int_does() -> None:
    net = fm.network(fm.nets.mlp(I(4), I(5), I(2)), I(3), sharing=[I(0), I(0), I(1)], agent_dim=I(-2))
    plain = fm.network(fm.nets.mlp(4, 5, 2), 3, sharing=[0, 0, 1])
    assert (net.sharing, net.agent_dim, net.n_agents) == (plain.sharing, -2, 3)
    params = fm.init_params(net, I(7))
    assert same(params, fm.init_params(plain, 7))
    x = torch.rand(5, 3, 4)
    assert torch.equal(fm.apply(net, params, x, key=I(1)), fm.apply(plain, params, x, key=1))
    assert same(fm.agent_params(net, params, I(2)), fm.agent_params(net, params, 2))
    grown = fm.reshare(net, params, "independent", agents=np.array([2, 0]))  # pyright: ignore
    assert same(grown[1], fm.reshare(net, params, "independent", agents=[2, 0])[1])
    tree = fm.agent_params(net, params, 0)
    assert same(fm.stack_agents(tree, n_agents=I(2)), fm.stack_agents(tree, n_agents=2))
    assert fm.Sharing([0, 2], I(4)) == fm.Sharing(np.array([0, 2]), 4)
    assert fm.Sharing.shared(I(3)) == fm.Sharing.shared(3)
    assert net.replace(n_agents=I(2), sharing="shared").n_agents == 2
    assert torch.equal(fm.key(I(5)), fm.key(5))
    assert torch.equal(fm.split(I(5), I(3)), fm.split(5, 3))
    assert torch.equal(fm.fold_in(0, I(9)), fm.fold_in(0, 9))
    assert torch.equal(fm.with_agent_ids(x, I(1)), fm.with_agent_ids(x, 1))
    assert torch.equal(fm.random.uniform(0, (I(2), I(3))), fm.random.uniform(0, (2, 3)))
    data = {"a": x, "b": x}
    grouped = fm.group_agents({"g": ["a", "b"]}, data, I(1))
    assert torch.equal(grouped["g"], torch.stack([x, x], 1))
    for build in (fm.nets.gru(I(4), I(5)), fm.nets.lstm(I(4), I(5)), fm.nets.convnet([I(3), I(4)], I(3), I(1), I(0))):
        assert all(isinstance(p, nn.Parameter) for p in build().parameters())


# --- populations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_trees_of_a_population_are_told_of_vmap_in_one_line(batch: tuple[int, ...]) -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = fm.init_params(net, fm.split(0, 6).view(*batch, 2))
    calls: list[Any] = [
        lambda: fm.apply(net, params, numbers(5, N, 4)),
        lambda: fm.agent_params(net, params, 0),
        lambda: fm.agent_module(net, params, 0),
        lambda: fm.unstack_agents(net, params),
        lambda: fm.reshare(net, params, "independent"),
    ]
    for call in calls:
        with pytest.raises(fm.StructureError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(f"params: every leaf has the axes {list(batch)} in front of [slots, *leaf]")
        assert "torch.func.vmap(lambda p: fm.apply(net, p, x))(params)" in text
        assert "\n" not in text


def test_what_the_message_says_is_right() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = fm.init_params(net, fm.split(0, 2))
    one: Any = lambda p: {name: leaf[p] for name, leaf in params.items()}
    calls: list[Any] = [
        lambda p: fm.agent_params(net, p, 1),
        lambda p: fm.unstack_agents(net, p)[2],
        lambda p: fm.reshare(net, p, "independent")[1],
        lambda p: fm.reshare(net, p, "shared", merge="mean")[1],
        lambda p: fm.stack_agents(fm.unstack_agents(net, p), sharing="shared", merge="first"),
    ]
    for call in calls:
        mapped = torch.func.vmap(call)(params)
        for p in range(2):
            assert same({name: leaf[p] for name, leaf in mapped.items()}, call(one(p)))
    with pytest.raises(fm.SharingError, match=r'merge="error" compares the numbers .* give merge="mean"'):
        torch.func.vmap(lambda p: fm.reshare(net, p, "shared")[1])(params)


# --- slots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [[0, 2, 2], [1, 1, 2], np.array([1, 2, 3]), (2, 2, 2)])
def test_a_plain_list_has_no_empty_slot(slots: Any) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    calls: list[Any] = [
        lambda: fm.network(mlp, N, sharing=slots),
        lambda: fm.network(mlp, N, sharing={"0.*": "shared", "*": slots}),
        lambda: net.replace(sharing=slots),
        lambda: fm.reshare(net, params, slots, merge="first"),
        lambda: fm.stack_agents(fm.unstack_agents(net, params), sharing=slots, merge="first"),
    ]
    meant = fm.Sharing(slots)
    for call in calls:
        with pytest.raises(fm.SharingError) as caught:
            call()
        assert f"slots count from 0 without gaps: renumber them, or give fm.{meant!r}" in str(caught.value)
    assert fm.network(mlp, N, sharing=meant).sharing["0.bias"] == meant


# --- the network -----------------------------------------------------------------------------------------


def test_mappings_of_a_network_cannot_be_written_to() -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), N)
    for mapping in (net.sharing, net.state_sharing, net.param_shapes, net.state_shapes):
        given: Any = mapping
        before = dict(given)
        changes: list[Any] = [
            lambda g: g.__setitem__("w", 1),
            lambda g: g.__delitem__(next(iter(g))),
            lambda g: g.update(w=1),
            lambda g: g.__ior__({"w": 1}),
            lambda g: g.pop(next(iter(g))),
            lambda g: g.popitem(),
            lambda g: g.setdefault("w", 1),
            lambda g: g.clear(),
        ]
        for change in changes:
            with pytest.raises(TypeError, match=r"a network cannot be changed; net.replace\(...\) gives one"):
                change(given)
        assert given == before
        assert before == given
        for again in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
            assert again == given
            assert type(again) is type(given)
        assert given.copy() | {"w": 1} == before | {"w": 1}
    assert json.loads(json.dumps(net.param_shapes))["0.bias"] == [N, 2]


def test_mappings_of_a_network_are_read_in_a_graph() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    run: Any = lambda x: x + sum(shape[0] for shape in net.param_shapes.values()) + net.sharing["0.bias"].n_slots
    compiled: Any = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())).item() == 10


def test_a_network_is_no_function_and_no_module() -> None:
    net = fm.network(mlp, N)
    call: Any = net
    with pytest.raises(fm.StructureError, match=r"not called itself: fm.apply\(net, params, x\)"):
        call(fm.init_params(net, 0), numbers(5, N, 4))
    for name, fix in (
        ("init", r"fm.init_params\(net, key\)"),
        ("apply", r"fm.apply\(net, params, x\)"),
        ("parameters", r"fm.init_params"),
        ("state_dict", r"fm.init_params"),
    ):
        with pytest.raises(AttributeError, match=f"'Network' object has no attribute '{name}'; write {fix}"):
            getattr(net, name)
    assert not hasattr(net, "nothing")
    with pytest.raises(fm.StructureError, match=r"build: .* got a network; net.replace"):
        fm.network(call, N)


def test_a_dict_by_agent_is_told_of_group_agents() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    for shape in ((4,), (5, 4)):
        with pytest.raises(fm.StructureError, match=r"got a dict of 3 tensors of shape .*; fm.group_agents stacks"):
            fm.apply(net, params, {name: numbers(*shape) for name in "abc"})
    for wrong in (np.zeros((5, N, 4)), {"x": np.zeros((5, N, 4))}):
        with pytest.raises(fm.StructureError, match=r"got a ndarray of shape \[5, 3, 4\]; torch.as_tensor"):
            fm.apply(net, params, wrong)
    with pytest.raises(fm.StructureError, match=r"inputs\[0\]: .* got a list without any; torch.tensor"):
        fm.apply(net, params, numbers(5, N, 4).tolist())
    with pytest.raises(
        fm.StructureError, match=r"example: expected .* got \(5, 4\); give for example torch.zeros\(4\)"
    ):
        fm.network(lambda: nn.LazyLinear(2), N, example=(5, 4))
    with pytest.raises(fm.StructureError, match=r"n: .* got \(2, 3\); .* fm.split\(key, 6\).view\(2, 3, 2\)"):
        fm.split(0, (2, 3))  # pyright: ignore[reportArgumentType]


def test_a_report_names_its_laws_for_another() -> None:
    report = check(nn.Linear(4, 2), n_agents=2, example=torch.zeros(3, 2, 4), laws="sharing", examples=1)
    with pytest.raises(KeyError, match="no verdict on 'missing'; the laws are"):
        report["missing"]


# --- many agents -----------------------------------------------------------------------------------------


def one_by_one(after: torch.Tensor, before: torch.Tensor, sharing: fm.Sharing) -> torch.Tensor:
    """A slot at a time: agents that agree keep their value, else the mean; integers the largest."""
    rows: list[torch.Tensor] = []
    for slot in range(sharing.n_slots):
        own = [after[i] for i, s in enumerate(sharing) if s == slot]
        if not own:
            rows.append(before[slot])
            continue
        stacked = torch.stack(own)
        if stacked.is_floating_point():
            rows.append(torch.where((stacked == own[0]).all(0), own[0], stacked.mean(0)))
        else:
            rows.append(stacked.amax(0))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("leaf", [(), (3,), (4, 5), (0,)])
def test_slots_merged_together_equal_slots_merged_one_by_one_to_the_bit(dtype: Any, leaf: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, slots in ((1, 3), (7, 3), (40, 9), (40, 60), (300, 150), (300, 2)):
        given: Any = torch.randint(slots, (n,), generator=generator)
        sharing = fm.Sharing(given, slots)
        after = (torch.randn(n, *leaf, generator=generator) * 3).to(dtype)
        after[::3] = after[0].clone()  # some agree
        before = torch.randn(slots, *leaf, generator=generator).to(dtype)
        got, expected = merged_state(after, before, sharing), one_by_one(after, before, sharing)
        assert got.dtype == dtype
        assert torch.equal(got, expected)
        used = fm.Sharing(given, slots).canonical()
        net = fm.network(nn.Linear(1, 1), n, sharing=used)
        assert all(used.members(s) == tuple(i for i in range(n) if used[i] == s) for s in range(used.n_slots))
        if n == 40:
            rows = torch.randn(n, 1, 1, generator=generator)
            _, merged = fm.reshare(
                fm.network(nn.Linear(1, 1), n), {"weight": rows, "bias": rows[:, 0]}, used, merge="mean"
            )
            assert torch.equal(merged["weight"], one_by_one(rows, rows, used))
            assert net.sharing["weight"] == used


def test_members_are_found_once() -> None:
    """Not once a slot: that takes agents x slots, minutes for a large team."""
    n = 200_000
    sharing = fm.Sharing(range(n))
    assert [sharing.members(slot) for slot in (0, 7, n - 1)] == [(0,), (7,), (n - 1,)]
    assert all(sharing.members(slot) == (slot,) for slot in range(n))
