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
from typing import Any, NewType

from functional_marl._check_arguments import short_repr
from functional_marl._errors import GroupingError
from functional_marl._groups.check_group_map import as_groups, as_names, check_group_map, quote

__all__ = ["GroupMap", "Grouping", "MarlGroupMapType", "by_prefix", "by_spec", "group_map"]


class MarlGroupMapType(enum.Enum):
    """The two premade groupings, with TorchRL's names and values.

    TorchRL's environments take them too. A member equals TorchRL's member of the same name. TorchRL need not be
    installed.

    >>> MarlGroupMapType.ALL_IN_ONE_GROUP.get_group_map(["a", "b"])
    {'agents': ['a', 'b']}
    >>> MarlGroupMapType.ONE_GROUP_PER_AGENT.get_group_map(["a", "b"])
    {'a': ['a'], 'b': ['b']}
    """

    ALL_IN_ONE_GROUP = 1
    ONE_GROUP_PER_AGENT = 2

    def get_group_map(self, agent_names: Iterable[str]) -> dict[str, list[str]]:
        """The group map of these agents, in new lists: it never contains the list that was given.

        Raises:
            GroupingError: names that are no list of strings (a set has no order).
        """
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
        return hash(self.name)  # that of every enum, and so of TorchRL's member

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (type(self), (self.value,))  # enum's own would pickle a member of __class__, TorchRL's


def _torchrl_enum() -> type[enum.Enum] | None:
    """TorchRL's ``MarlGroupMapType``, if TorchRL is imported already."""
    return getattr(sys.modules.get("torchrl.envs.utils"), "MarlGroupMapType", None)


# A dict at run time. Type checkers tell a group map, a partition, from any dict of lists; hypothesis generates it.
GroupMap = NewType("GroupMap", dict[str, list[str]])
Grouping = MarlGroupMapType | enum.Enum | Mapping[str, Sequence[str]] | Callable[[str], str]


def group_map(names: Iterable[str], grouping: Grouping) -> GroupMap:
    """Which agents form which group: a partition of ``names``, in new lists.

    Args:
        names: the agents, in order.
        grouping: a :class:`MarlGroupMapType` (TorchRL's own enum is accepted too); a function from agent to
            group, such as :func:`by_prefix` or ``by_spec(specs)``; or a mapping from group to agents, which
            keeps its order. From a function, groups come in the order of their first agent, and the agents
            of a group in the order of ``names``.

    Raises:
        GroupingError: the result is not a partition of ``names``, see :func:`check_group_map`.

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
            f" to group, got {short_repr(grouping)}"
        )
    check_group_map(groups, agents)
    return GroupMap(groups)


def by_prefix(name: str) -> str:
    """The group of an agent named ``<group>_<number>``; any other name is its own group.

    Raises:
        GroupingError: the name is no string.

    >>> by_prefix("adversary_0"), by_prefix("lead_agent_12"), by_prefix("goalkeeper")
    ('adversary', 'lead_agent', 'goalkeeper')
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"name: expected the name of an agent, a string, got {short_repr(name)}")
    match = re.fullmatch(r"(.+)_[0-9]+", name, re.DOTALL)
    return match[1] if match else name


def by_spec(specs: Mapping[str, Any]) -> Callable[[str], str]:
    """A grouping that puts agents with equal specs together, so that their data can be stacked.

    Args:
        specs: agent -> anything with ``==``: a Gymnasium space, a TorchRL spec, a tuple of such. Agents with
            equal specs form a group. If its agents have one prefix (:func:`by_prefix`) and no other group has it,
            the prefix is the name of the group. The other groups are ``group_0``, ``group_1``, ... in the order of
            their first agent; a name that is the prefix of an agent is left out.

    Raises:
        GroupingError: specs that are no mapping or do not compare, or, when called, an agent without a spec.

    >>> group_map(["wolf_0", "sheep_0", "wolf_1"], by_spec({"wolf_0": 16, "wolf_1": 16, "sheep_0": 14}))
    {'wolf': ['wolf_0', 'wolf_1'], 'sheep': ['sheep_0']}
    >>> group_map(["wolf_0", "sheep_0", "wolf_1"], by_spec({"wolf_0": 16, "wolf_1": 14, "sheep_0": 16}))
    {'group_0': ['wolf_0', 'sheep_0'], 'group_1': ['wolf_1']}
    """
    if not hasattr(specs, "keys"):
        raise GroupingError(f"specs: expected a mapping from agent to spec, got {short_repr(specs)}")
    classes: list[list[str]] = []
    for name in as_names(specs, "specs"):
        for members in classes:
            try:
                equal = bool(specs[members[0]] == specs[name])
            except (ValueError, RuntimeError) as error:  # the comparison of two arrays is an array
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
    uses = Counter(itertools.chain.from_iterable(prefixes))  # prefix -> how many groups have it
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
