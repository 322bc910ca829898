"""Shell patterns over leaf names: the first match wins, every leaf has a match, every pattern decides a leaf."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

__all__ = ["match_patterns"]


def match_patterns(names: Iterable[str], patterns: Iterable[str], what: str, error: type[ValueError]) -> dict[str, str]:
    """The first pattern that matches each name (``fnmatch.fnmatchcase``; ``*`` also matches dots).

    Args:
        names: the dotted names of the leaves.
        patterns: the patterns, in order.
        what: the start of the error.
        error: the type of the error.

    Raises:
        error: a leaf that no pattern matches, or a pattern that is the first match of no leaf.

    >>> match_patterns(["0.weight", "2.weight"], ["0.*", "*"], "sharing", ValueError)
    {'0.weight': '0.*', '2.weight': '*'}
    """
    leaves, given = list(names), list(patterns)
    first = {name: next((pattern for pattern in given if fnmatchcase(name, pattern)), None) for name in leaves}
    if unmatched := [name for name, pattern in first.items() if pattern is None]:
        raise error(f"{what}: no pattern of {given} matches {unmatched}; end the patterns with '*'")
    if unused := [pattern for pattern in given if pattern not in first.values()]:
        raise error(
            f"{what}: the patterns {unused} decide no leaf (the first match wins); patterns are shell patterns such as "
            f"'0.*' over the leaves {leaves}"
        )
    return {name: pattern for name, pattern in first.items() if pattern is not None}
