"""``parametrize_with_laws`` in this process: which tests it makes, and what each of them does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from functional_marl.laws._parametrize import LawFailure, SubjectLaw, parametrize_with_laws
from tests.laws import fake_laws
from tests.laws.fake_laws import BUILT, Policy


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    fake_laws.install(monkeypatch.setattr)


def rows(subjects: Any, test: Callable[..., Any] | None = None, **how: Any) -> list[Any]:
    def takes_law(law: Any) -> None:
        law()

    marked: Any = parametrize_with_laws(subjects, **how)(test or takes_law)
    (mark,) = marked.pytestmark
    assert mark.name == "parametrize"
    return [mark.args[0], *mark.args[1]]


def ids(subjects: Any, **how: Any) -> list[str]:
    return [row.id for row in rows(subjects, **how)[1:]]


def one(claims: Any, law: str = "first_law", **how: Any) -> SubjectLaw:
    """The test of one law."""
    found = rows({"policy": (Policy, claims)}, laws=[law], **how)[1].values[0]
    assert isinstance(found, SubjectLaw)
    return found


def test_one_test_for_each_subject_and_law() -> None:
    subjects = {"a": (Policy, {}), "b": (Policy, {})}
    assert ids(subjects) == ["a-first_law", "a-second_law", "b-first_law", "b-second_law"]
    assert ids(subjects, laws="all")[2] == "a-third_law"
    assert ids(subjects, laws=["third_law"]) == ["a-third_law", "b-third_law"]
    assert BUILT == []


def test_names_of_subjects() -> None:
    subjects = [
        (Policy, {}),
        (Policy, {}),
        (Policy, {}),
        (Policy(), {}),
        (lambda: 1, {}),
        (nn.Linear(1, 1), {}),
        ((1, 2), {}),
        (partial(Policy), {}),
    ]
    names = [name.removesuffix("-first_law") for name in ids(subjects, laws=["first_law"])]
    assert names == ["Policy", "Policy2", "Policy3", "Policy4", "subject", "Linear", "network", "subject2"]


def test_what_the_test_takes() -> None:
    def takes_both(subject: Any, law: Any) -> None: ...

    names, row = rows({"a": (Policy, {})}, takes_both, laws=["first_law"])
    assert names == ("subject", "law")
    assert row.values == (Policy, row.values[1])
    names, row = rows({"a": (Policy, {})}, laws=["first_law"])
    assert (names, len(row.values)) == (("law",), 1)

    def takes_none(subject: Any) -> None: ...

    with pytest.raises(
        TypeError, match=r"^takes_none: expected an argument 'law', got \['subject'\]; call it: law\(\)$"
    ):
        rows({"a": (Policy, {})}, takes_none)


def test_marks() -> None:
    first, second = rows({"a": (Policy, {})}, expected={"first_law": "known"}, skip={"second_law": "slow"})[1:]
    (xfail,), (skip,) = first.marks, second.marks
    assert (xfail.name, xfail.kwargs) == ("xfail", {"strict": True, "raises": LawFailure, "reason": "known"})
    assert (skip.name, skip.kwargs) == ("skip", {"reason": "slow"})
    law = first.values[0]
    assert (law.name, law.expected, law.skipped, law.law.name) == ("a", "known", "", "first_law")
    law = second.values[0]
    assert (law.expected, law.skipped, repr(law)) == ("", "slow", "<second_law of a>")
    assert not any(row.marks for row in rows({"a": (Policy, {})})[1:])
    (skip,) = rows({"a": (Policy, {})}, skip=["first_law"])[1].marks
    assert skip.kwargs == {"reason": "excluded by skip="}


def test_expectations_of_each_subject() -> None:
    def expected(subject: Any) -> dict[str, str] | None:
        return {"first_law": "known"} if subject is Policy else None

    found = rows({"a": (Policy, {}), "b": (Policy(), {})}, expected=expected, laws=["first_law"])[1:]
    assert [law.values[0].expected for law in found] == ["known", ""]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"expected": {"first_lax": "x"}}, "expected: no law is called 'first_lax'; did you mean 'first_law'?"),
        (
            {"skip": {"zzz": "x"}},
            "skip: no law is called 'zzz'; see python -m functional_marl.laws --list",
        ),
        ({"expected": {"first_law": ""}}, "expected['first_law']: expected a reason, got ''"),
        ({"expected": {"first_law": 3}}, "expected['first_law']: expected a reason, got 3"),
        ({"skip": {"first_law": ""}}, "skip['first_law']: expected a reason, got ''"),
        (
            {"expected": {"first_law": "x"}, "skip": ["first_law"]},
            "expected: ['first_law'] of a are also in skip=; a law that is skipped cannot fail",
        ),
    ],
)
def test_arguments_that_say_nothing(how: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        rows({"a": (Policy, {})}, **how)
    assert str(raised.value) == says


@pytest.mark.parametrize("subjects", [[], {}])
def test_no_subjects(subjects: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^subjects: expected at least one pair of a subject and its Claims, got none$"
    ):
        rows(subjects)


@pytest.mark.parametrize("subjects", [[Policy], {"a": Policy}, [(Policy,)], [(Policy, {}, 3)]])
def test_subjects_without_claims(subjects: Any) -> None:
    with pytest.raises(ValueError, match=r"^subjects: expected pairs \(subject, Claims\(...\)\), got "):
        rows(subjects)


def test_a_law_that_holds() -> None:
    law = one({})
    assert law.report is None
    law()
    assert law.report is not None
    assert (law.report.to_dict()["subject"], BUILT) == ("policy", ["Policy"])
    assert law.report["first_law"].cases == 20
    law.examples = 3
    law()
    assert law.report["first_law"].cases == 3
    assert one({}, train=True).how == {"train": True}


def test_arguments_of_check() -> None:
    law = one({}, examples=7, train=True)
    law()
    assert law.report is not None
    assert law.report.facts["train"] is True
    assert law.report["first_law"].cases == 7


def test_another_subject() -> None:
    law = one({"first_law": "violated"})
    with pytest.raises(LawFailure, match="seen on Other"):
        law(type("Other", (), {}))


def test_a_violation() -> None:
    with pytest.raises(LawFailure) as raised:
        one({"first_law": "violated"})()
    assert str(raised.value).splitlines() == [
        "first_law is violated",
        "first_law: seen on Policy",
        "reproduce:",
        "again('first_law')",
    ]
    with pytest.raises(LawFailure, match=r"^first_law \(training\) is violated\n"):
        one({"first_law": "violated (training)"})()


def test_a_law_that_does_not_apply() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^no groups$"):
        one({"first_law": "not applicable"})()
    with pytest.raises(pytest.skip.Exception, match=r"^it is not about modules like this one$"):
        one({"first_law": "none"})()
    with pytest.raises(pytest.fail.Exception) as raised:
        one({"first_law": "not applicable"}, expected={"first_law": "known"})()
    assert str(raised.value) == (
        "expected first_law to be violated (known), but it does not apply: no groups; remove it from expected="
    )


def test_other_errors_pass_through() -> None:
    law = one({})
    law()
    law.claims = {"first_law": "raises"}
    with pytest.raises(ValueError, match="raises on the example"):
        law()
    assert law.report is None


def test_what_is_written() -> None:
    law = one({}, expected={"first_law": "known"})
    assert law.found("test_x", excluded=False) == {"subject": "policy", "laws": [], "test": "test_x"}
    (excluded,) = one({}, skip={"first_law": "slow"}).found("test_x", excluded=True)["laws"]
    assert (excluded["law"], excluded["number"], excluded["verdict"], excluded["why"], excluded["expected"]) == (
        "first_law",
        1,
        "skipped",
        "slow",
        "",
    )
    law()
    found = law.found("test_x", excluded=False)
    assert (found["test"], found["laws"][0]["expected"], found["laws"][0]["verdict"]) == ("test_x", "known", "holds")
