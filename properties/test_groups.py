"""Laws 29, 30 and 32 for groups: data come back by name, a group map is a partition, nothing is aliased.

Each law is a plain function of an implementation; each has mutants that it must reject.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torchrl.envs.utils  # pyright: ignore[reportMissingTypeStubs]
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from functional_marl.grouping import MarlGroupMapType, by_prefix, by_spec, group_map
from functional_marl.groups import group_agents, ungroup_agents
from functional_marl.trees import flatten as flatten_tree
from functional_marl.trees import leaf_names, tree_map

Groups = Mapping[str, Sequence[str]]
GroupMap = Callable[[list[str], Any], dict[str, list[str]]]
Move = Callable[..., Any]  # group_agents or ungroup_agents


# --- the laws ---------------------------------------------------------------------------------------------


def leaves(tree: Any, root: str) -> dict[str, Tensor]:
    return dict(zip(leaf_names(tree, root), flatten_tree(tree)[0], strict=True))


def assert_same(found: Any, wanted: Any, where: str) -> None:
    """Equal paths, shapes, dtypes and values."""
    one, other = leaves(found, where), leaves(wanted, where)
    assert one.keys() == other.keys(), f"{where}: expected the leaves {list(other)}, got {list(one)}"
    for path, leaf in one.items():
        want = other[path]
        assert leaf.shape == want.shape, f"{path}: expected shape {list(want.shape)}, got {list(leaf.shape)}"
        assert leaf.dtype == want.dtype, f"{path}: expected {want.dtype}, got {leaf.dtype}"
        assert torch.equal(leaf, want), f"{path}: expected {want}, got {leaf}"


def law_29_round_trip(group: Move, ungroup: Move, case: Case) -> None:
    """What goes into groups comes out again, every agent's values under its own name."""
    grouped = group(case.groups, case.per_agent, case.batch_dims, squeeze_singletons=case.squeeze)
    back = ungroup(case.groups, grouped, case.batch_dims, squeeze_singletons=case.squeeze)
    names = sorted(back.keys())
    assert names == sorted(case.per_agent.keys()), f"law 29: agents {names} for {case.groups}"
    for name in names:
        assert_same(back[name], case.per_agent[name], f"law 29: {name!r}")


def law_29_layout(group: Move, case: Case) -> None:
    """Agent i of a group sits at place i of the axis behind the batch axes, in the order of the group."""
    grouped = group(case.groups, case.per_agent, case.batch_dims, squeeze_singletons=case.squeeze)
    assert list(grouped.keys()) == list(case.groups), f"law 29: groups {list(grouped.keys())}"
    for name, members in case.groups.items():
        if case.squeeze and len(members) == 1:
            assert_same(grouped[name], case.per_agent[members[0]], f"law 29: {name!r}")
            continue
        for i, agent in enumerate(members):
            before = (slice(None),) * case.batch_dims
            for path, leaf in leaves(grouped[name], "").items():
                want = leaves(case.per_agent[agent], "")[path]
                shape = [*want.shape[: case.batch_dims], len(members), *want.shape[case.batch_dims :]]
                assert list(leaf.shape) == shape, f"law 29: {name}{path}: expected {shape}, got {leaf.shape}"
                assert torch.equal(leaf[(*before, i)], want), f"law 29: {name}{path}: agent {i} is not {agent!r}"


def law_30_partition(grouper: GroupMap, names: list[str], grouping: Any) -> None:
    """Each agent is in exactly one group, no group is empty, agents keep their order."""
    groups = grouper(list(names), grouping)
    listed = [agent for members in groups.values() for agent in members]
    assert sorted(listed) == sorted(names), f"law 30: {groups} is no partition of {names}"
    assert all(groups.values()), f"law 30: an empty group in {groups}"
    if isinstance(grouping, Mapping):
        wanted = [(group, list(members)) for group, members in cast("Groups", grouping).items()]
        assert list(groups.items()) == wanted, f"law 30: {groups} is not the given {grouping}"
        return
    for members in groups.values():
        places = [names.index(agent) for agent in members]
        assert places == sorted(places), f"law 30: {members} has another order than {names}"
    firsts = [names.index(members[0]) for members in groups.values()]
    assert firsts == sorted(firsts), f"law 30: groups of {groups} are not in the order of their first agents"
    if callable(grouping) and not isinstance(grouping, type):
        for group, members in groups.items():
            assert all(grouping(agent) == group for agent in members), f"law 30: {group}: {members}"


