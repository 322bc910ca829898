"""What a check found: a verdict a law, as a table and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

__all__ = ["Report", "Verdict"]

HOLDS, VIOLATED, NOT_APPLICABLE, SKIPPED = "holds", "violated", "not applicable", "skipped"


@dataclass(frozen=True)
class Verdict:
    """One law and what became of it.

    Args:
        number, law: which one.
        verdict: ``"holds"``, ``"violated"`` or ``"not applicable"``.
        why: what was found, or why the law says nothing.
        cases: how many cases were asked.
        case: the smallest case found that breaks it: agents, rows of the batch, seed.
        snippet: Python that raises the violation again.
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


@dataclass(frozen=True)
class Report:
    """The verdicts on one subject; true where no law is violated.

    Args:
        subject: what was asked.
        facts: what was claimed, by whom, and what was inferred.
        verdicts: one a law.
    """

    subject: str
    facts: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    def __bool__(self) -> bool:
        return not self.violated

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __getitem__(self, law: str) -> Verdict:
        found = {verdict.law: verdict for verdict in self.verdicts}
        if law not in found:
            raise KeyError(f"no verdict on {law!r}; the laws are {list(found)}")
        return found[law]

    @property
    def violated(self) -> list[Verdict]:
        """The laws that the subject breaks."""
        return [verdict for verdict in self.verdicts if verdict.verdict == VIOLATED]

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(
            {
                "subject": self.subject,
                **self.facts,
                "ok": bool(self),
                "laws": [asdict(verdict) for verdict in self.verdicts],
            },
            indent=2,
            default=str,
        )

    def __str__(self) -> str:
        lines = [self.subject, *(f"  {name}: {value}" for name, value in self.facts.items()), ""]
        width = max((len(verdict.law) for verdict in self.verdicts), default=0)
        for verdict in self.verdicts:
            if verdict.verdict not in (SKIPPED, NOT_APPLICABLE):
                cases = (
                    f"{verdict.cases} case{'s' * (verdict.cases != 1)}"
                    if verdict.verdict == HOLDS
                    else _shown(verdict.case)
                )
                lines.append(
                    f"{verdict.number:>3}  {verdict.law:<{width}} {'T' if verdict.train else ' '} {verdict.verdict:<9} {cases}"
                )
        skipped: dict[str, list[str]] = {}
        for verdict in self.verdicts:
            if verdict.verdict in (SKIPPED, NOT_APPLICABLE):
                skipped.setdefault(verdict.why, []).append(f"{verdict.number} {verdict.law}")
        for why, laws in skipped.items():
            lines += textwrap.wrap(f"not applicable, {why}: {', '.join(laws)}", 110, subsequent_indent="     ")
        for verdict in self.violated:
            lines += ["", verdict.why, *textwrap.indent(verdict.snippet, "    ").splitlines()]
        count = {
            kind: sum(v.verdict == kind for v in self.verdicts) for kind in (HOLDS, VIOLATED, NOT_APPLICABLE, SKIPPED)
        }
        counts = ", ".join(f"{number} {kind}" for kind, number in count.items())
        lines += ["", f"{counts}; sharing: {self.facts['sharing']}" if "sharing" in self.facts else counts]
        return "\n".join(lines)


def _shown(case: dict[str, Any] | None) -> str:
    def plain(value: Any) -> str:
        return ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)

    return "; ".join(f"{name} {plain(value)}" for name, value in (case or {}).items())
