"""What a check found: one verdict for each law, as text, as JSON and as JUnit XML."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from functional_marl.laws._junit import junit
from functional_marl.laws._verdict import HOLDS, NOT_APPLICABLE, SKIPPED, VIOLATED, Verdict

__all__ = ["Report"]

_WIDTH = 110


@dataclass(frozen=True)
class Report:
    """The verdicts on one subject; true if no law is violated.

    A law that was checked in evaluation and in training has two verdicts.

    Args:
        subject: what was checked.
        facts: what was claimed, by whom, and what was inferred. The text puts ``n_agents``, ``sharing``,
            ``view`` ("local", "centralized" or "communicating"), ``ids``, ``randomness`` and ``inferred`` into words,
            and shows all others as they are.
        verdicts: at least one for each law.
        version: the version of the set of laws.
    """

    subject: str
    facts: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    version: str = ""

    def __bool__(self) -> bool:
        return not self.violated

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __getitem__(self, law: str) -> Verdict:
        """The verdict on a law; of two, the one that says more: violated, then holds."""
        found = [verdict for verdict in self.verdicts if verdict.law == law]
        if not found:
            raise KeyError(f"no verdict on {law!r}; the laws are {list(dict.fromkeys(v.law for v in self.verdicts))}")
        return min(found, key=lambda verdict: (VIOLATED, HOLDS, SKIPPED, NOT_APPLICABLE).index(verdict.verdict))

    def __str__(self) -> str:
        return self.text()

    @property
    def violated(self) -> list[Verdict]:
        """The verdicts on laws that the subject violates."""
        return [verdict for verdict in self.verdicts if verdict.verdict == VIOLATED]

    # --- as text ------------------------------------------------------------------------------------------

    def text(self, verbose: bool = False) -> str:
        """The report to read: the verdict first, then each violated law with what reproduces it.

        Args:
            verbose: also list why laws do not apply, and how many cases each law was checked on.

        >>> print(Report("Policy", {"n_agents": 2}, (Verdict(18, "local_jacobian", "holds", cases=20),)))
        The one law that applies to Policy holds.
        claim: 2 agents; in evaluation
        <BLANKLINE>
        1 law holds: local_jacobian.
        """
        modes = {verdict.train for verdict in self.verdicts if verdict.verdict in (HOLDS, VIOLATED)}
        lines = [self._headline(), *_claim(self.facts, modes, not self or verbose), *self._unchecked()]
        lines += [line for verdict in self.violated for line in _violation(verdict)]
        held = self._held()
        if held:
            start = f"{_laws(len(held))} {'hold' if len(held) > 1 else 'holds'}: "
            lines += ["", *_wrapped(f"{start}{', '.join(held)}.")]
        skipped = self._labels(SKIPPED)
        if skipped:
            lines += ["", *_wrapped(f"{_laws(len(skipped))} skipped: {', '.join(skipped)}.")]
        silent = {v.law for v in self.verdicts} - self._applying() - {v.law for v in self if v.verdict == SKIPPED}
        if verbose:
            lines += self._reasons() + self._table()
        elif silent:
            do = "do" if len(silent) > 1 else "does"
            lines += ["", f"{_laws(len(silent))} {do} not apply: --verbose, or text(verbose=True), lists why."]
        return "\n".join(lines)

    def _unchecked(self) -> list[str]:
        """That the claimed sharing itself was not checked, and why."""
        found = [verdict for verdict in self.verdicts if verdict.law == "gradient_reaches_own_slot"]
        if self.facts.get("sharing") is None or not found or found[0].verdict != NOT_APPLICABLE:
            return []
        return list(_wrapped(f"not checked: who trains what, for {found[0].why}", "  "))

    def _applying(self) -> set[str]:
        return {verdict.law for verdict in self.verdicts if verdict.verdict in (HOLDS, VIOLATED)}

    def _labels(self, *kinds: str) -> list[str]:
        return list(dict.fromkeys(verdict.label for verdict in self.verdicts if verdict.verdict in kinds))

    def _headline(self) -> str:
        broken, count = len({verdict.law for verdict in self.violated}), len(self._applying())
        if broken:
            return f"VIOLATED: {_laws(broken)} of {count}; {self.subject} does not keep what it claims"
        if count == 0:
            return f"Nothing was checked: no law applies to {self.subject}."
        if count == 1:
            return f"The one law that applies to {self.subject} holds."
        return f"All {count} laws that apply to {self.subject} hold."

    def _held(self) -> list[str]:
        """Each law that holds somewhere; the mode is named where the law does not hold in every mode."""
        names: list[str] = []
        for law in dict.fromkeys(verdict.law for verdict in self.verdicts if verdict.verdict == HOLDS):
            modes = {verdict.train for verdict in self.verdicts if verdict.law == law and verdict.verdict == HOLDS}
            broken = any(verdict.law == law for verdict in self.violated)
            names.append(f"{law} (training)" if modes == {True} else f"{law} (evaluation)" if broken else law)
        return names

    def _reasons(self) -> list[str]:
        """Why laws do not apply, each reason once."""
        by_reason: dict[str, list[str]] = {}
        for verdict in self.verdicts:
            if verdict.verdict == NOT_APPLICABLE:
                by_reason.setdefault(verdict.why, []).append(verdict.label)
        lines = ["", "Not applicable:"] if by_reason else []
        for why, laws in by_reason.items():
            lines += _wrapped(f"  {why}: {', '.join(laws)}", "      ")
        return lines

    def _table(self) -> list[str]:
        rows = [verdict for verdict in self.verdicts if verdict.verdict in (HOLDS, VIOLATED)]
        width = max((len(verdict.label) for verdict in rows), default=0)
        lines = ["", "Cases:"] if rows else []
        for verdict in rows:
            cases = f"{verdict.cases} case{'s' * (verdict.cases != 1)}"
            lines.append(f"{verdict.number:>4}  {verdict.label:<{width}}  {verdict.verdict:<8}  {cases}")
        return lines

    # --- as files -----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything, as :meth:`to_json` writes it."""
        return {
            "subject": self.subject,
            **self.facts,
            "ok": bool(self),
            "versions": {
                "laws": self.version,
                "functional_marl": sys.modules[__name__.partition(".")[0]].__version__,
                "torch": torch.__version__,
            },
            "laws": [asdict(verdict) for verdict in self.verdicts],
        }

    def to_json(self) -> str:
        """Everything, as JSON, with the versions of the laws, of this package and of torch."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_junit(self) -> str:
        """The verdicts as JUnit XML, which CI systems show: one test case for each."""
        return junit(self.subject, {"laws_version": self.version, **self.facts}, self.verdicts)

    def write(self, path: str | Path) -> None:
        """Write the report to a file: ``.json``, ``.xml`` (JUnit) or ``.txt`` (the verbose text).

        Raises:
            ValueError: any other suffix.
        """
        forms = {".json": self.to_json, ".xml": self.to_junit, ".txt": lambda: self.text(verbose=True)}
        form = forms.get(Path(path).suffix.lower())
        if form is None:
            raise ValueError(f"path: expected a name that ends in {', '.join(forms)}, got {str(path)!r}")
        Path(path).write_text(form() + "\n", encoding="utf-8")


# --- parts of the text ------------------------------------------------------------------------------------

_WORDED = ("n_agents", "sharing", "view", "ids", "randomness", "inferred")


def _claim(facts: dict[str, Any], modes: set[bool], inferred: bool) -> list[str]:
    """The claim in one line, then facts that have no words of their own."""
    parts: list[str] = []
    if facts.get("sharing") is not None:
        parts.append(f"sharing {facts['sharing']}")
    elif facts.get("inferred") is not None:
        parts.append(f"sharing {facts['inferred']} (inferred)")
        inferred = False
    if facts.get("view") is not None:
        parts.append(facts["view"])
    if facts.get("ids"):
        parts.append("with ids of its own")
    if facts.get("n_agents") is not None:
        parts.append(f"{facts['n_agents']} agent{'s' * (facts['n_agents'] != 1)}")
    if facts.get("randomness") is not None:
        parts.append(f"randomness {facts['randomness']}")
    if parts and modes:
        parts.append("in " + " and ".join("training" if train else "evaluation" for train in sorted(modes)))
    lines = [f"claim: {'; '.join(parts)}"] if parts else []
    if inferred and facts.get("inferred") is not None:
        mixed = isinstance(facts["inferred"], dict)
        lines.append(f"inferred: {'mixed: infer_sharing lists it' if mixed else facts['inferred']}")
    lines += [f"{name}: {value}" for name, value in facts.items() if name not in _WORDED and value is not None]
    return [piece for line in lines for piece in _wrapped(line, "  ")]


def _violation(verdict: Verdict) -> list[str]:
    """A violated law: its name, what it says, what was found, the smallest case, and what reproduces it."""
    lines = ["", verdict.label]
    if verdict.statement:
        lines += _wrapped(f"  {' '.join(verdict.statement.split())}", "  ")
    found = re.sub(rf"^(law \d+ \()?{re.escape(verdict.law)}\)?: ", "", verdict.why)
    first, *rest = textwrap.dedent(found).splitlines() or [""]
    rest = rest[:-1] if verdict.statement else rest  # the last line is the law in mathematics
    lines += [*_wrapped(f"  found: {first}", "      "), *(f"      {line.strip()}" for line in rest)]
    if verdict.case:
        lines += _wrapped(f"  smallest case: {_shown(verdict.case)}", "      ")
    if verdict.snippet:
        lines += ["  reproduce:", *textwrap.indent(verdict.snippet, "      ").splitlines()]
    return lines


def _shown(case: dict[str, Any]) -> str:
    def plain(value: Any) -> str:
        return ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)

    return "; ".join(f"{name} {plain(value)}" for name, value in case.items())


def _laws(count: int) -> str:
    return f"{count} law{'s' * (count != 1)}"


def _wrapped(line: str, indent: str = "") -> Iterable[str]:
    """A line in pieces; words such as paths are never cut."""
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
        line
    ]