def law_32_no_alias(grouper: GroupMap, names: list[str], grouping: Any) -> None:
    """A group map is the caller's to change: neither the names nor a given mapping change with it."""
    given = copy.deepcopy(grouping)
    mine = list(names)
    for members in grouper(mine, given).values():
        members.append("intruder")
    assert mine == names, f"law 32: the caller's names became {mine}"
    if isinstance(given, Mapping):
        assert given == grouping, f"law 32: the caller's group map became {given}"


# --- strategies -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Agents in groups, with data."""

    groups: dict[str, list[str]]
    per_agent: Any
    batch_dims: int
    squeeze: bool


DTYPES = [torch.float32, torch.float64, torch.int8, torch.int64, torch.bool]
NAMES = st.one_of(
    st.builds("{}_{}".format, st.sampled_from(["agent", "wolf", "group"]), st.integers(0, 12)),
    st.sampled_from(["agent", "wolf", "_0", "agent_0_1", "a.b", "agents"]),
    st.text(max_size=4),
)


def name_lists() -> st.SearchStrategy[list[str]]:
    return st.lists(NAMES, min_size=1, max_size=8, unique=True)


@st.composite
def partitions(draw: st.DrawFn, names: list[str], group_names: st.SearchStrategy[str]) -> dict[str, list[str]]:
    """A partition of the names in any order, with groups of any names in any order."""
    shuffled = draw(st.permutations(names))
    labels = draw(st.lists(group_names, min_size=1, max_size=len(names), unique=True))
    groups: dict[str, list[str]] = {}
    for name in shuffled:
        groups.setdefault(draw(st.sampled_from(labels)), []).append(name)
    return groups


@st.composite
def groupings(draw: st.DrawFn) -> tuple[list[str], Any]:
    names = draw(name_lists())
    table = draw(partitions(names, NAMES))
    home = {name: group for group, members in table.items() for name in members}
    specs = {name: draw(st.integers(0, 2)) for name in names}
    kinds: list[Any] = [*MarlGroupMapType, *torchrl.envs.utils.MarlGroupMapType]
    return names, draw(st.sampled_from([*kinds, by_prefix, table, home.__getitem__, by_spec(specs)]))


SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def structures() -> st.SearchStrategy[Any]:
    """Trees whose leaves are ``(shape, dtype)`` in a :class:`torch.empty` tensor on the meta device."""
    leaf = st.builds(torch.empty, SHAPES, dtype=st.sampled_from(DTYPES), device=st.just("meta"))

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        keys = st.sampled_from(["obs", "action", "done", "r"])
        return st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | st.none()

    return st.recursive(leaf, grow, max_leaves=4)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(name_lists())
    # A TensorDict keyed by agent has names for keys: no empty ones.
    groups = draw(partitions(names, NAMES))
    batch = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    flat = all((*names, *groups)) and draw(st.booleans())

    def filled(leaf: Tensor) -> Tensor:
        low, high = (0, 2) if leaf.dtype is torch.bool else (-100, 100)
        return torch.randint(low, high, (*batch, *leaf.shape), generator=generator).to(leaf.dtype)

    per_agent: Any = {}
    for members in groups.values():
        structure = draw(structures())
        for name in members:
            tree = tree_map(filled, structure)
            per_agent[name] = TensorDict({"tree": filled(torch.empty(2, device="meta"))}, batch) if flat else tree
    order = draw(st.permutations(names))
    per_agent = {name: per_agent[name] for name in order}
    return Case(groups, TensorDict(per_agent, batch) if flat else per_agent, len(batch), draw(st.booleans()))


def small_case() -> Case:
    """Two groups of unlike agents, out of order, behind two batch axes of the sizes of a group."""
    data = {name: {"x": torch.arange(8).view(2, 2, 2) + 10 * i} for i, name in enumerate("abc")}
    return Case({"two": ["c", "a"], "one": ["b"]}, data, 2, squeeze=True)


usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
hunt = settings(usual, database=None, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)


# --- the laws hold ----------------------------------------------------------------------------------------


@usual
@example(small_case())
@given(cases())
def test_law_29_round_trip(case: Case) -> None:
    law_29_round_trip(group_agents, ungroup_agents, case)


@usual
@example(small_case())
@given(cases())
def test_law_29_layout(case: Case) -> None:
    law_29_layout(group_agents, case)


@usual
@given(groupings())
def test_law_30_partition(drawn: tuple[list[str], Any]) -> None:
    law_30_partition(group_map, *drawn)


@usual
@given(groupings())
def test_law_32_no_alias(drawn: tuple[list[str], Any]) -> None:
    law_32_no_alias(group_map, *drawn)


# --- the laws reject mutants, from the same strategies ------------------------------------------------------


