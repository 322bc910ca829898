"""The laws of group maps, checked on a function from any library, or on a map that is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from functional_marl.laws._law import Law, LawViolation
from functional_marl.laws._operations import LIBRARY
from functional_marl.laws._report import Report
from functional_marl.laws._verdict import HOLDS, NOT_APPLICABLE, VIOLATED, Verdict
from functional_marl.laws.groups import Named, group_map_is_a_partition, group_map_is_the_callers

__all__ = ["check_group_map"]

Groups = Mapping[str, Sequence[str]]


def check_group_map(
    function: Callable[[list[str]], Groups] | Groups, names: Sequence[str], *, name: str = ""
) -> Report:
    """Check whether a function from agents' names to groups gives a partition, and one that is the caller's own.

    The smallest number of names that violates a law is reported. A ready group map is checked as it is.

    >>> bool(check_group_map(lambda names: {"agents": names}, ["a", "b"]))  # the caller's list itself
    False
    >>> bool(check_group_map(lambda names: {"agents": list(names)}, ["a", "b"]))
    True
    >>> bool(check_group_map({"one": ["a"], "two": ["b"]}, ["a", "b"]))
    True
    """
    laws, counts = [group_map_is_a_partition, group_map_is_the_callers], list(range(1, len(names) + 1))
    ready: dict[str, list[str]] = {}
    if isinstance(function, Mapping):
        ready = {group: list(members) for group, members in function.items()}
        laws, counts = [group_map_is_a_partition], [len(names)]

    def grouped(given: list[str], grouping: Any) -> Any:
        return ready if isinstance(function, Mapping) else function(given)

    def verdict(law: Law) -> Verdict:
        for count in counts:
            case = Named(list(names[:count]), None, replace(LIBRARY, group_map=grouped))
            try:
                law(case)
            except LawViolation as violation:
                call = f"check_group_map({name or '...'}, {case.names})"
                snippet = f"from functional_marl.laws import check_group_map\n{call}"
                at = {"names": case.names}
                return Verdict(law.number, law.name, VIOLATED, violation.why, count, case=at, snippet=snippet)
            except Exception as error:
                why = f"it raised {type(error).__name__}: {error}"
                return Verdict(law.number, law.name, NOT_APPLICABLE, why, count)
        return Verdict(law.number, law.name, HOLDS, "", len(counts))

    return Report(name or "group map", {"names": list(names)}, tuple(map(verdict, laws)))
