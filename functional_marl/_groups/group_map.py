"""Group maps: which agents form which group.

A group map ``{group: [agent, ...]}`` is a partition of the agents; the order of a group is the order of its
agent axis. The premade maps have the names and values of TorchRL's ``MarlGroupMapType``
(https://pytorch.org/rl, page ``torchrl.envs.MarlGroupMapType``); agents have names as in PettingZoo (Terry
et al., "PettingZoo: Gym for Multi-Agent Reinforcement Learning", NeurIPS 2021).
"""

from __future__ import annotations

import enum
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from functional_marl._arguments import is_list, shown
from functional_marl._errors import GroupingError

__all__ = ["Grouping", "MarlGroupMapType", "by_prefix", "by_spec", "check_group_map", "group_map"]


class MarlGroupMapType(enum.Enum):
    """The two premade groupings, with TorchRL's names and values.

    TorchRL's environments take them too, and a member equals TorchRL's member of the same name. TorchRL need
    not be installed.

    >>> MarlGroupMapType.ALL_IN_ONE_GROUP.get_group_map(["a", "b"])
    {'agents': ['a', 'b']}
    >>> MarlGroupMapType.ONE_GROUP_PER_AGENT.get_group_map(["a", "b"])
    {'a': ['a'], 'b': ['b']}
    """

    ALL_IN_ONE_GROUP = 1
    ONE_GROUP_PER_AGENT = 2

    def get_group_map(self, agent_names: Iterable[str]) -> dict[str, list[str]]:
        """The group map of these agents, in new lists: the caller's list is never part of it."""
        agent_names = as_names(agent_names, "agent_names")
        if self is MarlGroupMapType.ALL_IN_ONE_GROUP:
            return {"agents": agent_names}
        return {name: [name] for name in agent_names}

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """TorchRL's enum once it is imported: its environments test ``isinstance`` of that one."""
        return _torchrl_enum() or type(self)

    def __eq__(self, other: object) -> bool:
        theirs = _torchrl_enum()
        if type(other) is type(self) or (theirs is not None and type(other) is theirs):
            return self.name == other.name  # pyright: ignore
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)  # as every enum, so TorchRL's member has the same

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (type(self), (self.value,))  # enum's own would give the member of __class__


def _torchrl_enum() -> type[enum.Enum] | None:
    """TorchRL's ``MarlGroupMapType``, if TorchRL is imported already."""
    return getattr(sys.modules.get("torchrl.envs.utils"), "MarlGroupMapType", None)


Grouping = MarlGroupMapType | enum.Enum | Mapping[str, Sequence[str]] | Callable[[str], str]


def as_names(names: Any, what: str) -> list[str]:
    """The names as a new list. A set is refused: it has no order, and the agent axis needs one."""
    if not (is_list(names) or isinstance(names, Mapping)):
        raise GroupingError(f"{what}: expected a list of agent names, got {shown(names)}; use a list of strings")
    listed: list[Any] = list(names)  # pyright: ignore[reportUnknownArgumentType]
    if wrong := [name for name in listed if not isinstance(name, str)]:
        raise GroupingError(f"{what}: expected strings as agent names, got {wrong!r}; use a list of strings")
    return listed


def as_groups(groups: Mapping[Any, Any]) -> dict[str, list[str]]:
    """The group map in a new dict of new lists, not yet checked to be a partition."""
    if not isinstance(groups, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"groups: expected a mapping from group to agent names, got {shown(groups)}")
    return {group: as_names(members, f"groups[{group!r}]") for group, members in groups.items()}


def quote(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)


