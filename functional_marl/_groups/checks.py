"""Checks of group maps, and of data keyed by agent or by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functional_marl._arguments import is_list, short_repr
from functional_marl._errors import GroupingError

__all__ = ["as_groups", "as_names", "check_group_map", "check_keys", "quote"]


def as_names(names: Any, what: str) -> list[str]:
    """The names as a new list. A set raises: it has no order, and an agent axis needs one."""
    if not (is_list(names) or isinstance(names, Mapping)):
        raise GroupingError(f"{what}: expected a list of agent names, got {short_repr(names)}; use a list of strings")
    listed: list[Any] = list(names)  # pyright: ignore[reportUnknownArgumentType]
    if wrong := [name for name in listed if not isinstance(name, str)]:
        raise GroupingError(f"{what}: expected strings as agent names, got {wrong!r}; use a list of strings")
    return listed


def as_groups(groups: Mapping[Any, Any]) -> dict[str, list[str]]:
    """The group map as a new dict of new lists; whether it is a partition is not checked here."""
    if not isinstance(groups, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"groups: expected a mapping from group to agent names, got {short_repr(groups)}")
    return {group: as_names(members, f"groups[{group!r}]") for group, members in groups.items()}


def quote(names: Iterable[Any]) -> str:
    """The names, quoted, for an error."""
    return ", ".join(repr(name) for name in names)


def check_group_map(groups: Mapping[str, Sequence[str]], names: Iterable[str]) -> None:
    """Raise unless ``groups`` is a partition of ``names``: each agent in exactly one group, no group empty.

    Raises:
        GroupingError: no agents, two agents of one name, a name that is no string, more groups than agents,
            an empty group, an unknown agent, an agent in more than one place, or an agent without a group.
            One error lists everything that is wrong with the groups.

    >>> check_group_map({"team": ["a", "b"], "solo": ["c"]}, ["a", "b", "c"])
    >>> check_group_map({"team": ["a"]}, ["a", "b"])
    Traceback (most recent call last):
        ...
    functional_marl.GroupingError: groups: agent 'b' is in no group; add it to one of 'team'
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
    groups_of: dict[str, list[str]] = {name: [] for name in agents}
    for group, listed in members.items():
        if not listed:
            wrong.append(f"group {group!r} is empty; give it an agent or leave it out")
        for name in listed:
            if name not in groups_of:
                wrong.append(f"group {group!r} has the unknown agent {name!r}; known are {quote(agents)}")
            groups_of.get(name, []).append(group)
    for name, found in groups_of.items():
        if len(found) > 1:
            wrong.append(f"agent {name!r} is in {len(found)} places, {quote(found)}; keep one of them")
        elif not found:
            wrong.append(f"agent {name!r} is in no group; add it to one of {quote(groups)}")
    if wrong:
        raise GroupingError("groups: " + "; ".join(wrong))


def check_keys(what: str, kind: str, given: Any, wanted: Iterable[str], fix: str) -> None:
    """Raise unless a mapping or TensorDict has exactly these keys.

    Args:
        what: its name, for the error.
        kind: what its keys are, ``"agent"`` or ``"group"``.
        given: the mapping.
        wanted: the keys.
        fix: the end of the error.

    Raises:
        GroupingError: no mapping, or other keys.
    """
    if not hasattr(given, "keys"):
        raise GroupingError(f"{what}: expected a mapping from {kind} to tree, got {type(given).__name__}; {fix}")
    expected, got = dict.fromkeys(wanted), dict.fromkeys(given.keys())
    if expected.keys() != got.keys():
        missing = quote(key for key in expected if key not in got)
        extra = quote(key for key in got if key not in expected)
        raise GroupingError(
            f"{what}: expected the {kind}s {quote(expected)}, got {quote(got) or 'none'}"
            f" (missing: {missing or 'none'}; extra: {extra or 'none'}); {fix}"
        )
