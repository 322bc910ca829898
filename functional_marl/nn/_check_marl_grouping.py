"""``check_group_map`` under torchrl's name, with torchrl's argument names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from functional_marl._groups.check_group_map import check_group_map

__all__ = ["check_marl_grouping"]


def check_marl_grouping(group_map: Mapping[str, Sequence[str]], agent_names: Iterable[str]) -> None:
    """:func:`functional_marl.check_group_map` under the name of ``torchrl.envs.utils.check_marl_grouping``.

    Raises:
        GroupingError (a ValueError): the groups are no partition of the agents.

    >>> check_marl_grouping({"team": ["a", "b"], "solo": ["c"]}, ["a", "b", "c"])
    """
    check_group_map(group_map, agent_names)
