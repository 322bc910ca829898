"""What a law is: a function of a subject that raises when the subject breaks it, and the table of all laws."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from functional_marl.laws._compare import Broken
from functional_marl.laws._snippet import snippet
from functional_marl.laws._subject import Subject

__all__ = ["LAWS", "LAWS_VERSION", "Capability", "Law", "LawViolation", "NotApplicable", "law"]


@dataclass(frozen=True, eq=False)
class Capability:
    """Something that a law needs of a subject.

    Args:
        name: what it is called, as ``--list`` shows it.
        holds: whether a subject has it.
        reason: why a law says nothing about a subject without it.
    """

    name: str
    holds: Callable[[Any], bool]
    reason: str

    @property
    def kind(self) -> type:
        """The kind of subject that can have it."""
        return getattr(self.holds, "kind", Subject)

    def __repr__(self) -> str:
        return f"<capability: {self.name}>"


class LawViolation(AssertionError):
    """A subject breaks a law: the message names the law, the agents, the leaf and the numbers, and how to see it again.

    Args:
        law: the law.
        found: what is wrong, with the agents, the leaf or input, and the numbers.
        case: what breaks it; its repr is the Python that makes it again.
    """

    def __init__(self, law: Law, found: str, case: object) -> None:
        self.law = law
        self.found = found
        self.why = f"{law.name}: {found}\n    {law.formula}"
        self.snippet = snippet(law.name, case)
        super().__init__("\n".join([self.why, *textwrap.indent(self.snippet, "    ").splitlines()]))


class NotApplicable(ValueError):
    """A law was called on a subject that it says nothing about."""


class Law:
    """One law of sharing: call it on a subject.

    Args:
        number: its number in the list of laws, for display; several functions may share one.
        check: the function; its docstring is the law in a line of mathematics, then in English.
        about: the type of what it is called on.
        requires: what it needs of a subject, in the order in which it is looked at.
        default: whether :func:`functional_marl.laws.check` includes it by default. The others cost much (compilation),
            or a sound module may well break them (threads).
        first: its place among the laws that are checked ahead of the others, which compare calls and mean little where
            one of these is violated; 0: it is none of them.
        own_modes: whether it looks at evaluation, training or both by itself, so that it is checked once.
        every_case: whether many inputs and pairs of agents say more than one.
        whole_batch: whether it looks at the whole batch in every case.
        cost: how much one case costs, in cases of an ordinary law.

    Raises:
        LawViolation: when called, if the subject breaks the law. NotApplicable: it does not apply.
    """

    def __init__(
        self,
        number: int,
        check: Callable[[Any], None],
        about: type,
        requires: tuple[Capability, ...],
        default: bool,
        first: int,
        own_modes: bool,
        every_case: bool,
        whole_batch: bool,
        cost: int,
    ) -> None:
        formula, _, english = inspect.cleandoc(check.__doc__ or "").partition("\n\n")
        self.number = number
        self.name = check.__name__
        self.topic = check.__module__.rpartition(".")[2]
        self.formula = formula
        self.english = " ".join(english.split())
        self.about = about
        self.requires = requires
        self.default = default
        self.first = first
        self.own_modes = own_modes
        self.every_case = every_case
        self.whole_batch = whole_batch
        self.cost = cost
        self.check = check
        self.__doc__ = check.__doc__
        self.__wrapped__ = check

    def why_not(self, subject: Any) -> str:
        """Why the law says nothing about this subject; empty if it applies."""
        if not isinstance(subject, self.about):
            return f"it is about a {self.about.__name__}, not a {type(subject).__name__}"
        return next((each.reason for each in self.requires if not each.holds(subject)), "")

    def is_about(self, kind: type) -> bool:
        """Whether some subject of a kind can have all that the law requires."""
        return issubclass(kind, self.about) and all(issubclass(kind, each.kind) for each in self.requires)

    def __call__(self, subject: Any) -> None:
        """Raise if the subject breaks the law."""
        why = self.why_not(subject)
        if why:
            raise NotApplicable(f"{self.name}: {why}")
        try:
            self.check(subject)
        except Broken as found:
            raise LawViolation(self, str(found), subject) from None

    def __repr__(self) -> str:
        return f"<law {self.number}: {self.name}>"


LAWS: dict[str, Law] = {}
# Of the set of laws: what a report of one version calls violated may hold in another. Changes are in CHANGELOG.md.
LAWS_VERSION = "2"


def law(
    number: int,
    *requires: Capability,
    about: type = Subject,
    default: bool = True,
    first: int = 0,
    own_modes: bool = False,
    every_case: bool = True,
    whole_batch: bool = False,
    cost: int = 1,
) -> Callable[[Callable[[Any], None]], Law]:
    """Make a function a law and enter it in :data:`LAWS`; the arguments are those of :class:`Law`."""

    def enter(check: Callable[[Any], None]) -> Law:
        made = Law(number, check, about, requires, default, first, own_modes, every_case, whole_batch, cost)
        if made.name in LAWS:
            raise ValueError(f"law: expected a new name, got {made.name!r}, which is there")
        LAWS[made.name] = made
        return made

    return enter
