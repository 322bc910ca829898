"""Inputs from words of the command line."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from functional_marl.laws import CheckError
from functional_marl.laws._example_words import example_of


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("4,3,6", torch.float32),
        ("4,3,6:float", torch.float32),
        ("4,3,6:double", torch.float64),
        ("4,3,6:bool", torch.bool),
    ],
)
def test_zeros(word: str, dtype: torch.dtype) -> None:
    found = example_of([word], False, None)
    assert (found.dtype, found.shape) == (dtype, (4, 3, 6))
    assert not found.any()


@pytest.mark.parametrize(("word", "high"), [("2,3:int", 2), ("2,3:int5", 5), ("2,3:int1", 1), ("2,3:int12", 12)])
def test_integers_take_every_value(word: str, high: int) -> None:
    found = example_of([word], False, None)
    assert (found.dtype, found.shape) == (torch.int64, (2, 3))
    assert found.flatten().tolist() == [k % high for k in range(6)]


def test_several_inputs() -> None:
    one, two = example_of(["3,6", "3:bool"], False, None)
    assert (one.shape, two.shape, two.dtype) == ((3, 6), (3,), torch.bool)
    assert type(example_of(["3,6", "3"], False, None)) is tuple


def test_names_and_nested_names() -> None:
    found = example_of(["a.obs=3,6", "a.mask=3:bool", "b=3,2", "c.d.e=1"], False, None)
    assert {name: type(each) for name, each in found.items()} == {"a": dict, "b": torch.Tensor, "c": dict}
    assert found["a"]["obs"].shape == (3, 6)
    assert found["a"]["mask"].dtype == torch.bool
    assert found["b"].shape == (3, 2)
    assert found["c"]["d"]["e"].shape == (1,)


def test_an_input_for_every_agent() -> None:
    found = example_of(["4,6"], False, ["wolf", "sheep"])
    assert list(found) == ["wolf", "sheep"]
    assert all(leaf.shape == (4, 6) for leaf in found.values())
    named = example_of(["wolf=4,6", "sheep=4,2"], False, ["wolf", "sheep"])
    assert [leaf.shape for leaf in named.values()] == [(4, 6), (4, 2)]


def test_a_tensordict() -> None:
    found = example_of(["agents.obs=4,3,6", "agents.mask=4,3:bool"], True, None)
    assert isinstance(found, TensorDict)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--input: expected the shape of an example input, such as 4,3,6"),
        (["a=3", "3"], "--input: expected a name for every input, or for none"),
        (["3,x"], "--input: expected [name=]4,3,6[:float|double|bool|int7], got '3,x'"),
        (["a=3:half"], "--input: expected [name=]4,3,6[:float|double|bool|int7], got 'a=3:half'"),
        ([""], "--input: expected [name=]4,3,6[:float|double|bool|int7], got ''"),
    ],
)
def test_words_that_are_no_input(words: list[str], says: str) -> None:
    with pytest.raises(CheckError) as raised:
        example_of(words, False, None)
    assert str(raised.value) == says
