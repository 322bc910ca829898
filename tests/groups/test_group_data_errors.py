"""Errors for data that do not fit their groups: each leaf is named, with the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from functional_marl._errors import GroupingError, StructureError
from functional_marl._groups.group_data import group_agents, ungroup_agents

GOOD = {"a": {"x": torch.zeros(5, 3)}, "b": {"x": torch.zeros(5, 3)}}

BAD_DATA: list[tuple[Any, int, type[Exception], str]] = [
    (
        {"a": GOOD["a"]},
        0,
        GroupingError,
        "per_agent: expected the agents 'a', 'b', got 'a' (missing: 'b'; extra: none); give every agent",
    ),
    (
        {**GOOD, "z": GOOD["a"]},
        0,
        GroupingError,
        "per_agent: expected the agents 'a', 'b', got 'a', 'b', 'z' (missing: none; extra: 'z')",
    ),
    ({}, 0, GroupingError, "expected the agents 'a', 'b', got none (missing: 'a', 'b'; extra: none); give every"),
    ([1, 2], 0, GroupingError, "per_agent: expected a mapping from agent to tree, got list; give every"),
    (
        {**GOOD, "b": {"x": torch.zeros(5, 4)}},
        1,
        StructureError,
        "group 'g' of 'a', 'b' cannot be stacked, compared with 'a': per_agent['b']['x']: expected shape [5, 3],"
        " got [5, 4]; pad or cast the data, or put these agents into different groups",
    ),
    (
        {**GOOD, "b": {"x": torch.zeros(5, 3, dtype=torch.int8)}},
        1,
        StructureError,
        "per_agent['b']['x']: expected torch.float32, got torch.int8",
    ),
    (
        {**GOOD, "b": {"x": torch.zeros(5, 4), "y": torch.zeros(5)}},
        1,
        StructureError,
        "['b']['x']: expected shape [5, 3], got [5, 4]; per_agent['b']['y']: expected no leaf, got one",
    ),
    ({**GOOD, "b": {}}, 0, StructureError, "per_agent['b']['x']: expected a leaf, got none"),
    (
        {"a": {"x": "left"}, "b": {"x": "right"}},
        0,
        StructureError,
        "per_agent['a']['x']: expected a tensor, an array or a number, got str; leave it out;"
        " per_agent['b']['x']: expected a tensor",
    ),
    (
        {"a": {"x": "left"}, "b": {"x": torch.zeros(1)}},
        0,
        StructureError,
        "per_agent['a']['x']: expected a tensor, an array or a number, got str; leave it out; pad",
    ),
    (
        GOOD,
        3,
        StructureError,
        "['a']['x']: expected 3 or more batch axes, got shape [5, 3]; per_agent['b']['x']: expected 3",
    ),
    (
        {"a": {"x": torch.zeros(2)}, "b": {"x": [0.0, 0.0]}},
        0,
        StructureError,
        "per_agent['b']['x']: expected a leaf, got none; per_agent['b']['x'][0]: expected no leaf, got one",
    ),
    (
        {"a": (1, ()), "b": (1, [])},
        0,
        StructureError,
        "group 'g' of 'a', 'b' cannot be stacked, compared with 'a': ",
    ),
    (
        {"a": TensorDict({"x": torch.zeros(5, 3), "y": torch.zeros(6, 3)}), "b": TensorDict()},
        0,
        StructureError,
        "per_agent['b']['x']: expected a leaf, got none; per_agent['b']['y']: expected a leaf, got none",
    ),
    (GOOD, -1, StructureError, "batch_dims: expected an int of 0 or more, got -1"),
    (GOOD, True, StructureError, "batch_dims: expected an int of 0 or more, got True"),
]


@pytest.mark.parametrize(("per_agent", "batch_dims", "error", "message"), BAD_DATA)
def test_group_agents_names_each_fault(per_agent: Any, batch_dims: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        group_agents({"g": ["a", "b"]}, per_agent, batch_dims)


def test_different_batch_sizes_raise() -> None:
    one = TensorDict({"x": torch.zeros(5, 3), "y": torch.zeros(6, 3)})
    with pytest.raises(StructureError, match=r"group 'g' of 'a', 'b' cannot be stacked, compared with 'a': .*batch"):
        group_agents({"g": ["a", "b"]}, {"a": one, "b": one}, 1)


def test_a_map_that_is_no_partition_raises() -> None:
    with pytest.raises(GroupingError, match=r"agent 'a' is in 2 places, 'g', 'h'"):
        group_agents({"g": ["a", "b"], "h": ["a"]}, GOOD)
    with pytest.raises(GroupingError, match=r"groups\['g'\]: expected a list of agent names, got 'ab'"):
        group_agents({"g": "ab"}, GOOD)
    with pytest.raises(GroupingError, match=r"groups: expected a mapping from group to agent names, got None"):
        group_agents(None, GOOD)  # pyright: ignore[reportArgumentType]
    with pytest.raises(GroupingError, match=r"groups: expected at least one agent, got none"):
        ungroup_agents({}, {})


BAD_GROUPED: list[tuple[Any, int, bool, type[Exception], str]] = [
    (
        {"g": torch.zeros(2, 3)},
        0,
        False,
        GroupingError,
        "grouped: expected the groups 'g', 'solo', got 'g' (missing: 'solo'; extra: none); give one tree",
    ),
    (torch.zeros(2), 0, False, GroupingError, "grouped: expected a mapping from group to tree, got Tensor"),
    (
        {"g": {"x": torch.zeros(3, 2), "y": torch.zeros(2), "z": torch.zeros(())}, "solo": torch.zeros(1)},
        0,
        False,
        StructureError,
        "grouped['g']['x']: expected 2 agents on axis 0, got shape [3, 2];"
        " grouped['g']['z']: expected 2 agents on axis 0, got shape [] (agents 'a', 'b'); check",
    ),
    (
        {"g": torch.zeros(2), "solo": torch.zeros(1)},
        1,
        False,
        StructureError,
        "grouped['g']: expected 2 agents on axis 1, got shape [2]",
    ),
    (
        {"g": torch.zeros(5, 2), "solo": torch.zeros(())},
        1,
        True,
        StructureError,
        "grouped['solo']: expected 1 or more batch axes, got shape []",
    ),
    (
        {"g": torch.zeros(2, 2), "solo": "s"},
        0,
        True,
        StructureError,
        "grouped['solo']: expected a tensor, an array or a number, got str",
    ),
    (
        {"g": torch.zeros(2), "solo": torch.zeros(1)},
        -1,
        False,
        StructureError,
        "batch_dims: expected an int of 0 or more",
    ),
]


@pytest.mark.parametrize(("grouped", "batch_dims", "squeeze", "error", "message"), BAD_GROUPED)
def test_ungroup_agents_names_each_fault(
    grouped: Any, batch_dims: int, squeeze: bool, error: type[Exception], message: str
) -> None:
    groups: Mapping[str, Sequence[str]] = {"g": ["a", "b"], "solo": ["c"]}
    with pytest.raises(error, match=re.escape(message)):
        ungroup_agents(groups, grouped, batch_dims, squeeze_singletons=squeeze)
