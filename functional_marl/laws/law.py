"""What a law is: a function of a subject that raises when the subject breaks it, with its number and name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten, leaf_names
from functional_marl.laws.again import snippet

__all__ = ["LAWS", "Broken", "Law", "LawViolation", "NotApplicable", "agree", "broken", "differ", "gap", "law", "zero"]


class Broken(AssertionError):
    """What a law found; :class:`Law` puts its own name in front."""


class LawViolation(AssertionError):
    """A subject breaks a law: the message names the law, the agents, the leaf and the numbers, and how to see it again.

    Args:
        law: the law.
        found: what is wrong, with the agents, the leaf or input, and the numbers.
        case: what breaks it; its repr is the Python that makes it again.
    """

    def __init__(self, law: Law, found: str, case: object) -> None:
        self.law = law
        self.why = f"law {law.number} ({law.name}): {found}\n    {law.formula}"
        self.snippet = snippet(law.table, law.name, case)
        super().__init__("\n".join([self.why, *textwrap.indent(self.snippet, "    ").splitlines()]))


class NotApplicable(ValueError):
    """A law was asked of a subject that it says nothing about."""


class Law:
    """One law of sharing: call it on a subject.

    Args:
        number: its number in the list of laws; several functions may share one.
        check: the function; its docstring is the law in a line of mathematics, then in English.
        where: words that a subject must answer to (see :data:`functional_marl.laws.subject.WORDS`).
        foreign: whether it is asked by default of modules from elsewhere, which may well be sound
            without it (not thread-safe, say).
        cost: how much one case costs, in cases of an ordinary law.
        table: where it is found by its name.

    Raises:
        LawViolation: when called, if the subject breaks the law. NotApplicable: it does not apply.
    """

    def __init__(
        self,
        number: int,
        check: Callable[[Any], None],
        where: Sequence[str],
        foreign: bool,
        cost: int,
        table: str = "LAWS",
    ) -> None:
        formula, _, english = inspect.cleandoc(check.__doc__ or "").partition("\n\n")
        self.number = number
        self.name = check.__name__
        self.formula = formula
        self.english = english
        self.where = tuple(where)
        self.foreign = foreign
        self.cost = cost
        self.table = table
        self.check = check
        self.__doc__ = check.__doc__
        self.__wrapped__ = check

    def why_not(self, subject: Any) -> str:
        """Why the law says nothing about this subject; empty if it applies."""
        unmet = [word for word in self.where if not subject.answers(word)]
        return f"law {self.number} ({self.name}) is about subjects with: {', '.join(unmet)}" if unmet else ""

    def __call__(self, subject: Any) -> None:
        """Raise if the subject breaks the law."""
        why = self.why_not(subject)
        if why:
            raise NotApplicable(why)
        try:
            self.check(subject)
        except Broken as found:
            raise LawViolation(self, str(found), subject) from None

    def __repr__(self) -> str:
        return f"<law {self.number}: {self.name}>"


LAWS: dict[str, Law] = {}


def law(number: int, *where: str, foreign: bool = True, cost: int = 1) -> Callable[[Callable[[Any], None]], Law]:
    """Make a function a law and enter it in :data:`LAWS`."""

    def enter(check: Callable[[Any], None]) -> Law:
        made = Law(number, check, where, foreign, cost)
        if made.name in LAWS:
            raise ValueError(f"law: expected a new name, got {made.name!r}, which is there")
        LAWS[made.name] = made
        return made

    return enter


# --- how values are compared ------------------------------------------------------------------------------

# Relative to the largest number of a leaf: products are summed in another order in another evaluation.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.complex128: 1e-9}
_COARSE = 3e-2
# Continuous draws differ by more than this unless they are the same draw.
_APART = 1e-7


def broken(found: str) -> None:
    """Say what is wrong."""
    raise Broken(found)


def agree(found: Tree, wanted: Tree, where: str, *, exact: bool = False) -> None:
    """Raise unless two trees have equal paths, shapes, dtypes and values, up to rounding or to the bit."""
    names, expected = leaf_names(found, where), leaf_names(wanted, where)
    if names != expected:
        broken(f"{where}: expected the leaves {expected}, got {names}")
    for name, leaf, want in zip(names, flatten(found)[0], flatten(wanted)[0], strict=True):
        if not isinstance(leaf, Tensor) or not isinstance(want, Tensor):
            if type(leaf) is not type(want) or leaf != want:
                broken(f"{name}: expected {want!r}, got {leaf!r}")
        elif leaf.shape != want.shape:
            broken(f"{name}: expected shape {list(want.shape)}, got {list(leaf.shape)}")
        elif leaf.dtype != want.dtype:
            broken(f"{name}: expected {want.dtype}, got {leaf.dtype}")
        elif off := gap(leaf, want, exact=exact):
            broken(f"{name}: {off}")


def gap(leaf: Tensor, want: Tensor, *, exact: bool = False) -> str:
    """Where and by how much two tensors differ; empty if they do not."""
    leaf, want = leaf.detach(), want.detach()
    same = (leaf == want) | ((leaf != leaf) & (want != want))
    if not exact and leaf.is_floating_point():
        size = want.abs().nan_to_num(0.0, 0.0, 0.0).max() if want.numel() else want.new_zeros(())
        same = same | ((leaf - want).abs() <= _TOLERANCE.get(leaf.dtype, _COARSE) * (1.0 + size))
    if bool(same.all()):
        return ""
    at = tuple(int(i) for i in (~same).nonzero()[0])
    return f"expected {want[at].item()!r} at {list(at)}, got {leaf[at].item()!r} ({int((~same).sum())} differ)"


def differ(one: Tree, other: Tree, where: str) -> None:
    """Raise if two trees of tensors hold the same numbers."""
    for a, b in zip(flatten(one)[0], flatten(other)[0], strict=True):
        if isinstance(a, Tensor) and a.numel() and bool(((a.detach() - b.detach()).abs() > _APART).any()):
            return
    broken(f"{where}: expected different numbers, got the same")


def zero(gradients: Mapping[str, Tensor], where: str) -> None:
    """Raise unless every gradient is zero."""
    for name, gradient in gradients.items():
        if bool((gradient != 0).any()):
            broken(f"{where} on {name}: expected a zero gradient, got {float(gradient.abs().max()):.3g}")
