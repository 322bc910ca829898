"""``parametrize_with_laws``: one pytest test for each subject and law, with strict expected failures."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, cast

from functional_marl.laws._check import check, laws_named
from functional_marl.laws._report import Report
from functional_marl.laws._verdict import HOLDS, SKIPPED, Verdict

__all__ = ["LawFailure", "SubjectLaw", "parametrize_with_laws"]

Test = TypeVar("Test", bound=Callable[..., Any])
Reasons = Mapping[str, str]
Subjects = Iterable[tuple[Any, Any]] | Mapping[str, tuple[Any, Any]]


class LawFailure(AssertionError):
    """A law is violated: what a test of :func:`parametrize_with_laws` raises, and the one error that it may expect."""


class SubjectLaw:
    """One law of one subject, as a test gets it. Call it to check the law.

    Args:
        law: an entry of ``functional_marl.laws.LAWS``.
        name: what reports call the subject.
        subject, claims: as in :func:`functional_marl.laws.check`.
        expected: why the law is known to be violated; empty if it is not.
        skipped: why the law is not checked; empty if it is.
        how: further arguments of :func:`functional_marl.laws.check`.
    """

    def __init__(
        self, law: Any, name: str, subject: Any, claims: Any, expected: str, skipped: str, how: Mapping[str, Any]
    ) -> None:
        self.law = law
        self.name = name
        self.subject = subject
        self.claims = claims
        self.expected = expected
        self.skipped = skipped
        self.how = how
        self.examples: int | None = None  # the plugin sets it from --laws-examples
        self.report: Report | None = None

    def __call__(self, subject: Any = None) -> None:
        """Check the law, on another subject if one is given, and skip the test where the law does not apply.

        Raises:
            LawFailure: the law is violated.
        """
        __tracebackhide__ = True
        import pytest

        how: dict[str, Any] = dict(self.how) if self.examples is None else {**self.how, "examples": self.examples}
        chosen = self.subject if subject is None else subject
        self.report = None
        report: Report = check(chosen, self.claims, laws=[self.law.name], name=self.name, **how)
        self.report = report
        if not report:
            raise LawFailure("\n".join([*dict.fromkeys(_failure(verdict) for verdict in report.violated)]))
        if not any(verdict.verdict == HOLDS for verdict in report):
            why = "; ".join(dict.fromkeys(verdict.why for verdict in report)) or "it is not about modules like this one"
            if self.expected:
                pytest.fail(
                    f"expected {self.law.name} to be violated ({self.expected}), but it does not apply: {why}; remove"
                    " it from expected=",
                    pytrace=False,
                )
            pytest.skip(why)

    def found(self, test: str, excluded: bool) -> dict[str, Any]:
        """What ``--laws-json`` writes: the report with the test, and with the reason of an expected violation."""
        found: dict[str, Any] = {"subject": self.name, "laws": []}
        if excluded:
            found["laws"] = [asdict(Verdict(self.law.number, self.law.name, SKIPPED, self.skipped))]
        elif self.report is not None:
            found = self.report.to_dict()
        laws = [{**law, "expected": self.expected} for law in found["laws"]]
        return {**found, "test": test, "laws": laws}

    def __repr__(self) -> str:
        return f"<{self.law.name} of {self.name}>"


def parametrize_with_laws(
    subjects: Subjects,
    *,
    expected: Reasons | Callable[[Any], Reasons | None] | None = None,
    laws: str | Sequence[str] = "default",
    skip: Sequence[str] | Reasons = (),
    **how: Any,
) -> Callable[[Test], Test]:
    """Make one test for each subject and law, as scikit-learn's ``parametrize_with_checks`` does for estimators.

    The test takes ``law`` and calls it, or ``subject`` and ``law`` and calls ``law(subject)``. Its id is
    ``subject-law``. A law that does not apply is skipped, with the reason. Only names of laws are needed to collect the
    tests: no subject is built or called before its test runs. ::

        @parametrize_with_laws(
            {"policy": (Policy, Claims(example=torch.zeros(4, 3, 6), n_agents=3, sharing="shared"))},
            expected={"batch_is_a_loop": "BatchNorm in training mixes the rows of a batch"},
        )
        def test_policy(law):
            law()

    Args:
        subjects: pairs of a subject and its ``Claims``, by name, or in a list: then a class or function gives the
            name. A subject is a module, ``(net, params)`` or, better, a function that builds one: each law builds its
            own.
        expected: ``{law: reason}``, the laws that are known to be violated, or a function from the subject to them.
            The tests are strict: if such a law holds, or does not apply, its test fails.
        laws: which laws, as in :func:`functional_marl.laws.check`.
        skip: laws that are not checked, with reasons if it is a mapping.
        how: further arguments of :func:`functional_marl.laws.check`. ``--laws-examples`` has precedence over
            ``examples``.

    Raises:
        ValueError: a law that does not exist in ``expected`` or ``skip``, a law that is in both, or no subjects.
        TypeError: the test does not take ``law``.
    """
    import pytest

    known = [law.name for law in laws_named("all")]
    chosen = laws_named(laws)
    skipped: Reasons = skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "excluded by skip=")
    _check_names("skip", skipped, known)
    bound: list[tuple[SubjectLaw, Any]] = []
    for name, (subject, claims) in _named(subjects).items():
        reasons = (expected(subject) if callable(expected) else expected) or {}
        _check_names("expected", reasons, known)
        if both := sorted(set(reasons) & set(skipped)):
            raise ValueError(f"expected: {both} of {name} are also in skip=; a law that is skipped cannot fail")
        for law in chosen:
            why, excluded = reasons.get(law.name, ""), skipped.get(law.name, "")
            marks = [pytest.mark.xfail(strict=True, raises=LawFailure, reason=why)] if why else []
            marks = [pytest.mark.skip(reason=excluded)] if excluded else marks
            bound.append((SubjectLaw(law, name, subject, claims, why, excluded, how), marks))

    def decorate(test: Test) -> Test:
        taken = inspect.signature(test).parameters
        if "law" not in taken:
            raise TypeError(f"{test.__name__}: expected an argument 'law', got {list(taken)}; call it: law()")
        names = ("subject", "law") if "subject" in taken else ("law",)
        values = [(law.subject, law) if "subject" in names else (law,) for law, _ in bound]
        rows = [
            pytest.param(*row, id=f"{law.name}-{law.law.name}", marks=marks)
            for row, (law, marks) in zip(values, bound, strict=True)
        ]
        return pytest.mark.parametrize(names, rows)(test)

    return decorate


def _failure(verdict: Verdict) -> str:
    lines = [f"{verdict.label} is violated", verdict.why]
    if verdict.snippet:
        lines += ["reproduce:", verdict.snippet]
    return "\n".join(lines)


def _check_names(argument: str, reasons: Reasons, known: list[str]) -> None:
    """Raise for laws that do not exist and for reasons that say nothing."""
    for name, reason in reasons.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else "see python -m functional_marl.laws --list"
            raise ValueError(f"{argument}: no law is called {name!r}; {hint}")
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"{argument}[{name!r}]: expected a reason, got {reason!r}")


def _named(subjects: Subjects) -> dict[str, tuple[Any, Any]]:
    """Subjects by name; names that come twice get a number."""
    if isinstance(subjects, Mapping):
        pairs = list(cast("Mapping[str, tuple[Any, Any]]", subjects).items())
    else:
        pairs = [("", pair) for pair in subjects]
    if not pairs:
        raise ValueError("subjects: expected at least one pair of a subject and its Claims, got none")
    found: dict[str, tuple[Any, Any]] = {}
    for given, pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"subjects: expected pairs (subject, Claims(...)), got {pair!r}")
        name = base = given or _name(pair[0])
        count = 1
        while name in found:
            count += 1
            name = f"{base}{count}"
        found[name] = pair
    return found


def _name(subject: Any) -> str:
    """The name of a class or function, or else of a module's class."""
    name: str = getattr(subject, "__name__", type(subject).__name__)
    return {"<lambda>": "subject", "tuple": "network", "partial": "subject"}.get(name, name)
