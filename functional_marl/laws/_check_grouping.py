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

__all__ = ["check_group_map", "check_grouping"]

Groups = Mapping[str, Sequence[str]]


def check_grouping(function: Callable[[list[str]], Groups] | Groups, names: Sequence[str], *, name: str = "") -> Report:
    """Check whether a function from agents' names to groups gives a partition, and one that is the caller's own.

    The smallest number of names that violates a law is reported. A ready group map is checked as it is.

    >>> bool(check_grouping(lambda names: {"agents": names}, ["a", "b"]))  # the caller's list itself
    False
    >>> bool(check_grouping(lambda names: {"agents": list(names)}, ["a", "b"]))
    True
    >>> bool(check_grouping({"one": ["a"], "two": ["b"]}, ["a", "b"]))
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
            case = Named(list(names[:count]), ready or None, replace(LIBRARY, group_map=grouped))
            try:
                law(case)
            except LawViolation as violation:
                call = f"check_grouping({name or '...'}, {case.names})"
                snippet = f"from functional_marl.laws import check_grouping\n{call}"
                at = {"names": case.names}
                return Verdict(law.number, law.name, VIOLATED, violation.why, count, case=at, snippet=snippet)
            except Exception as error:
                why = f"it raised {type(error).__name__}: {error}"
                return Verdict(law.number, law.name, NOT_APPLICABLE, why, count)
        return Verdict(law.number, law.name, HOLDS, "", len(counts))

    return Report(name or "group map", {"names": list(names)}, tuple(map(verdict, laws)))


def check_group_map(
    function: Callable[[list[str]], Groups] | Groups, names: Sequence[str], *, name: str = ""
) -> Report:
    """:func:`check_grouping` that raises, for a test: for group maps what ``check_marl_module`` is for networks.

    :func:`functional_marl.check_group_map` checks one ready map against names; this one also calls a function on fewer
    names, and looks at whose lists it returns.

    Raises:
        AssertionError: a law is violated: the message has each law, the names, and the lines that reproduce it.

    >>> report = check_group_map(lambda names: {name: [name] for name in names}, ["a", "b"])
    """
    __tracebackhide__ = True
    report = check_grouping(function, names, name=name)
    if not report:
        raise AssertionError(str(report))
    return report
