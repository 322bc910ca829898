"""From what users give as ``sharing=`` to one slot map for each leaf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functional_marl._check_arguments import short_repr
from functional_marl._errors import SharingError
from functional_marl._name_patterns import match_patterns
from functional_marl._sharing.presets import PRESETS
from functional_marl._sharing.slot_map import Sharing

__all__ = ["SharingSpec", "resolve"]

SharingSpec = str | Sequence[int] | Sharing | Mapping[str, Any]


def resolve(spec: SharingSpec, n_agents: int, names: Iterable[str]) -> dict[str, Sharing]:
    """One slot map for each leaf.

    Args:
        spec: a preset, a list of slots, a Sharing, or a mapping from patterns over leaf names to any of these
            (``fnmatch.fnmatchcase``; ``*`` also matches dots; the first match wins). A list has no empty slot; a
            Sharing may have some.
        n_agents: the number of agents.
        names: the dotted names of the leaves.

    Raises:
        SharingError: an unknown preset, the wrong number of agents, a list with an empty slot, a leaf that no
            pattern matches, or a pattern that decides no leaf.

    >>> resolve({"0.*": "shared", "*": [0, 0, 1]}, 3, ["0.weight", "2.weight"])
    {'0.weight': Sharing([0, 0, 0], n_slots=1), '2.weight': Sharing([0, 0, 1], n_slots=2)}
    """
    if not isinstance(spec, Mapping):
        return dict.fromkeys(names, _slot_map(spec, n_agents, "sharing"))
    if wrong := [p for p in spec if not isinstance(p, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SharingError(f"sharing: expected patterns over leaf names, strings such as '0.*', got {wrong}")
    maps = {pattern: _slot_map(spec[pattern], n_agents, f"sharing[{pattern!r}]") for pattern in spec}
    return {name: maps[pattern] for name, pattern in match_patterns(names, maps, "sharing", SharingError).items()}


def _slot_map(spec: Any, n_agents: int, where: str) -> Sharing:
    """The slot map of ``n_agents`` agents from a spec without patterns."""
    preset = PRESETS.get(spec) if isinstance(spec, str) else None
    if preset is not None:
        return preset(n_agents)
    if isinstance(spec, str | bool) or not isinstance(spec, Iterable):
        presets = ", ".join(map(repr, PRESETS))
        raise SharingError(f"{where}: expected {presets}, a list of slots or a Sharing, got {short_repr(spec)}")
    sharing = spec if isinstance(spec, Sharing) else Sharing(spec)  # pyright: ignore[reportUnknownArgumentType]
    if sharing.n_agents != n_agents:
        raise SharingError(
            f"{where}: expected one slot for each of {n_agents} agents, got {sharing.n_agents}: {list(sharing)}"
        )
    if not isinstance(spec, Sharing) and (empty := sharing.unused()):  # in a list this is most often a mistake
        raise SharingError(
            f"{where}: no agent is in the slots {list(empty)} of {list(sharing)}; slots count from 0 without gaps: "
            f"renumber them, or give fm.{sharing!r} if they are to be empty"
        )
    return sharing
