"""Python that makes a case again: what it imports, and trees that come back as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

import functional_marl as fm
from functional_marl._pytrees import flatten
from functional_marl.laws._snippet import code, snippet


class Case:
    def __init__(self, again: str) -> None:
        self.again = again

    def __repr__(self) -> str:
        return self.again


@pytest.mark.parametrize(
    ("again", "imports"),
    [
        ("Odd(1)", ["from functional_marl.laws import LAWS, Odd"]),
        ("'word'", ["from functional_marl.laws import LAWS"]),
        ("Odd(torch.zeros(2))", ["import torch", "from functional_marl.laws import LAWS, Odd"]),
        (
            "Odd(nan, inf)",
            ["from math import nan", "from math import inf", "from functional_marl.laws import LAWS, Odd"],
        ),
        (
            "Zoo(TensorDict({}, []), Sharing([0]))",
            [
                "from tensordict import TensorDict",
                "from functional_marl import Sharing",
                "from functional_marl.laws import LAWS, Zoo",
            ],
        ),
        (
            "Named(['a'], MarlGroupMapType.X, by_prefix, by_spec)",
            [
                "from functional_marl import MarlGroupMapType",
                "from functional_marl import by_prefix",
                "from functional_marl import by_spec",
                "from functional_marl.laws import LAWS, Named",
            ],
        ),
        (
            "module_subject(module, Claims(None), seed=0)",
            ["from functional_marl.laws import Claims, LAWS, module_subject", "# module: what check was called on"],
        ),
    ],
)
def test_what_a_snippet_imports(again: str, imports: list[str]) -> None:
    assert snippet("some_law", Case(again)).splitlines() == [*imports, f"LAWS['some_law']({again})"]


@pytest.mark.parametrize(
    "value",
    [
        torch.rand(2, 3),
        torch.rand(()),
        torch.zeros(2, 0, 3, dtype=torch.int64),
        torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.float64),
        {"a": torch.ones(2), "b": [torch.zeros(1), (torch.zeros(1), "word", None)]},
        (torch.ones(1, dtype=torch.bool),),
        TensorDict({"a": {"b": torch.ones(2, 3)}}, [2]),
        (fm.MarlGroupMapType.ALL_IN_ONE_GROUP, 3, 0.5),
    ],
)
def test_trees_come_back(value: Any) -> None:
    names = {"torch": torch, "TensorDict": TensorDict, "nan": float("nan"), "inf": float("inf"), **vars(fm)}
    again = eval(code(value), names)
    assert type(again) is type(value)
    for one, was in zip(flatten(again)[0], flatten(value)[0], strict=True):
        if isinstance(was, torch.Tensor):
            assert one.dtype == was.dtype
            assert one.shape == was.shape
            assert torch.equal(one.nan_to_num(7.0), was.nan_to_num(7.0))
        else:
            assert one == was
    if isinstance(value, TensorDict):
        assert again.batch_size == value.batch_size


def test_how_trees_look() -> None:
    x = "torch.tensor([1.0], dtype=torch.float32).reshape(1)"
    one = torch.ones(1)
    assert code(one) == x
    assert code(torch.tensor(2)) == "torch.tensor(2, dtype=torch.int64).reshape(())"
    assert code({"a": one, 2: one}) == f"{{'a': {x}, 2: {x}}}"
    assert code([one, one]) == f"[{x}, {x}]"
    assert code((one, one)) == f"tuple([{x}, {x}])"
    assert code(TensorDict({"a": one}, [1])) == f"TensorDict({{'a': {x}}}, [1])"
    assert code(fm.MarlGroupMapType.ONE_GROUP_PER_AGENT) == "MarlGroupMapType.ONE_GROUP_PER_AGENT"
    assert code("word") == "'word'"
