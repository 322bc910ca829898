"""Params split into labelled parts by name, and combined again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from functional_marl._check_arguments import as_mapping
from functional_marl._errors import StructureError
from functional_marl._name_patterns import match_patterns
from functional_marl._tensordict import as_flat_dict

__all__ = ["combine", "partition"]


def partition(params: Mapping[str, Any], patterns: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Split params by the names of the leaves: ``{label: part}``, to freeze some or to train them at another rate.

    ``equinox.partition`` splits a tree in two by a filter on leaves, and puts ``None`` where a leaf went to the other
    tree; here there are as many parts as labels, and a part has its own leaves only. ``optax.partition`` gives each
    label an optimizer; here nothing is optimized: give each part to an optimizer of its own.

    Args:
        params: a flat dict of dotted names. The parts hold the same tensors.
        patterns: shell patterns over the names, each with the label of its part; the first match wins.

    Raises:
        StructureError: a leaf that no pattern matches, or a pattern that decides no leaf.

    >>> parts = partition({"0.w": 1, "2.w": 2}, {"0.*": "frozen", "*": "trained"})
    >>> parts
    {'frozen': {'0.w': 1}, 'trained': {'2.w': 2}}
    >>> combine(parts["frozen"], parts["trained"])
    {'0.w': 1, '2.w': 2}
    """
    params = as_flat_dict(params)
    as_mapping(patterns, "patterns", "from pattern to label, such as {'0.*': 'frozen', '*': 'trained'}")
    wrong = [name for name in (*params, *patterns) if not isinstance(name, str)]  # pyright: ignore
    if wrong:
        raise StructureError(f"partition: expected strings as names in params and as patterns, got {wrong}")
    try:
        parts: dict[str, dict[str, Any]] = {label: {} for label in patterns.values()}
    except TypeError:
        raise StructureError(f"patterns: expected strings as labels, got {list(patterns.values())}") from None
    if params:  # of no leaves, every part is empty
        for name, pattern in match_patterns(params, patterns, "partition", StructureError).items():
            parts[patterns[pattern]][name] = params[name]
    return parts


def combine(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of the leaves of all parts; the inverse of :func:`partition`.

    Raises:
        StructureError: a part that is no dict, or a leaf in two parts.

    >>> combine({"0.w": 1}, {"2.w": 2})
    {'0.w': 1, '2.w': 2}
    """
    whole: dict[str, Any] = {}
    for i, part in enumerate(as_flat_dict(part, f"parts[{i}]") for i, part in enumerate(parts)):
        twice = sorted(map(str, whole.keys() & part.keys()))
        if twice:
            raise StructureError(f"combine: {twice} are in more than one part, the second of them parts[{i}]")
        whole.update(part)
    return whole
