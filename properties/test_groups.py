"""The laws of groups, in addition to ``test_laws.py``: torchrl's own enum, and one small case."""

from __future__ import annotations

from dataclasses import replace

import torch
import torchrl.envs.utils  # pyright: ignore[reportMissingTypeStubs]
from hypothesis import given

from functional_marl.laws import LAWS, Grouped, Named, Operations
from functional_marl.laws.strategies import groupings
from properties.mutants_calls import group_at_axis_0, ungroup_at_axis_0

THEIRS = groupings(more=list(torchrl.envs.utils.MarlGroupMapType))


@given(THEIRS)
def test_torchrl_groupings_partition(case: Named) -> None:
    LAWS["group_map_is_a_partition"](case)


@given(THEIRS)
def test_torchrl_groupings_are_not_aliased(case: Named) -> None:
    LAWS["group_map_is_the_callers"](case)


def small_case() -> Grouped:
    """Two groups of different agents, not in order, with two batch axes as long as a group."""
    data = {name: {"x": torch.arange(8).view(2, 2, 2) + 10 * i} for i, name in enumerate("abc")}
    return Grouped({"two": ["c", "a"], "one": ["b"]}, data, 2, squeeze=True)


def test_small_case() -> None:
    LAWS["group_round_trip"](small_case())
    LAWS["group_layout"](small_case())


def test_the_round_trip_cannot_see_the_layout() -> None:
    # If both functions use axis 0, all values come back, but no network finds its agents. So the layout is a law.
    ops = replace(Operations(), group_agents=group_at_axis_0, ungroup_agents=ungroup_at_axis_0)
    LAWS["group_round_trip"](replace(small_case(), ops=ops))
