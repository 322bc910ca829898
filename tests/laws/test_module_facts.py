"""What calls of a module show: whether it draws, repeats itself, gives numbers, trains otherwise, mixes rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import Claims, module_subject
from functional_marl.laws._module_facts import (
    draws_here,
    fact,
    gives_numbers,
    mixes_rows,
    repeats,
    samples,
    trains_otherwise,
)
from functional_marl.laws._module_under_test import ModuleUnderTest

X = torch.zeros(4, 3, 6)
NAN = float("nan")


class Acts(nn.Module):
    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.gain, self.act = nn.Parameter(torch.ones(6)), act
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x * self.gain)


def host(act: Callable[[Any, Tensor], Tensor], example: Tensor = X, **how: Any) -> ModuleUnderTest:
    return ModuleUnderTest(Acts(act), Claims(example, n_agents=3, **how))


def quiet(m: Any, x: Tensor) -> Tensor:
    return x


def noisy(m: Any, x: Tensor) -> Tensor:
    return x + torch.rand(())


def noisy_in_training(m: Any, x: Tensor) -> Tensor:
    return x + torch.rand(()) if m.training else x


def draws_unseen(m: Any, x: Tensor) -> Tensor:
    return x + 0 * torch.rand(())


def seldom(m: Any, x: Tensor) -> Tensor:
    return x + (torch.rand(()) < 0.2).to(x)


def from_elsewhere(m: Any, x: Tensor) -> Tensor:
    return x + next(COUNT)


COUNT = iter(range(10**6))


def raises_in_training(m: Any, x: Tensor) -> Tensor:
    if m.training:
        raise RuntimeError("no training")
    return x


def raises_at_a_draw(m: Any, x: Tensor) -> Tensor:
    if m.training:
        raise RuntimeError("vmap: called random operation while in randomness error mode")
    return x


@pytest.mark.parametrize(
    ("act", "drawn", "again"),
    [
        (quiet, (False, False), (True, True)),
        (noisy, (True, True), (False, False)),
        (noisy_in_training, (False, True), (True, False)),
        (draws_unseen, (False, False), (True, True)),
        (seldom, (True, True), (False, False)),
        (raises_in_training, (False, False), (True, True)),
        (raises_at_a_draw, (False, True), (True, False)),
    ],
)
def test_draws_in_evaluation_and_training(act: Any, drawn: tuple[bool, bool], again: tuple[bool, bool]) -> None:
    assert tuple(samples(host(act), train) for train in (False, True)) == drawn
    assert tuple(repeats(host(act), train) for train in (False, True)) == again


def test_what_nobody_seeds_does_not_repeat() -> None:
    assert not repeats(host(from_elsewhere), False)
    assert not repeats(host(from_elsewhere), True)


def test_facts_are_found_once_a_mode() -> None:
    module, asked = host(quiet), list[bool]()
    for train in (False, True, False, True):
        assert fact(module, "some", train, lambda train=train: asked.append(train) is None and train) is train
    assert asked == [False, True]
    fact(module, "other", False, lambda: asked.append(False) is None)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("act", "numbers"),
    [
        (quiet, (True, True)),
        (lambda m, x: x * NAN, (False, False)),
        (lambda m, x: torch.where(torch.arange(3)[:, None] == 1, NAN, x), (False, False)),
        (lambda m, x: x * NAN if m.training else x, (True, False)),
        (lambda m, x: x / 0 * 1, (True, True)),
        (lambda m, x: (x > 0).long(), (True, True)),
        (raises_in_training, (True, True)),
    ],
)
def test_numbers(act: Any, numbers: tuple[bool, bool]) -> None:
    assert tuple(gives_numbers(host(act), train) for train in (False, True)) == numbers


def writes(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.last.copy_(x.detach().mean((0, 2)))
    return x


def counts(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.count.add_(1)
    return x


def registers(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.register_buffer("more", torch.zeros(1))
    return x


def writes_nan(m: Any, x: Tensor) -> Tensor:
    m.last.fill_(NAN)
    return x * NAN


@pytest.mark.parametrize(
    ("act", "otherwise"),
    [
        (quiet, False),
        (lambda m, x: 2 * x if m.training else x, True),
        (noisy_in_training, True),
        (lambda m, x: x + 0 * torch.rand(()) if m.training else x, True),
        (writes, True),
        (counts, True),
        (registers, True),
        (raises_in_training, True),
        (lambda m, x: x * NAN, False),
        (lambda m, x: (x > 0).long(), False),
        (lambda m, x: (x > 0).long() + m.training, True),
    ],
)
def test_training_that_differs(act: Any, otherwise: bool) -> None:
    module = host(act)
    assert trains_otherwise(module) is otherwise
    assert not module.module.get_buffer("last").any()


def centred(m: Any, x: Tensor) -> Tensor:
    return x - x.mean(0)


@pytest.mark.parametrize(
    ("act", "mixes"),
    [
        (quiet, (False, False)),
        (centred, (True, True)),
        (lambda m, x: centred(m, x) if m.training else x, (False, True)),
        (lambda m, x: x + x[:1], (False, False)),  # the first row stays
        (lambda m, x: x + x[1:2], (True, True)),
        (raises_in_training, (False, False)),
    ],
)
def test_rows_that_are_mixed(act: Any, mixes: tuple[bool, bool]) -> None:
    assert tuple(mixes_rows(host(act), train) for train in (False, True)) == mixes


def test_two_rows() -> None:
    assert mixes_rows(host(centred, X[:2]), False)


def test_inputs_without_a_batch_stay() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return x + state

    module = ModuleUnderTest(Adds(), Claims((X, torch.zeros(6)), n_agents=3, agent_dim=(1, None)))
    assert not mixes_rows(module, False)


@pytest.mark.parametrize(
    ("act", "draws"),
    [(quiet, False), (noisy, True), (draws_unseen, False), (seldom, True), (raises_in_training, False)],
)
@pytest.mark.parametrize("train", [False, True])
def test_draws_of_one_case(act: Any, draws: bool, train: bool) -> None:
    case = module_subject(Acts(act), Claims(X, n_agents=3), agents=(0, 1), train=train)
    assert draws_here(case) is draws


def test_a_draw_that_raises_is_a_draw() -> None:
    assert draws_here(module_subject(Acts(raises_at_a_draw), Claims(X, n_agents=3), agents=(0, 1), train=True))


def test_a_draw_that_shows_for_the_agents_in_another_order() -> None:
    def second_is_larger(m: Any, x: Tensor) -> Tensor:
        return x + torch.rand(()) * (x[0, 1, 0] > x[0, 0, 0])

    for agents in ((0, 1), (1, 0)):
        case = module_subject(Acts(second_is_larger), Claims(X, n_agents=3), agents=agents, seed=1)
        assert draws_here(case)