def check_group_map(groups: Mapping[str, Sequence[str]], names: Iterable[str]) -> None:
    """Raise unless ``groups`` is a partition of ``names``: each agent in exactly one group, no group empty.

    Raises:
        GroupingError: no agents, two agents of one name, a name that is no string, more groups than agents,
            an empty group, an unknown agent, an agent given more than once, or an agent without a group.
            One error lists everything that is wrong with the groups.

    >>> check_group_map({"team": ["a", "b"], "solo": ["c"]}, ["a", "b", "c"])
    >>> check_group_map({"team": ["a"]}, ["a", "b"])
    Traceback (most recent call last):
        ...
    functional_marl.errors.GroupingError: groups: agent 'b' is in no group; add it to one of 'team'
    """
    members, agents = as_groups(groups), as_names(names, "names")
    if not agents:
        raise GroupingError("names: expected at least one agent, got none; pass the names of the agents")
    if twice := [name for name, count in Counter(agents).items() if count > 1]:
        raise GroupingError(f"names: {quote(twice)} given more than once; give each agent its own name")

    wrong: list[str] = []
    if unnamed := [group for group in groups if not isinstance(group, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        wrong.append(f"expected strings as group names, got {unnamed!r}; name groups by strings")
    if len(groups) > len(agents):
        wrong.append(f"expected at most {len(agents)} groups for {len(agents)} agents, got {len(groups)}")
    homes: dict[str, list[str]] = {name: [] for name in agents}
    for group, listed in members.items():
        if not listed:
            wrong.append(f"group {group!r} is empty; give it an agent or leave it out")
        for name in listed:
            if name not in homes:
                wrong.append(f"group {group!r} has the unknown agent {name!r}; known are {quote(agents)}")
            homes.get(name, []).append(group)
    for name, found in homes.items():
        if len(found) > 1:
            wrong.append(f"agent {name!r} is in {len(found)} places, {quote(found)}; keep one of them")
        elif not found:
            wrong.append(f"agent {name!r} is in no group; add it to one of {quote(groups)}")
    if wrong:
        raise GroupingError("groups: " + "; ".join(wrong))


def group_map(names: Iterable[str], grouping: Grouping) -> dict[str, list[str]]:
    """Which agents form which group: a partition of ``names``, in new lists.

    Args:
        names: the agents, in order.
        grouping: a :class:`MarlGroupMapType` (TorchRL's own enum is accepted too); a function from agent to
            group, such as :func:`by_prefix` or ``by_spec(specs)``; or a mapping from group to agents, which
            keeps its order. From a function, groups come in the order of their first agent, and the agents
            of a group in the order of ``names``.

    Raises:
        GroupingError: the result is not a partition of ``names``, as :func:`check_group_map` says.

    >>> group_map(["wolf_0", "wolf_1", "sheep_0"], by_prefix)
    {'wolf': ['wolf_0', 'wolf_1'], 'sheep': ['sheep_0']}
    >>> group_map(["a", "b"], MarlGroupMapType.ALL_IN_ONE_GROUP)
    {'agents': ['a', 'b']}
    """
    agents = as_names(names, "names")
    groups: dict[str, list[str]] = {}
    if isinstance(grouping, enum.Enum) and type(grouping).__name__ == MarlGroupMapType.__name__:
        groups = MarlGroupMapType[grouping.name].get_group_map(agents)
    elif isinstance(grouping, Mapping):
        groups = as_groups(grouping)  # pyright: ignore[reportUnknownArgumentType]
    elif callable(grouping):
        for name in agents:
            group: Any = grouping(name)
            if not isinstance(group, str):
                raise GroupingError(f"grouping({name!r}): expected a group name, got {group!r}; return a string")
            groups.setdefault(group, []).append(name)
    else:
        raise GroupingError(
            "grouping: expected a MarlGroupMapType, a mapping from group to agents or a function from agent"
            f" to group, got {shown(grouping)}"
        )
    check_group_map(groups, agents)
    return groups


def by_prefix(name: str) -> str:
    """The group of an agent named ``<group>_<number>``; any other name is its own group.

    Raises:
        GroupingError: the name is no string.

    >>> by_prefix("adversary_0"), by_prefix("lead_agent_12"), by_prefix("goalkeeper")
    ('adversary', 'lead_agent', 'goalkeeper')
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"name: expected the name of an agent, a string, got {shown(name)}")
    match = re.fullmatch(r"(.+)_[0-9]+", name, re.DOTALL)
    return match[1] if match else name


def by_spec(specs: Mapping[str, Any]) -> Callable[[str], str]:
    """A grouping that puts agents with equal specs together, so that their data can be stacked.

    Args:
        specs: agent -> anything with ``==``: a Gymnasium space, a TorchRL spec, a tuple of such. Agents with
            equal specs form a group. It is named by the prefix of its agents (:func:`by_prefix`) where they
            share one that no agent of another group has; the other groups are ``group_0``, ``group_1``, ...
            in the order of their first agent (a number is left out where an agent has that prefix).

    Raises:
        GroupingError: specs that are no mapping or do not compare, or, when called, an agent without a spec.

    >>> group_map(["wolf_0", "sheep_0", "wolf_1"], by_spec({"wolf_0": 16, "wolf_1": 16, "sheep_0": 14}))
    {'wolf': ['wolf_0', 'wolf_1'], 'sheep': ['sheep_0']}
    >>> group_map(["wolf_0", "sheep_0", "wolf_1"], by_spec({"wolf_0": 16, "wolf_1": 14, "sheep_0": 16}))
    {'group_0': ['wolf_0', 'sheep_0'], 'group_1': ['wolf_1']}
    """
    if not hasattr(specs, "keys"):
        raise GroupingError(f"specs: expected a mapping from agent to spec, got {shown(specs)}")
    classes: list[list[str]] = []
    for name in as_names(specs, "specs"):
        for members in classes:
            try:
                equal = bool(specs[members[0]] == specs[name])
            except (ValueError, RuntimeError) as error:  # two arrays compare to an array
                raise GroupingError(
                    f"specs: expected True or False from comparing those of {members[0]!r} and {name!r},"
                    f" got an error: {error}; give spaces, specs or tuples of numbers"
                ) from None
            if equal:
                members.append(name)
                break
        else:
            classes.append([name])
    prefixes = [{by_prefix(name) for name in members} for members in classes]
    uses = Counter(itertools.chain.from_iterable(prefixes))
    numbered = (group for i in itertools.count() if (group := f"group_{i}") not in uses)
    found: dict[str, str] = {}
    for members, own in zip(classes, prefixes, strict=True):
        prefix = by_prefix(members[0])
        group = prefix if len(own) == 1 and uses[prefix] == 1 else next(numbered)
        found.update(dict.fromkeys(members, group))

    def grouping(name: str) -> str:
        if not isinstance(name, str) or name not in found:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupingError(f"specs: no spec for agent {name!r}; given are {quote(found)}; add it")
        return found[name]

    return grouping
