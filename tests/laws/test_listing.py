"""The list of laws, on laws made for the test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from functional_marl.laws._listing import listing


def law(number: int, name: str, topic: str, *needs: str, default: bool = True, english: str = "It is so.") -> Any:
    requires = tuple(SimpleNamespace(name=need, reason="") for need in needs)
    return SimpleNamespace(
        number=number, name=name, topic=topic, requires=requires, default=default, formula="f(x) = x", english=english
    )


def test_the_whole_list() -> None:
    laws = [
        law(37, "batch_is_a_loop", "shapes", "rows apart", "a batch", "rows apart"),
        law(18, "local_jacobian", "dependence", english="Each agent sees\n  its own input."),
        law(36, "agent_dim_is_a_place", "shapes", default=False, english=""),
    ]
    assert (
        listing(laws, "2026.1")
        == """\
The laws of sharing, version 2026.1: 3 laws in 2 topics.
Those marked * are not checked by default: --laws all, or by name.

Dependence
  local_jacobian  (law 18)
      Each agent sees its own input.
      f(x) = x
      needs: nothing

Shapes
  agent_dim_is_a_place *  (law 36)
      f(x) = x
      needs: nothing
  batch_is_a_loop  (law 37)
      It is so.
      f(x) = x
      needs: rows apart; a batch"""
    )


def test_the_caller_may_say_what_is_checked_by_default() -> None:
    laws = [law(1, "one", "a"), law(2, "two", "a", default=False)]
    assert "one *" not in listing(laws)
    assert "two *" in listing(laws)
    assert "marked *" not in listing(laws, defaults=["one", "two"])
    assert "one *" in listing(laws, defaults=["two"])


def test_one_law_and_long_lines() -> None:
    text = listing([law(1, "one", "a", english="word " * 60)])
    assert text.startswith("The laws of sharing: 1 law in 1 topic.")
    assert max(map(len, text.splitlines())) <= 110
    assert text.count("word") == 60
