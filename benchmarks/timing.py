"""Timing of variants of the same work, compared with each other.

Machines are noisy, and other processes start and stop. So the variants take turns, in an order that rotates from
round to round, and the result is the median over rounds of the ratio within a round. On the CPU the clock is the
process's CPU time: with one thread it equals the wall clock of an idle machine, and on a busy machine it does not
count waiting.
Outputs are compared before anything is timed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Budget", "Claim", "Contest", "Measured", "compare", "fastest", "measure"]

Variant = Callable[[], Any]


@dataclass(frozen=True)
class Claim:
    """The aim of a row: ``other`` takes at least ``bound`` times as long as ``ours``, or ``ours`` at most
    ``bound`` times as long as ``other``.

    Without a bound the ratio is shown for information.
    """

    ours: str
    other: str
    bound: float | None = None
    kind: Literal["at least", "at most"] = "at least"

    def ratio(self, ours: float, other: float) -> float:
        """``other / ours`` for a lower bound, ``ours / other`` for an upper bound."""
        return other / ours if self.kind == "at least" else ours / other

    def met(self, ratio: float) -> bool | None:
        """Whether a ratio meets the bound; None without a bound."""
        if self.bound is None:
            return None
        return ratio >= self.bound if self.kind == "at least" else ratio <= self.bound


@dataclass
class Contest:
    """Variants of the same work, and the claims about them.

    ``calls`` outputs of every variant are compared before timing: several if a variant has state from call to call.
    With a ``unit`` other than seconds each call returns its own figure (bytes, or the seconds that a child process
    measured), and no outputs are compared.
    """

    name: str
    variants: Mapping[str, Variant]
    claims: Sequence[Claim] = ()
    calls: int = 1
    unit: str = "s"
    tolerance: float = 1e-4
    rounds: int | None = None  # None: as many as the budget allows
    seconds: float = 1.0  # how many times the usual budget
    size: tuple[int, ...] = ()  # agents, width, batch: for the plot
    compared: bool = True
    outputs: Callable[[Any], Any] = field(default=lambda output: output)


@dataclass(frozen=True)
class Budget:
    """How long a contest may take."""

    seconds: float = 4.0
    least_rounds: int = 5
    most_rounds: int = 200
    block: float = 2e-3  # calls are timed in blocks of about this long

    @classmethod
    def tiny(cls) -> Budget:
        """One round of one call, only to see that everything runs."""
        return cls(seconds=0.0, least_rounds=1, most_rounds=1, block=0.0)


@dataclass(frozen=True)
class Measured:
    """One claim, measured: the figures are medians over rounds, the ratio the median of the rounds' ratios."""

    row: str
    contest: str
    claim: Claim
    ours: float
    other: float
    ratio: float
    low: float  # quartiles of the rounds' ratios
    high: float
    rounds: int
    unit: str
    size: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """``met`` or ``missed``; with a question mark if the bound is between the quartiles."""
        met = self.claim.met(self.ratio)
        if met is None or self.claim.bound is None:
            return ""
        near = self.low < self.claim.bound < self.high
        return ("met" if met else "missed") + ("?" if near else "")


def measure(row: str, contest: Contest, budget: Budget, device: str = "cpu") -> list[Measured]:
    """Compare the outputs of a contest's variants, then time them in turns."""
    if contest.unit == "s":
        if contest.compared:
            compare(contest)
        figures = _rounds(contest, budget, device)
    else:
        count = contest.rounds or 1
        names = list(contest.variants)
        figures: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(min(count, budget.most_rounds)):
            for name in _rotated(names, turn):
                figures[name].append(float(contest.variants[name]()))
    claims = contest.claims if budget.block else [replace(claim, bound=None) for claim in contest.claims]
    return [_judge(row, contest, claim, figures) for claim in claims]


def compare(contest: Contest) -> None:
    """Check that all variants have the outputs of the first.

    Raises:
        AssertionError: names the variant that does not.
    """
    first, *others = contest.variants
    expected = [_numbers(contest.outputs(contest.variants[first]())) for _ in range(contest.calls)]
    for name in others:
        got = [_numbers(contest.outputs(contest.variants[name]())) for _ in range(contest.calls)]
        try:
            torch.testing.assert_close(got, expected, rtol=contest.tolerance, atol=contest.tolerance / 10)
        except AssertionError as error:
            raise AssertionError(f"{contest.name}: {name} differs from {first}: {error}") from None


def fastest(candidates: Sequence[Variant], device: str = "cpu") -> Variant:
    """The candidate with the lowest median time: the best hand-written kernel for a size."""
    contest = Contest("", {str(k): variant for k, variant in enumerate(candidates)})
    figures = _rounds(contest, Budget(0.3, 5, 30, 1e-3), device)
    return candidates[min(range(len(candidates)), key=lambda k: statistics.median(figures[str(k)]))]


def _numbers(output: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _rotated(names: list[str], turn: int) -> list[str]:
    """The names in the order of a round: each round starts with another one, and every other pass is reversed."""
    start = turn % len(names)
    order = names[start:] + names[:start]
    return order[::-1] if (turn // len(names)) % 2 else order


def _rounds(contest: Contest, budget: Budget, device: str) -> dict[str, list[float]]:
    """Seconds per call, by variant, for every round."""
    timer = _cuda_seconds if device.startswith("cuda") else _seconds
    names = list(contest.variants)
    gc.collect()
    gc.freeze()  # garbage collections during the timing take less time
    try:
        calls: dict[str, int] = {}
        expected = 0.0
        for name in names:
            once = min(timer(contest.variants[name], 1) for _ in range(3 if budget.block else 1))
            calls[name] = max(1, math.ceil(budget.block / max(once, 1e-7)))
            expected += calls[name] * once
        most = contest.rounds or budget.most_rounds
        count = int(
            min(most, budget.most_rounds, max(budget.least_rounds, budget.seconds * contest.seconds / expected))
        )
        figures: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(max(1, count)):
            for name in _rotated(names, turn):
                figures[name].append(timer(contest.variants[name], calls[name]))
    finally:
        gc.unfreeze()
    return figures


def _seconds(variant: Variant, calls: int) -> float:
    if hasattr(variant, "seconds"):  # runs in another process, and is timed there
        return variant.seconds(calls)
    began = time.process_time()
    for _ in range(calls):
        variant()
    return (time.process_time() - began) / calls


def _cuda_seconds(variant: Variant, calls: int) -> float:
    """Seconds per call on the device's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        variant()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _judge(row: str, contest: Contest, claim: Claim, figures: Mapping[str, list[float]]) -> Measured:
    ours, other = figures[claim.ours], figures[claim.other]
    ratios = sorted(claim.ratio(a, b) for a, b in zip(ours, other, strict=True))
    return Measured(
        row=row,
        contest=contest.name,
        claim=claim,
        ours=statistics.median(ours),
        other=statistics.median(other),
        ratio=statistics.median(ratios),
        low=ratios[len(ratios) // 4],
        high=ratios[(3 * (len(ratios) - 1) + 3) // 4],
        rounds=len(ratios),
        unit=contest.unit,
        size=contest.size,
    )
