"""The laws of group maps, on functions and on maps that are ready."""

from __future__ import annotations

from typing import Any

import pytest

from functional_marl.laws import LAWS, check_group_map, check_grouping

NAMES = ["wolf_0", "wolf_1", "sheep_0"]
PARTITION, OWN = "group_map_is_a_partition", "group_map_is_the_callers"


def kinds(names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.split("_")[0], []).append(name)
    return found


def loses_the_third(names: list[str]) -> dict[str, list[str]]:
    return {"agents": names[:2]}


def test_a_function_that_groups() -> None:
    report = check_grouping(kinds, NAMES)
    assert report
    assert [(verdict.law, verdict.verdict, verdict.cases) for verdict in report] == [
        (PARTITION, "holds", 3),
        (OWN, "holds", 3),
    ]
    assert report.facts == {"names": NAMES}
    assert report.to_dict()["subject"] == "group map"
    assert check_grouping(kinds, NAMES, name="package:kinds").to_dict()["subject"] == "package:kinds"
    assert check_group_map(kinds, NAMES)


def test_the_smallest_number_of_names_is_reported() -> None:
    report = check_grouping(loses_the_third, NAMES, name="package:lost")
    assert not report
    verdict = report[PARTITION]
    assert (verdict.verdict, verdict.cases, verdict.case) == ("violated", 3, {"names": NAMES})
    assert verdict.number == LAWS[PARTITION].number
    assert verdict.why.startswith(f"{PARTITION}: ")
    assert "sheep_0" in verdict.why
    assert verdict.snippet == f"from functional_marl.laws import check_grouping\ncheck_grouping(package:lost, {NAMES})"
    assert check_grouping(loses_the_third, NAMES)[PARTITION].snippet.endswith(f"check_grouping(..., {NAMES})")
    assert check_grouping(loses_the_third, NAMES[:2])


def test_the_callers_own_list() -> None:
    report = check_grouping(lambda names: {"agents": names}, NAMES)
    assert report[PARTITION].verdict == "holds"
    verdict = report[OWN]
    assert (verdict.verdict, verdict.cases, verdict.case) == ("violated", 1, {"names": ["wolf_0"]})


def test_a_function_that_raises() -> None:
    def refuses(names: list[str]) -> dict[str, list[str]]:
        if len(names) > 1:
            raise KeyError("two")
        return {"agents": list(names)}

    for verdict in check_grouping(refuses, NAMES):
        assert (verdict.verdict, verdict.why, verdict.cases) == ("not applicable", "it raised KeyError: 'two'", 2)


def test_a_map_that_is_ready() -> None:
    report = check_grouping({"wolves": ["wolf_0", "wolf_1"], "sheep": ("sheep_0",)}, NAMES)
    assert [(verdict.law, verdict.verdict, verdict.cases) for verdict in report] == [(PARTITION, "holds", 1)]
    wrong: list[Any] = [
        {"wolves": ["wolf_0", "wolf_1"]},
        {"wolves": ["wolf_0", "wolf_1"], "sheep": ["sheep_0", "wolf_0"]},
        {"wolves": ["wolf_0", "wolf_1"], "sheep": ["sheep_0", "sheep_1"]},
    ]
    for groups in wrong:
        found = check_grouping(groups, NAMES)
        assert (found[PARTITION].verdict, found[PARTITION].case) == ("violated", {"names": NAMES})


def test_the_form_that_raises() -> None:
    with pytest.raises(AssertionError, match="sheep_0") as raised:
        check_group_map(loses_the_third, NAMES, name="package:lost")
    assert "package:lost" in str(raised.value)
