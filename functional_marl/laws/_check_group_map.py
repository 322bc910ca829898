"""The laws of group maps, asked of a function from any library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from functional_marl.laws._report import Report
from functional_marl.laws._verdict import HOLDS, VIOLATED, Verdict
from functional_marl.laws._verdict import NOT_APPLICABLE as SKIPPED
from functional_marl.laws.groups import Named, group_map_is_a_partition, group_map_is_the_callers
from functional_marl.laws.law import LawViolation
from functional_marl.laws.subject import LIBRARY

__all__ = ["check_grouping"]


def check_grouping(
    function: Callable[[list[str]], Mapping[str, Sequence[str]]], names: Sequence[str], *, name: str = ""
) -> Report:
    """Ask a function from agents' names to groups whether its groups are a partition, and the caller's own.

    The smallest number of names that breaks a law is reported.

    >>> bool(check_grouping(lambda names: {"agents": names}, ["a", "b"]))  # the caller's list itself
    False
    >>> bool(check_grouping(lambda names: {"agents": list(names)}, ["a", "b"]))
    True
    """

    def grouped(given: list[str], grouping: Any) -> Any:
        return function(given)

    verdicts: list[Verdict] = []
    for law in (group_map_is_a_partition, group_map_is_the_callers):
        verdict = Verdict(law.number, law.name, HOLDS, "", len(names))
        for count in range(1, len(names) + 1):
            case = Named(list(names[:count]), None, replace(LIBRARY, group_map=grouped))
            try:
                law(case)
            except LawViolation as violation:
                snippet = (
                    f"from functional_marl.laws import check_grouping\ncheck_grouping({name or '...'}, {case.names})"
                )
                at = {"names": case.names}
                verdict = Verdict(law.number, law.name, VIOLATED, violation.why, count, at, snippet)
                break
            except Exception as error:
                why = f"it raised {type(error).__name__}: {error}"
                verdict = Verdict(law.number, law.name, SKIPPED, why, count)
                break
        verdicts.append(verdict)
    return Report(name or "function", {"names": list(names)}, tuple(verdicts))
