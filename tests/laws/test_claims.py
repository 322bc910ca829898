"""Claims: what is refused, who hears whom, and Python that makes them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import functional_marl as fm
from functional_marl.laws import CheckError, Claims

X = torch.zeros(4, 3, 6)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"n_agents": 0}, r"^n_agents: expected 1 or more, got 0$"),
        ({"randomness": "other"}, r"^randomness: expected 'error', 'same', 'different' or None, got 'other'$"),
        ({"single": nn.Linear(2, 2)}, r"^single: expected a function .* got Linear$"),
        ({"single": 3}, r"^single: expected a function .* got int$"),
        ({"single": fm.network(lambda: nn.Linear(2, 2), 1)}, r"^single: expected a function .* got Network$"),
        ({"centralized": True, "communication": True}, r"^communication: expected None where centralized=True"),
        ({"centralized": True, "communication": [[1], [0]]}, r"^communication: expected None where centralized=True"),
        ({"rounds": 0}, r"^rounds: expected 1 or more, got 0$"),
        ({"agents": "abc"}, r"^agents: expected a list of different names, or a number, got 'abc'$"),
        ({"agents": ["a", "a"]}, r"^agents: expected a list of different names, or a number, got \['a', 'a'\]$"),
        ({"agents": []}, r"^agents: expected a list of different names, or a number, got \[\]$"),
        ({"agents": ["a"], "groups": {"g": 1}}, r"^agents: expected None beside groups="),
        ({"agents": ["a", "b"], "n_agents": 3}, r"^agents: expected 3 names, got \['a', 'b'\]$"),
    ],
)
def test_what_is_refused(stated: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckError, match=says):
        Claims(X, **stated)


def test_an_example_is_needed() -> None:
    with pytest.raises(CheckError, match=r"^example: expected inputs to call the module with"):
        Claims()
    assert Claims(None).example is None


@pytest.mark.parametrize(
    "stated",
    [
        {"n_agents": 1},
        {"rounds": 1},
        {"centralized": True, "communication": False},
        {"centralized": False, "communication": True},
        {"single": lambda: nn.Linear(2, 2)},
        {"agents": ["a", "b"], "n_agents": 2},
        {"agents": ["a"]},
        *({"randomness": word} for word in ("error", "same", "different", None)),
    ],
)
def test_what_is_accepted(stated: dict[str, Any]) -> None:
    claims = Claims(X, **stated)
    assert {name: getattr(claims, name) for name in stated} == stated


def test_no_keyword_inputs() -> None:
    assert Claims(X).kwargs == {}
    assert Claims(X, kwargs=None).kwargs == {}  # pyright: ignore[reportArgumentType]
    assert Claims(X, kwargs={"hard": X}).kwargs == {"hard": X}


def test_who_hears_whom() -> None:
    assert Claims(X).hears(3) == [{0}, {1}, {2}]
    assert Claims(X, communication=False).hears(2) == [{0}, {1}]
    assert Claims(X, communication=True).hears(2) == [{0, 1}, {0, 1}]
    assert Claims(X, centralized=True).hears(2) == [{0, 1}, {0, 1}]
    line = [[1], [2], [3], []]
    assert Claims(X, communication=line).hears(4) == [{0, 1}, {1, 2}, {2, 3}, {3}]
    assert Claims(X, communication=line, rounds=2).hears(4) == [{0, 1, 2}, {1, 2, 3}, {2, 3}, {3}]
    assert Claims(X, communication=line, rounds=9).hears(4) == [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}, {3}]


@pytest.mark.parametrize("graph", [[[1], [0]], [[1], [0], [3]], [[1], [0], [-1]]])
def test_a_graph_of_other_agents(graph: list[list[int]]) -> None:
    with pytest.raises(CheckError) as raised:
        Claims(X, communication=graph).hears(3)
    assert str(raised.value).startswith("communication: expected True, or for each of 3 agents a list of the agents")
    assert str(raised.value).endswith(f"got {graph}")
    assert Claims(X, communication=[[2], [0], []]).hears(3) == [{0, 2}, {0, 1}, {2}]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        (Claims(X), "Claims(torch.zeros([4, 3, 6]))"),
        (Claims(X.double()), "Claims(torch.zeros([4, 3, 6], dtype=torch.float64))"),
        (Claims((X[0], X[0])), "Claims((torch.zeros([3, 6]), torch.zeros([3, 6])))"),
        (Claims((X[0],)), "Claims((torch.zeros([3, 6]),))"),
        (Claims([X[0]]), "Claims([torch.zeros([3, 6])])"),
        (Claims({"a": X[0], "b": {"c": X[0]}}), "Claims({'a': torch.zeros([3, 6]), 'b': {'c': torch.zeros([3, 6])}})"),
        (Claims(torch.tensor([1, 2])), "Claims(torch.tensor([1, 2], dtype=torch.int64).reshape(2))"),
        (Claims(TensorDict({"a": X[0]}, [3])), "Claims(TensorDict({'a': torch.zeros([3, 6])}, [3]))"),
        (Claims(lambda generator: X), "Claims(...)"),
        (Claims(X[0], n_agents=3, sharing="shared"), "Claims(torch.zeros([3, 6]), n_agents=3, sharing='shared')"),
        (Claims(X[0], rounds=1, ids=True), "Claims(torch.zeros([3, 6]), ids=True)"),
        (Claims(X[0], agent_dim=0, batch_dims=0), "Claims(torch.zeros([3, 6]), agent_dim=0, batch_dims=0)"),
        (Claims(X[0], sharing=[0, 0, 1]), "Claims(torch.zeros([3, 6]), sharing=[0, 0, 1])"),
        (Claims(X[0], out_agent_dim=None), "Claims(torch.zeros([3, 6]), out_agent_dim=None)"),
        (Claims(X[0], centralized=False), "Claims(torch.zeros([3, 6]), centralized=False)"),
        (Claims(X[0], select=lambda y: y), "Claims(torch.zeros([3, 6]), select=...)"),
    ],
)
def test_python_that_makes_claims_again(claims: Claims, code: str) -> None:
    assert repr(claims) == code