def ungroup_by_sorted_names(groups: Groups, tree: Any, batch_dims: int = 0, **kw: Any) -> Any:
    return ungroup_agents({group: sorted(members) for group, members in groups.items()}, tree, batch_dims, **kw)


def ungroup_without_lone_agents(groups: Groups, tree: Any, batch_dims: int = 0, **kw: Any) -> Any:
    back = ungroup_agents(groups, tree, batch_dims, **kw)
    return {name: back[name] for members in groups.values() if len(members) > 1 for name in members}


def group_everything_as_float(groups: Groups, tree: Any, batch_dims: int = 0, **kw: Any) -> Any:
    grouped = group_agents(groups, tree, batch_dims, **kw)
    return {group: tree_map(Tensor.float, grouped[group]) for group in groups}


def move_at_axis_0(move: Move) -> Move:
    def moved(groups: Groups, tree: Any, batch_dims: int = 0, *, squeeze_singletons: bool = False) -> Any:
        return move(groups, dict(tree.items()), 0, squeeze_singletons=squeeze_singletons)

    return moved


def never_squeeze(groups: Groups, tree: Any, batch_dims: int = 0, *, squeeze_singletons: bool = False) -> Any:
    return group_agents(groups, tree, batch_dims)


def rejects(law: Callable[..., None], drawn: st.SearchStrategy[Any], *mutant: Any) -> None:
    @hunt
    @given(drawn)
    def search(case: Any) -> None:
        law(*mutant, *(case if isinstance(case, tuple) else (case,)))  # pyright: ignore

    with pytest.raises(AssertionError, match=r"law \d\d: "):
        search()


@pytest.mark.parametrize(
    ("group", "ungroup"),
    [
        (group_agents, ungroup_by_sorted_names),
        (group_agents, ungroup_without_lone_agents),
        (group_everything_as_float, ungroup_agents),
    ],
)
def test_law_29_round_trip_rejects(group: Move, ungroup: Move) -> None:
    rejects(law_29_round_trip, cases(), group, ungroup)


def test_law_29_layout_rejects_what_the_round_trip_cannot_see() -> None:
    # Both ways at axis 0: every value comes back, yet no network would find its agents.
    law_29_round_trip(move_at_axis_0(group_agents), move_at_axis_0(ungroup_agents), small_case())
    rejects(law_29_layout, cases(), move_at_axis_0(group_agents))
    rejects(law_29_layout, cases(), never_squeeze)


def drop_the_last(names: list[str], grouping: Any) -> dict[str, list[str]]:
    groups = group_map(names, grouping)
    return {group: members[:-1] or members for group, members in groups.items()}


def twice(names: list[str], grouping: Any) -> dict[str, list[str]]:
    groups = group_map(names, grouping)
    return {group: [*members, names[0]] for group, members in groups.items()}


def leave_a_group_empty(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {**group_map(names, grouping), "an empty group": []}


def sort_members(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {group: sorted(members) for group, members in group_map(names, grouping).items()}


def sort_groups(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return dict(sorted(group_map(names, grouping).items()))


def overwrite_as_torchrl_does(names: list[str], grouping: Any) -> dict[str, list[str]]:
    """torchrl 0.14 by prefix: a name without a number replaces the group that has its name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix = by_prefix(name)
        if prefix == name:
            groups[name] = [name]
        else:
            groups.setdefault(prefix, []).append(name)
    return groups


@pytest.mark.parametrize("mutant", [drop_the_last, twice, leave_a_group_empty, sort_members, sort_groups])
def test_law_30_rejects(mutant: GroupMap) -> None:
    rejects(law_30_partition, groupings(), mutant)


def test_law_30_rejects_a_prefix_that_overwrites() -> None:
    by_prefixes: Iterable[Any] = [by_prefix]
    drawn = st.tuples(name_lists(), st.sampled_from(list(by_prefixes)))
    rejects(law_30_partition, drawn, overwrite_as_torchrl_does)


def alias_the_mapping(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return dict(grouping) if isinstance(grouping, dict) else group_map(names, grouping)  # pyright: ignore


def alias_the_names(names: list[str], grouping: Any) -> dict[str, list[str]]:
    """What torchrl 0.14 does."""
    theirs = torchrl.envs.utils.MarlGroupMapType
    return grouping.get_group_map(names) if isinstance(grouping, theirs) else group_map(names, grouping)  # pyright: ignore


@pytest.mark.parametrize("mutant", [alias_the_mapping, alias_the_names])
def test_law_32_rejects(mutant: GroupMap) -> None:
    rejects(law_32_no_alias, groupings(), mutant)
