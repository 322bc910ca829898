"""What can be found out about a module by calling it: whether it draws, repeats itself, gives numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten
from functional_marl.laws._compare import gap
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_under_test import ModuleUnderTest

__all__ = [
    "draws_here",
    "fact",
    "follows_the_seed",
    "gives_numbers",
    "mixes_rows",
    "repeats",
    "samples",
    "trains_otherwise",
]


def fact(host: ModuleUnderTest, name: str, train: bool, find: Callable[[], bool]) -> bool:
    """What was found out before, or else now; once a module and mode."""
    if (name, train) not in host.facts:
        host.facts[name, train] = find()
    return host.facts[name, train]


def repeats(host: ModuleUnderTest, train: bool) -> bool:
    """Whether calls give the same under one seed, and under others."""
    return not samples(host, train) and follows_the_seed(host, train)


def follows_the_seed(host: ModuleUnderTest, train: bool) -> bool:
    """Whether calls give the same under one seed."""
    return fact(host, "follows the seed", train, lambda: _same_again(host, train))


def samples(host: ModuleUnderTest, train: bool) -> bool:
    """Whether outputs depend on the seed."""
    return fact(host, "samples", train, lambda: _samples(host, train))


def gives_numbers(host: ModuleUnderTest, train: bool) -> bool:
    """Whether no output on the example's shapes is NaN, or a call raises, which another law reports."""

    def find() -> bool:
        try:
            leaves = flatten(ModuleCase(host, train=train).outputs())[0]
        except Exception:
            return True
        return not any(leaf.is_floating_point() and bool(leaf.isnan().any()) for leaf in leaves)

    return fact(host, "numbers", train, find)


def trains_otherwise(host: ModuleUnderTest) -> bool:
    """Whether a call in training differs from one in evaluation: in outputs, buffers, draws, or because it raises."""

    def find() -> bool:
        case = ModuleCase(host)
        try:
            outputs, after = case.trained()
            drawn = host.samples(case.leaves, train=True)
        except Exception:
            return True
        before = host.buffers()
        moved = any(name not in before or not _equal(leaf, before[name]) for name, leaf in after.items())
        return drawn or moved or not _same(outputs, case.outputs(train=False))

    return fact(host, "training", True, find)


def mixes_rows(host: ModuleUnderTest, train: bool) -> bool:
    """Whether a row of the batch changes with the other rows, as where statistics of the batch are used."""

    def find() -> bool:
        case = ModuleCase(host, seed=21, train=train)
        if not case.batch_sizes:
            return bool(host.buffers())  # it cannot be seen, and statistics over agents may be those of a batch
        first = slice(0, 1)
        rest = slice(1, None) if case.batch_sizes[0] > 1 else first  # a batch of one gets a second row
        one, other = (_in_one_batch(case.at(first), case.redrawn(seed).at(rest)) for seed in (22, 23))
        try:
            before, after = one.outputs(), other.outputs()
        except Exception:
            return False
        pairs = zip(flatten(before)[0], flatten(after)[0], strict=True)
        return any(bool(gap(a[:1], b[:1], oracle=True)) for a, b in pairs)

    return fact(host, "mixes rows", train, find)


def _in_one_batch(case: ModuleCase, other: ModuleCase) -> ModuleCase:
    """The rows of the first batch axis of one case, and then those of the other."""
    pairs = zip(case.leaves, other.leaves, case.host.batched, strict=True)
    return replace(case, leaves=tuple(torch.cat([a, b]) if has else a for a, b, has in pairs))


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


def _same(one: Sequence[Tree], other: Sequence[Tree]) -> bool:
    pairs = itertools.chain.from_iterable(zip(a, b, strict=True) for a, b in zip(one, other, strict=True))
    return all(_equal(a, b) for a, b in pairs)


def _same_again(host: ModuleUnderTest, train: bool) -> bool:
    case = ModuleCase(host, train=train)
    try:
        return _same(case.outputs(), case.outputs())
    except Exception:  # what raises is reported where it matters
        return True


def _samples(host: ModuleUnderTest, train: bool) -> bool:
    """A module that raises at a draw draws, too.

    The mask of a small network is the same by chance under many seeds, so one whose draws are seen in torch's
    generators is called often.
    """
    try:
        drawn = host.samples(ModuleCase(host).leaves, train=train)
        for seed in range(32 if drawn else 2):
            case = ModuleCase(host, seed=seed, train=train)
            if not _same(case.outputs(fold=1), case.outputs(fold=2)):
                return True
    except Exception as error:
        return "random" in str(error)
    return False


def draws_here(s: Any) -> bool:
    """Whether outputs of this very case depend on the seed, seldom as others may: a violation may be a draw."""
    try:
        if not s.host.samples(s.leaves, train=s.train):
            return False
        for case in (s, s.taking(s.permutation())):
            outputs = case.outputs()
            if not all(_same(case.outputs(fold=fold), outputs) for fold in range(1, 16)):
                return True
    except Exception as error:
        return "random" in str(error)
    return False
