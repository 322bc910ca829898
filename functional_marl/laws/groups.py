"""Laws 29, 30 and 32 for groups: data come back by name, a group map is a partition, nothing is aliased."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from functional_marl._pytrees import flatten, leaf_names
from functional_marl.laws.again import code
from functional_marl.laws.law import agree, broken, law
from functional_marl.laws.subject import LIBRARY, Ops

__all__ = [
    "Grouped",
    "Named",
    "group_layout",
    "group_map_is_a_partition",
    "group_map_is_the_callers",
    "group_round_trip",
]


@dataclass(frozen=True)
class Grouped:
    """Agents in groups, with data: ``{group: names}`` and ``{name: tree}`` of leaves ``[*B, *leaf]``."""

    groups: dict[str, list[str]]
    per_agent: Any
    batch_dims: int
    squeeze: bool
    ops: Ops = LIBRARY

    def __repr__(self) -> str:
        return f"Grouped({self.groups}, {code(self.per_agent)}, {self.batch_dims}, {self.squeeze})"

    def answers(self, word: str) -> bool:
        """No law asks for more."""
        return False

    def group(self) -> Any:
        """The data by group."""
        how = {"squeeze_singletons": self.squeeze}
        return self.ops.group_agents(self.groups, self.per_agent, self.batch_dims, **how)


@dataclass(frozen=True)
class Named:
    """Agents' names and how to group them; ``words`` is the grouping as Python, where its repr is not."""

    names: list[str]
    grouping: Any
    ops: Ops = LIBRARY
    words: str = ""

    def __repr__(self) -> str:
        return f"Named({self.names}, {self.words or code(self.grouping)})"

    def answers(self, word: str) -> bool:
        """No law asks for more."""
        return False


@law(29)
def group_round_trip(case: Grouped) -> None:
    """ungroup(group(x)) = x.

    What goes into groups comes out again, every agent's values under its own name.
    """
    how = {"squeeze_singletons": case.squeeze}
    back = case.ops.ungroup_agents(case.groups, case.group(), case.batch_dims, **how)
    names = sorted(back.keys())
    if names != sorted(case.per_agent.keys()):
        broken(f"agents {sorted(case.per_agent.keys())} in {case.groups} came back as {names}")
    for name in names:
        agree(back[name], case.per_agent[name], f"agent {name!r}", exact=True)


@law(29)
def group_layout(case: Grouped) -> None:
    """group(x)[g][..., i, ...] = x[g_i].

    Agent i of a group sits at place i of the axis behind the batch axes, in the order of the group.
    """
    grouped = case.group()
    if list(grouped.keys()) != list(case.groups):
        broken(f"expected the groups {list(case.groups)}, got {list(grouped.keys())}")
    for name, members in case.groups.items():
        if case.squeeze and len(members) == 1:
            agree(grouped[name], case.per_agent[members[0]], f"group {name!r}", exact=True)
            continue
        for i, agent in enumerate(members):
            wanted = _leaves(case.per_agent[agent])
            for path, leaf in _leaves(grouped[name]).items():
                want, b = wanted[path], case.batch_dims
                shape = [*want.shape[:b], len(members), *want.shape[b:]]
                if list(leaf.shape) != shape:
                    broken(f"group {name!r}{path}: expected shape {shape}, got {list(leaf.shape)}")
                if not torch.equal(leaf.select(b, i), want):
                    broken(f"group {name!r}{path}: place {i} is not agent {agent!r}")


def _leaves(tree: Any) -> dict[str, Tensor]:
    return dict(zip(leaf_names(tree), flatten(tree)[0], strict=True))


@law(30)
def group_map_is_a_partition(case: Named) -> None:
    """⊔_g group_map(names)[g] = names.

    Each agent is in exactly one group, no group is empty, agents keep their order.
    """
    names, grouping = case.names, case.grouping
    groups: dict[str, list[str]] = case.ops.group_map(list(names), grouping)
    if sorted(agent for members in groups.values() for agent in members) != sorted(names):
        broken(f"{groups} is no partition of {names}")
    if not all(groups.values()):
        broken(f"an empty group in {groups}")
    if isinstance(grouping, Mapping):
        given = cast("Mapping[str, list[str]]", grouping)
        if list(groups.items()) != [(group, list(members)) for group, members in given.items()]:
            broken(f"{groups} is not the given {grouping}")
        return
    for members in groups.values():
        places = [names.index(agent) for agent in members]
        if places != sorted(places):
            broken(f"{members} has another order than {names}")
    firsts = [names.index(members[0]) for members in groups.values()]
    if firsts != sorted(firsts):
        broken(f"the groups of {groups} are not in the order of their first agents")
    if callable(grouping) and not isinstance(grouping, type):
        wrong = [(agent, group) for group, members in groups.items() for agent in members if grouping(agent) != group]
        if wrong:
            broken(f"expected each agent in the group that the function gives, got {wrong}")


@law(32)
def group_map_is_the_callers(case: Named) -> None:
    """memory(group_map(names)) ∩ memory(names) = ∅.

    A group map is the caller's to change: neither the names nor a given mapping change with it.
    """
    given, mine = copy.deepcopy(case.grouping), list(case.names)
    for members in case.ops.group_map(mine, given).values():
        members.append("intruder")
    if mine != case.names:
        broken(f"the caller's names {case.names} became {mine}")
    if isinstance(given, Mapping) and given != case.grouping:
        broken(f"the caller's group map {case.grouping} became {given}")
