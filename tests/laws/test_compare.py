"""What counts as the same number, and what a difference says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from functional_marl.laws._compare import Broken, agree, broken, differ, gap, zero

NAN, INF = math.nan, math.inf


def tensor(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


# The tolerance is relative to 1 plus the largest number: 1e-9 of 1 + 3 is 4e-9.
@pytest.mark.parametrize(
    ("dtype", "within", "beyond"),
    [
        (torch.float64, 3.9e-9, 4.1e-9),
        (torch.float32, 3.9e-4, 4.1e-4),
        (torch.bfloat16, 0.11, 0.25),
        (torch.float16, 0.11, 0.13),
    ],
)
def test_rounding_is_relative_to_the_largest_number(dtype: torch.dtype, within: float, beyond: float) -> None:
    want = tensor(-3.0, 0.0, 1.0, dtype=torch.float64).to(dtype)
    for sign in (1, -1):
        assert gap((want.double() + sign * tensor(0.0, within, 0.0)).to(dtype), want) == ""
        assert gap((want.double() + sign * tensor(0.0, beyond, 0.0)).to(dtype), want) != ""
        assert gap((want.double() + sign * tensor(0.0, within, 0.0)).to(dtype), want, exact=True) != ""


def test_a_gap_names_the_first_place_the_numbers_and_how_many_differ() -> None:
    want = torch.arange(6, dtype=torch.float64).view(2, 3)
    leaf = want.clone()
    leaf[0, 2] += 1
    leaf[1, 1] -= 1
    assert gap(leaf, want) == "expected 2.0 at [0, 2], got 3.0 (2 differ)"
    assert gap(want, want) == ""


def test_infinite_numbers_set_no_tolerance() -> None:
    assert gap(tensor(INF, 1.0), tensor(INF, 1.0)) == ""
    assert gap(tensor(INF, 1.0), tensor(-INF, 1.0)).startswith("expected -inf at [0], got inf")
    assert gap(tensor(INF, 1.001), tensor(INF, 1.0)).startswith("expected 1.0 at [1]")
    assert gap(tensor(-INF, 1.001), tensor(-INF, 1.0)).startswith("expected 1.0 at [1]")
    assert gap(tensor(NAN, 1.001), tensor(NAN, 1.0), oracle=True).startswith("expected 1.0 at [1]")


def test_nan_in_both_shows_nothing_unless_there_is_an_oracle() -> None:
    leaf = tensor(1.0, NAN, NAN)
    assert gap(leaf, leaf) == "nan in both at [1] (2 of 3 numbers), which shows no agreement"
    assert gap(leaf, leaf, oracle=True) == ""
    assert gap(leaf, tensor(1.0, 2.0, NAN), oracle=True) == "expected 2.0 at [1], got nan (1 differ)"
    assert gap(tensor(1.0, 2.0, NAN), leaf, oracle=True) == "expected nan at [1], got 2.0 (1 differ)"
    assert gap(tensor(NAN), tensor(1.0)) != ""


def test_integers_truth_values_and_nothing() -> None:
    big = 10**12
    assert gap(torch.tensor([big]), torch.tensor([big + 1])) == f"expected {big + 1} at [0], got {big} (1 differ)"
    assert gap(torch.tensor([True]), torch.tensor([False])) != ""
    assert gap(torch.zeros(0), torch.zeros(0)) == ""
    assert gap(torch.zeros(()), torch.zeros(())) == ""


def test_leaves_with_gradients() -> None:
    leaf = torch.ones(2, requires_grad=True)
    assert gap(leaf, leaf * 1) == ""
    assert gap(leaf, torch.zeros(2)) == "expected 0.0 at [0], got 1.0 (2 differ)"


@pytest.mark.parametrize(
    ("found", "wanted", "says"),
    [
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, r"^out: expected the leaves \[.*b.*\], got \[.*a.*\]$"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, r"a'\]: expected shape \[3\], got \[2\]$"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2).double()}, r"a'\]: expected torch.float64, got torch.float32$"),
        ({"a": 1}, {"a": 2}, r"a'\]: expected 2, got 1$"),
        ({"a": 1}, {"a": True}, r"a'\]: expected True, got 1$"),
        ({"a": 1}, {"a": torch.ones(())}, r"a'\]: expected tensor\(1.\), got 1$"),
        ({"a": torch.ones(())}, {"a": 1}, r"a'\]: expected 1, got tensor\(1.\)$"),
        (
            [torch.zeros(1), torch.ones(1)],
            [torch.zeros(1), torch.zeros(1)],
            r"^out\[1\]: expected 0.0 at \[0\], got 1.0",
        ),
    ],
)
def test_trees_that_do_not_agree(found: Any, wanted: Any, says: str) -> None:
    with pytest.raises(Broken, match=says):
        agree(found, wanted, "out")


def test_trees_that_agree() -> None:
    tree = {"a": torch.rand(2), "b": (3, "word")}
    agree(tree, {"a": tree["a"].clone(), "b": (3, "word")}, "out", exact=True)  # pyright: ignore
    agree(torch.zeros(1) + 1e-6, torch.zeros(1), "out")
    with pytest.raises(Broken):
        agree(torch.zeros(1) + 1e-6, torch.zeros(1), "out", exact=True)


def test_nan_agrees_with_an_oracle_and_to_the_bit() -> None:
    leaf = tensor(NAN)
    agree(leaf, leaf, "out", oracle=True)
    agree(leaf, leaf, "out", exact=True)
    with pytest.raises(Broken, match=r"out: nan in both at \[0\]"):
        agree(leaf, leaf, "out")
    with pytest.raises(Broken):
        agree(tensor(1e-12), tensor(0.0), "out", exact=True)
    agree(tensor(1e-12), tensor(0.0), "out", oracle=True)


def test_different_numbers() -> None:
    one = {"a": torch.zeros(0), "b": tensor(1.0, 2.0)}
    differ(one, {"a": torch.zeros(0), "b": tensor(1.0, 2.0 + 2e-7)}, "masks")
    differ(one, {"a": torch.zeros(0), "b": tensor(1.0, 2.0 - 2e-7)}, "masks")
    for close in (0.0, 0.9e-7, -0.9e-7):
        with pytest.raises(Broken, match=r"^masks: expected different numbers, got the same$"):
            differ(one, {"a": torch.zeros(0), "b": tensor(1.0, 2.0 + close)}, "masks")
    with pytest.raises(Broken):
        differ((1, torch.zeros(1)), (2, torch.zeros(1)), "masks")


def test_zero_gradients() -> None:
    zero({}, "agent 0")
    zero({"weight": torch.zeros(3)}, "agent 0")
    with pytest.raises(Broken, match=r"^agent 0 on bias: expected a zero gradient, got 0.25$"):
        zero({"weight": torch.zeros(3), "bias": torch.tensor([0.0, -0.25, 0.125])}, "agent 0")
    with pytest.raises(Broken, match="got nan"):
        zero({"weight": torch.tensor([NAN])}, "agent 0")


def test_broken() -> None:
    with pytest.raises(Broken, match=r"^something$"):
        broken("something")
