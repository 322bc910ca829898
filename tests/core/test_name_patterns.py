"""Shell patterns over leaf names."""

from __future__ import annotations

import re

import pytest

from functional_marl._name_patterns import match_patterns

NAMES = ["0.weight", "0.bias", "2.weight", "10.weight"]


def test_the_first_match_wins_and_stars_match_dots() -> None:
    assert match_patterns(NAMES, ["0.bias", "0*", "[2].*", "*"], "sharing", ValueError) == {
        "0.weight": "0*",
        "0.bias": "0.bias",
        "2.weight": "[2].*",
        "10.weight": "*",
    }
    assert list(match_patterns(reversed(NAMES), ["*"], "sharing", ValueError)) == NAMES[::-1]
    assert match_patterns(["A.w", "a.w"], ["A*", "a*"], "sharing", ValueError) == {"A.w": "A*", "a.w": "a*"}
    assert match_patterns([], [], "sharing", ValueError) == {}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["0.*"], "parts: no pattern of ['0.*'] matches ['2.weight', '10.weight']; end the patterns with '*'"),
        ([], f"parts: no pattern of [] matches {NAMES}; end the patterns with '*'"),
        (
            ["*", "0.*", "9.*"],
            "parts: the patterns ['0.*', '9.*'] decide no leaf (the first match wins); patterns are shell patterns "
            f"such as '0.*' over the leaves {NAMES}",
        ),
    ],
)
def test_a_leaf_without_a_pattern_and_a_pattern_without_a_leaf_raise(patterns: list[str], message: str) -> None:
    with pytest.raises(LookupError, match=f"^{re.escape(message)}$"):
        match_patterns(NAMES, patterns, "parts", _Error)


class _Error(LookupError, ValueError):
    pass
