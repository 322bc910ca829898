"""What became of one law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["HOLDS", "NOT_APPLICABLE", "SKIPPED", "VIOLATED", "Verdict"]

HOLDS, VIOLATED, NOT_APPLICABLE, SKIPPED = "holds", "violated", "not applicable", "skipped"


@dataclass(frozen=True)
class Verdict:
    """One law and what became of it.

    Args:
        number, law: which one; the number is for display.
        verdict: ``"holds"``, ``"violated"``, ``"not applicable"`` or, if the caller excluded the law, ``"skipped"``.
        why: what was found, or why the law does not apply.
        cases: how many cases were checked.
        case: the smallest case found that violates the law: agents, rows of the batch, seed.
        snippet: what reproduces the violation: Python or a command.
        train: whether the law was checked in training mode.
        statement: what the law says, in English.
    """

    number: int
    law: str
    verdict: str
    why: str = ""
    cases: int = 0
    case: dict[str, Any] | None = None
    snippet: str = ""
    train: bool = False
    statement: str = ""

    @property
    def label(self) -> str:
        """The name of the law, with the mode if that is training."""
        return f"{self.law} (training)" if self.train else self.law
