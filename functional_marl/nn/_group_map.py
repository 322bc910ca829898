"""``check_marl_grouping`` under torchrl's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from functional_marl._groups.group_map import check_group_map

__all__ = ["check_marl_grouping"]


def check_marl_grouping(group_map: Mapping[str, Sequence[str]], agent_names: Iterable[str]) -> None:
    """Raise unless the groups are a partition of the agents; :func:`functional_marl.check_group_map`.

    Raises:
        GroupingError (a ValueError): no agents, two of one name, more groups than agents, an empty group, an
            unknown agent, one given twice, or one in no group.

    After ``torchrl.envs.utils.check_marl_grouping`` (pytorch.org/rl).

    >>> check_marl_grouping({"team": ["a", "b"], "solo": ["c"]}, ["a", "b", "c"])
    """
    check_group_map(group_map, agent_names)
