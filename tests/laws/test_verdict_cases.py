"""Right modules break no law, each wrong one breaks a law that says what is wrong."""

from __future__ import annotations

import pytest

from functional_marl.laws import check
from tests.laws.verdict_cases import RIGHT, WRONG
from tests.laws.verdict_cases_forms import RIGHT_FORMS
from tests.laws.verdict_cases_impure import WRONG_IMPURE
from tests.laws.verdict_cases_leaks import WRONG_LEAKS
from tests.laws.verdict_cases_more import RIGHT_MORE, WRONG_MORE
from tests.laws.verdict_cases_right import RIGHT_LOCAL
from tests.laws.verdict_cases_wrong import WRONG_SHARING


@pytest.mark.parametrize("name", RIGHT)
def test_right_modules_break_no_law(name: str) -> None:
    build, claim = RIGHT[name]
    report = check(build, **claim, examples=6)
    assert not [verdict.law for verdict in report.violated], report
    assert bool(report), report
    held = [verdict.law for verdict in report if verdict.verdict == "holds" and verdict.cases]
    assert len(held) >= 5, report


@pytest.mark.parametrize("name", WRONG)
def test_wrong_modules_break_a_law_that_says_so(name: str) -> None:
    build, claim, laws, why = WRONG[name]
    report = check(build, **claim, examples=6)
    assert not bool(report), f"{why}\n{report}"
    broken = {verdict.law for verdict in report.violated}
    assert broken & laws, f"{why}: expected one of {sorted(laws)}, got {sorted(broken)}\n{report}"


def test_no_case_is_hidden_by_another_of_its_name() -> None:
    assert len(RIGHT) == len(RIGHT_LOCAL) + len(RIGHT_FORMS) + len(RIGHT_MORE)
    assert len(WRONG) == len(WRONG_SHARING) + len(WRONG_LEAKS) + len(WRONG_IMPURE) + len(WRONG_MORE)
