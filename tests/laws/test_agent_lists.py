"""Modules of lists with one entry an agent."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import CheckError, check, infer_sharing
from functional_marl.laws._agent_lists import listed_by_agent


class Actors(nn.Module):
    """One network an agent, called on a list of observations: ``[[B, 6], [B, 4]] -> [[B, 2], [B, 2]]``."""

    def __init__(self, widths: tuple[int, ...] = (6, 4), swap: bool = False) -> None:
        super().__init__()
        self.actors = nn.ModuleList(nn.Linear(width, 2) for width in widths)
        self.swap = swap

    def forward(self, observations: list[Tensor]) -> list[Tensor]:
        out = [actor(x) for actor, x in zip(self.actors, observations, strict=True)]
        return out[::-1] if self.swap else out


class WithValues(Actors):
    """Lists in a tuple: actions and values."""

    def forward(self, observations: list[Tensor]) -> Any:
        out = super().forward(observations)
        return out, [x.sum(-1, keepdim=True) for x in out]


class InATuple(Actors):
    """A tuple with one entry an agent."""

    def forward(self, observations: list[Tensor]) -> Any:
        return tuple(super().forward(observations))


X = [torch.zeros(4, 6), torch.zeros(4, 4)]


@pytest.mark.parametrize("build", [Actors, WithValues, InATuple])
def test_lists_of_agents_are_checked(build: type[Actors]) -> None:
    report = check(build, agents=2, sharing="independent", example=X, examples=4)
    assert report, report
    assert report["local_jacobian"].cases
    assert infer_sharing(build(), agents=2, example=X).sharing == "independent"


def test_a_list_in_the_wrong_order_is_wrong() -> None:
    report = check(lambda: Actors((6, 6), swap=True), agents=2, sharing="independent", example=[X[0], X[0]], examples=4)
    assert report["local_jacobian"].verdict == "violated"


def test_calls_are_those_of_the_module_and_copies_are_copies() -> None:
    inner = Actors()
    module, names, example = listed_by_agent(inner, 2, X)
    given = {name: torch.randn_like(x) for name, x in example.items()}
    found = module(given)
    assert tuple(found) == names
    for name, want in zip(names, inner([*given.values()]), strict=True):
        assert torch.equal(found[name], want)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in inner.named_parameters()]
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for leaf in twin.parameters():
            leaf.zero_()
    assert not any(bool(out.any()) for out in twin(given).values())
    assert all(bool(leaf.any()) for leaf in inner.parameters())


def test_an_example_without_a_list_is_refused() -> None:
    with pytest.raises(CheckError, match="expected a list with one entry for each of 2 agents"):
        check(Actors, agents=2, example=torch.zeros(4, 2, 6))


def test_functions_draw_lists() -> None:
    def draw(generator: torch.Generator) -> list[Tensor]:
        return [torch.rand(4, 6, generator=generator), torch.rand(4, 4, generator=generator)]

    assert check(Actors, agents=2, sharing="independent", example=draw, examples=2)
