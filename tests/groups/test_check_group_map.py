"""Checks of group maps: every fault is named, all of them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torchrl.envs  # pyright: ignore[reportMissingTypeStubs]
import torchrl.envs.utils  # pyright: ignore[reportMissingTypeStubs]

from functional_marl._errors import GroupingError
from functional_marl._groups.check_group_map import check_group_map
from functional_marl._groups.group_map import group_map

BAD_MAPS: list[tuple[Any, Any, str]] = [
    ({}, [], "names: expected at least one agent, got none; pass the names"),
    ({"g": ["a"]}, ["a", "a"], "names: 'a' given more than once; give each agent its own name"),
    (
        {"g": ["a"], "h": ["b"], "i": []},
        ["a", "b"],
        "groups: expected at most 2 groups for 2 agents, got 3; group 'i' is empty",
    ),
    ({"g": ["a"], "h": []}, ["a", "b"], "group 'h' is empty; give it an agent or leave it out"),
    ({"g": ["a", "x"]}, ["a", "b"], "group 'g' has the unknown agent 'x'; known are 'a', 'b'"),
    ({"g": ["a", "b", "a"]}, ["a", "b"], "agent 'a' is in 2 places, 'g', 'g'; keep one of them"),
    ({"g": ["a", "b"], "h": ["a"]}, ["a", "b"], "agent 'a' is in 2 places, 'g', 'h'; keep one of them"),
    ({"g": ["a"]}, ["a", "b"], "groups: agent 'b' is in no group; add it to one of 'g'"),
    ({1: ["a"]}, ["a"], "groups: expected strings as group names, got [1]; name groups by strings"),
    ({"g": [0]}, ["a"], "groups['g']: expected strings as agent names, got [0]; use a list of strings"),
    ({"g": "a"}, ["a"], "groups['g']: expected a list of agent names, got 'a'; use a list of strings"),
    ({"g": {"a"}}, ["a"], "groups['g']: expected a list of agent names, got {'a'}; use a list of strings"),
    ({"g": 3}, ["a"], "groups['g']: expected a list of agent names, got 3; use a list of strings"),
    ({"g": ["a"]}, "a", "names: expected a list of agent names, got 'a'; use a list of strings"),
    ({"g": ["a"]}, [0], "names: expected strings as agent names, got [0]; use a list of strings"),
    (["a"], ["a"], "groups: expected a mapping from group to agent names, got ['a']"),
]


@pytest.mark.parametrize(("groups", "names", "message"), BAD_MAPS)
def test_check_group_map_names_each_fault(groups: Any, names: Any, message: str) -> None:
    with pytest.raises(GroupingError, match=re.escape(message)):
        check_group_map(groups, names)
    if isinstance(groups, Mapping):
        with pytest.raises(GroupingError, match=re.escape(message)):
            group_map(names, groups)  # pyright: ignore[reportUnknownArgumentType]


@pytest.mark.parametrize(("groups", "names", "message"), BAD_MAPS[:8])
def test_torchrl_raises_for_the_same_maps(groups: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)agent|group"):
        torchrl.envs.utils.check_marl_grouping(groups, names)


def test_no_agents_raise_before_their_groups_are_checked() -> None:
    with pytest.raises(GroupingError, match=r"^names: expected at least one agent, got none; pass .* the agents$"):
        check_group_map({"g": []}, [])


def test_check_group_map_lists_all_faults_at_once() -> None:
    with pytest.raises(GroupingError, match=r"unknown agent 'x'.*'a' is in 2 places.*'b' is in no group"):
        check_group_map({"g": ["a", "a", "x"]}, ["a", "b"])
    assert check_group_map({"g": ["a"]}, ["a"]) is None  # pyright: ignore[reportFunctionMemberAccess]
    assert issubclass(GroupingError, ValueError)
