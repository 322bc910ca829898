"""What counts as the same to the bit, and how it is written back."""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from functional_marl.laws._held_values import (
    UNSET,
    bits_of,
    generator_state,
    refill,
    refill_list,
    same,
    same_array,
    same_items,
    set_generator_state,
    slot_value,
    slots_of,
)

NAN = math.nan
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_tell_zeros_apart_and_nan_equals_itself(dtype: torch.dtype) -> None:
    leaf = torch.tensor([0.0, 1.0, NAN], dtype=dtype)
    assert torch.equal(bits_of(leaf), bits_of(leaf.clone()))
    other = leaf.clone()
    other[0] = -other[0]
    assert not torch.equal(bits_of(leaf), bits_of(other))
    assert bits_of(leaf).data_ptr() == leaf.data_ptr()
    assert not bits_of(leaf).dtype.is_floating_point


def test_bits_of_other_kinds() -> None:
    assert bits_of(torch.zeros(2, dtype=torch.float8_e4m3fn)).dtype is torch.uint8
    assert bits_of(torch.tensor([True])).dtype is torch.bool
    assert bits_of(torch.tensor([3])).dtype is torch.int64


@pytest.mark.parametrize(
    ("now", "was", "equal"),
    [
        (1, 1, True),
        (1, 2, False),
        (1, True, False),
        (1.0, 1, False),
        (float("nan"), float("nan"), True),
        (0.0, -0.0, False),
        (0.5, 0.5, True),
        ("a", "a", True),
        ([1, 2], [1, 2], True),
        ([1, 2], [1], False),
        ([1], [1, 2], False),
        ([1, 2], [1, 3], False),
        ([1], (1,), False),
        ((1, [2.0]), (1, [2.0]), True),
        ((1, [2.0]), (1, [-2.0]), False),
        (deque([1]), deque([1]), True),
        (deque([1]), deque([2]), False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({1}, {1}, True),
        ({1}, {2}, False),
        (np.zeros(2), np.zeros(2), True),
        (np.zeros(2), -np.zeros(2), False),
        (np.zeros(2), np.zeros(3), False),
        (torch.zeros(2), torch.zeros(2), True),
        (torch.zeros(2), -torch.zeros(2), False),
        (torch.zeros(2), torch.zeros(1, 2), False),
        (torch.zeros(2), torch.zeros(2).double(), False),
        (torch.zeros(2), [0.0, 0.0], False),
        (None, None, True),
        (None, 0, False),
    ],
)
def test_same(now: Any, was: Any, equal: bool) -> None:
    assert same(now, was) is equal


def test_same_of_what_cannot_be_compared() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError

        __hash__ = None  # pyright: ignore

    one = Odd()
    assert same(one, one)
    assert same(one, Odd()) is False


def test_arrays() -> None:
    assert same_array(np.array([NAN]), np.array([NAN]))
    assert not same_array(np.zeros(2), np.zeros(2, dtype=np.float32))
    assert not same_array(np.zeros((1, 2)), np.zeros((2, 1)))
    held = [object(), object()]
    assert same_array(np.array(held), np.array(held))
    assert not same_array(np.array(held), np.array(held[::-1]))


def test_items_are_the_same_objects_in_the_same_order() -> None:
    a, b = [1], [1]
    assert same_items({"x": a, "y": b}, {"x": a, "y": b})
    assert not same_items({"x": a}, {"x": b})
    assert not same_items({"x": a, "y": b}, {"y": b, "x": a})
    assert not same_items({"x": a}, {"x": a, "y": b})
    assert not same_items({"x": a, "y": b}, {"x": a})
    assert not same_items({"x": a}, {"z": a})


@pytest.mark.parametrize(
    "table", [{"a": 1, "b": 2}, OrderedDict(a=1, b=2), Counter(a=1, b=2), defaultdict(int, a=1, b=2)], ids=type
)
def test_tables_are_refilled(table: dict[str, int]) -> None:
    was = dict(table)
    table.clear()
    table["b"], table["c"], table["a"] = 5, 6, 7
    refill(table, was)
    assert list(table.items()) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("container", [[3, 4], {3, 4}, deque([3, 4], maxlen=2)], ids=type)
def test_lists_are_refilled(container: Any) -> None:
    refill_list(container, (1, 2))
    assert container == type(container)([1, 2])
    refill_list(container, ())
    assert len(container) == 0


class Slotted:
    __slots__ = ("h", "later")

    def __init__(self) -> None:
        self.h = 1


class Below(Slotted):
    __slots__ = ("__weakref__", "more")


def test_slots() -> None:
    assert {slot.__name__ for slot in slots_of(Below)} == {"h", "later", "more"}
    held = Below()
    values = {slot.__name__: slot_value(held, slot) for slot in slots_of(Below)}
    assert values == {"h": 1, "later": UNSET, "more": UNSET}


@pytest.mark.parametrize(
    ("held", "draw"),
    [
        (torch.Generator(), lambda held: torch.rand(3, generator=held).tolist()),
        (random.Random(0), lambda held: held.random()),
        (np.random.default_rng(0), lambda held: held.random()),
        (np.random.RandomState(0), lambda held: held.normal()),
        (np.random.PCG64(0), lambda held: held.random_raw()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_generators_go_back(held: Any, draw: Any) -> None:
    draw(held)  # RandomState keeps the second of two normal numbers
    state = generator_state(held, np)
    first = draw(held)
    assert draw(held) != first
    set_generator_state(held, state)
    assert draw(held) == first


def test_what_is_no_generator() -> None:
    assert generator_state(random.SystemRandom(), np) is None
    assert generator_state(3, np) is None
    assert generator_state(3, None) is None
    assert generator_state(np.random.default_rng(0), None) is None
    assert generator_state(np.random, np) is None


def test_a_tensor_that_cannot_be_read_is_not_the_same() -> None:
    freed: Tensor = torch.zeros(4)
    meta = torch.zeros(4, device="meta")
    assert same(freed, meta) is False
