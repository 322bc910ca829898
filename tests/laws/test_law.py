"""A law: what it says of itself, when it applies, what a violation says."""

from __future__ import annotations

from typing import Any

import pytest

from functional_marl.laws import LAWS, LawViolation, Subject
from functional_marl.laws._compare import broken
from functional_marl.laws._law import Capability, Law, NotApplicable, law


class Odd:
    """A case that is no subject."""

    def __init__(self, number: int, traits: tuple[str, ...] = ("odd", "small")) -> None:
        self.number, self.traits = number, traits

    def __repr__(self) -> str:
        return f"Odd({self.number})"


ODD = Capability("odd", lambda s: "odd" in s.traits, "it is even")
SMALL = Capability("small", lambda s: "small" in s.traits, "it is large")


def made(**how: Any) -> Law:
    def is_one(s: Odd) -> None:
        """N = 1.

        The number
        is one.
        """
        if s.number != 1:
            broken(f"number: expected 1, got {s.number}")

    try:
        return law(99, ODD, SMALL, about=Odd, **how)(is_one)
    finally:
        del LAWS["is_one"]


def test_what_a_law_says_of_itself() -> None:
    one = made()
    assert (one.number, one.name, one.topic) == (99, "is_one", "test_law")
    assert (one.formula, one.english) == ("N = 1.", "The number is one.")
    assert (one.about, one.requires) == (Odd, (ODD, SMALL))
    assert (one.default, one.first, one.every_case, one.whole_batch, one.cost) == (True, False, True, False, 1)
    assert repr(one) == "<law 99: is_one>"
    assert repr(ODD) == "<capability: odd>"
    assert one.__doc__ == one.check.__doc__ == one.__wrapped__.__doc__


def test_what_is_stated_of_a_law() -> None:
    how = {"default": False, "first": True, "every_case": False, "whole_batch": True, "cost": 7}
    one = made(**how)
    assert {name: getattr(one, name) for name in how} == how


def test_a_law_enters_the_table_once() -> None:
    def is_two(s: Odd) -> None:
        """N = 2."""

    try:
        two = law(98, about=Odd)(is_two)
        assert LAWS["is_two"] is two
        with pytest.raises(Exception, match="is_two"):
            law(97, about=Odd)(is_two)
        assert LAWS["is_two"] is two
    finally:
        del LAWS["is_two"]


def test_a_law_that_holds_is_silent() -> None:
    made()(Odd(1))


def test_a_violation_names_the_law_and_the_case() -> None:
    one = made()
    with pytest.raises(LawViolation) as raised:
        one(Odd(3))
    violation = raised.value
    assert violation.law is one
    assert violation.found == "number: expected 1, got 3"
    assert violation.why == "is_one: number: expected 1, got 3\n    N = 1."
    assert violation.snippet == "from functional_marl.laws import LAWS, Odd\nLAWS['is_one'](Odd(3))"
    assert str(violation).splitlines() == [
        "is_one: number: expected 1, got 3",
        "    N = 1.",
        "    from functional_marl.laws import LAWS, Odd",
        "    LAWS['is_one'](Odd(3))",
    ]
    assert violation.__cause__ is None
    assert violation.__suppress_context__


def test_other_errors_pass_through() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        made()(Odd(1, traits=None))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        (Odd(1), ""),
        (Odd(1, ("small",)), "it is even"),
        (Odd(1, ("odd",)), "it is large"),
        (Odd(1, ()), "it is even"),
        ("word", "it is about a Odd, not a str"),
    ],
)
def test_why_not(subject: Any, why: str) -> None:
    one = made()
    assert one.why_not(subject) == why
    if why:
        with pytest.raises(NotApplicable, match=f"^is_one: {why}$"):
            one(subject)


def test_a_capability_is_of_a_kind_of_subject() -> None:
    assert ODD.kind is Subject
    assert made().is_about(Odd) is False  # its capabilities are of subjects

    class OddSubject(Odd, Subject):  # pyright: ignore[reportUnsafeMultipleInheritance]
        pass

    assert made().is_about(OddSubject)
    assert not made().is_about(Subject)
