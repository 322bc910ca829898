"""Cases of the laws on our own networks, groups and facades, in topic_cases.json: right ones and ones with a mutant.

They are found by hypothesis, as in properties/, and stored as Python, so that test_topics.py takes seconds. After a
change of laws or mutants: ``python -m tests.laws.topic_cases`` writes the file again, in a minute or two.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Sequence
from itertools import islice
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

import functional_marl as fm
from functional_marl import laws
from functional_marl.laws import LAWS, Law, LawViolation, NetworkSubject, Subject

FILE = Path(__file__).with_name("topic_cases.json")
LEFT_OUT = ("compilation",)  # a case takes seconds
_EXAMPLES, _MOST_EXAMPLES, _MOST_SECONDS, _RIGHT = 60, 300, 0.3, 4
_NAMES = {"torch": torch, "TensorDict": TensorDict, "nan": nan, "inf": inf, **vars(laws), **vars(fm)}
_NAMED = re.compile(r"(?<![\w.])\d+(?![\w.]*\d)|\b[a-z_]\w*(?:\.\w+)+")


def case_of(code: str) -> Any:
    """A case from the Python that makes it."""
    return eval(code, dict(_NAMES))


def named(found: str) -> list[str]:
    """The agents, slots and leaves that a law names when it is broken, ahead of the values: whatever its wording."""
    return _NAMED.findall(re.split(r"\bexpected\b|\bgot\b", found)[0])


def _generated(law: Law, examples: int) -> list[Any]:
    from hypothesis import HealthCheck, Phase, given, settings

    from functional_marl.laws.strategies import cases

    found: list[Any] = []

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list[Any](HealthCheck),
    )
    @given(cases(law))
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def _broken(law: Law, case: Any) -> str | None:
    try:
        law(case)
    except LawViolation as violation:
        return violation.found
    return None


def _breaking(law: Law, mutant: Any, cases: Sequence[Any]) -> list[tuple[str, str]]:
    return [(repr(case), found) for case in cases if (found := _broken(law, mutant.of(case))) is not None]


def _quick(law: Law, case: Any) -> bool:
    started = time.perf_counter()
    assert _broken(law, case) is None
    return time.perf_counter() - started < _MOST_SECONDS


def write() -> None:
    """Find the cases and write the file."""
    from properties import mutants_calls as mutants_calls
    from properties import mutants_modules as mutants_modules
    from properties import mutants_more as mutants_more
    from properties import mutants_trees as mutants_trees
    from properties.mutants import MUTANTS

    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for law in LAWS.values():
        if law.topic in LEFT_OUT or (law.about is Subject and not law.is_about(NetworkSubject)):
            continue
        cases = _generated(law, _EXAMPLES)
        # The largest ones: what is special about a case shows in the Python that makes it.
        by_length = sorted(cases, key=lambda case: -len(repr(case)))
        right = list(islice((case for case in by_length if _quick(law, case)), _RIGHT)) or [cases[0]]
        rows += [{"law": law.name, "case": repr(case)} for case in right]
        for mutant in MUTANTS:
            if mutant.law != law.name:
                continue
            broken = _breaking(law, mutant, cases) or _breaking(law, mutant, _generated(law, _MOST_EXAMPLES))
            chosen = {broken[0], max(broken[:6], key=lambda each: len(each[0]))}
            for code, found in sorted(chosen, key=lambda each: len(each[0])):
                rows.append({"law": law.name, "mutant": mutant.name, "case": code, "named": named(found)})
            print(f"{law.name}: {mutant.name}: {len(broken)}", flush=True)
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write()
