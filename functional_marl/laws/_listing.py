"""The set of laws as text: what ``python -m functional_marl.laws --list`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

__all__ = ["listing"]

_WIDTH = 110


def listing(laws: Iterable[Any], version: str = "", defaults: Iterable[str] | None = None) -> str:
    """Each law with its statement, the mathematics, and what it needs of a subject, by topic.

    Args:
        laws: entries of ``functional_marl.laws.LAWS``.
        version: the version of the set of laws.
        defaults: the names of the laws that are checked by default; by default those that say so themselves.
    """
    topics: dict[str, list[Any]] = {}
    for law in sorted(laws, key=lambda law: (law.number, law.name)):
        topics.setdefault(law.topic, []).append(law)
    every = [law for found in topics.values() for law in found]
    usual = {law.name for law in every if law.default} if defaults is None else set(defaults)
    count = f"{_count(len(every), 'law')} in {_count(len(topics), 'topic')}"
    lines = [f"The laws of sharing{f', version {version}' if version else ''}: {count}."]
    if any(law.name not in usual for law in every):
        lines.append("Those marked * are not checked by default: --laws all, or by name.")
    for topic, found in topics.items():
        lines += ["", topic.strip("_").replace("_", " ").capitalize()]
        for law in found:
            lines += _entry(law, "" if law.name in usual else " *")
    return "\n".join(lines)


def _entry(law: Any, mark: str) -> list[str]:
    """One law in a few lines. The docstring of a law is the mathematics, an empty line, then the English."""
    formula, english = " ".join(law.formula.split()), " ".join(law.english.split())
    needs = "; ".join(dict.fromkeys(each.name for each in law.requires)) or "nothing"
    lines = [f"  {law.name}{mark}  (law {law.number})"]
    for text in filter(None, (english, formula, f"needs: {needs}")):
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent="      ",
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
