"""Buffers that training writes: which agents write or read which of their elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import Claims
from functional_marl.laws._infer_buffers import _differs, shared_buffers
from functional_marl.laws._module_under_test import ModuleUnderTest, module_of

X = torch.zeros(4, 3, 6)


class Counting(nn.Module):
    """``write(buffer, x)`` in training, ``read(x, buffer)`` always: ``[B, 3, 6] -> [B, 3, 6]``."""

    def __init__(
        self,
        buffer: Tensor,
        write: Callable[[Tensor, Tensor], Tensor],
        read: Callable[[Tensor, Tensor], Tensor] = lambda x, buffer: x,
    ) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))
        self.register_buffer("last", buffer)
        self.register_buffer("other", torch.zeros(3))
        self.write, self.read = write, read

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last: Any = self.write(self.last, x.detach())
        return self.gain * self.read(x, self.last)


def found(module: nn.Module, **claims: Any) -> dict[str, Any]:
    host = ModuleUnderTest(module_of(module), Claims(X, n_agents=3, **claims), None)
    leaves = shared_buffers(host)
    assert all(leaf.is_buffer for leaf in leaves)
    return {leaf.name: dict(leaf.sets) for leaf in leaves}


def by_agent(last: Tensor, x: Tensor) -> Tensor:
    return x.mean((0, 2))


def of_all(last: Tensor, x: Tensor) -> Tensor:
    return x.mean((0, 1))


def test_one_place_an_agent() -> None:
    alone = {(0,): 1, (1,): 1, (2,): 1}
    assert found(Counting(torch.zeros(3), by_agent)) == {"last": alone}
    read = Counting(torch.zeros(3), by_agent, lambda x, last: x + last[:, None])
    assert found(read) == {"last": alone}


def test_all_write() -> None:
    assert found(Counting(torch.zeros(6), of_all)) == {"last": {(0, 1, 2): 6}}
    assert found(Counting(torch.zeros(6), of_all, lambda x, last: x + last)) == {"last": {(0, 1, 2): 6}}


def test_one_writes_and_others_read() -> None:
    def first(last: Tensor, x: Tensor) -> Tensor:
        return x[:, 0].mean(0)

    assert found(Counting(torch.zeros(6), first)) == {"last": {(0,): 6}}
    assert found(Counting(torch.zeros(6), first, lambda x, last: x + last)) == {"last": {(0, 1, 2): 6}}

    def second_reads(x: Tensor, last: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 1] + last, x[:, 2]], 1)

    assert found(Counting(torch.zeros(6), first, second_reads)) == {"last": {(0, 1): 6}}
    assert found(Counting(torch.full((6,), -1e6), first, second_reads)) == {"last": {(0, 1): 6}}


def test_places_that_one_writes_and_another_reads() -> None:
    read = Counting(torch.zeros(3), by_agent, lambda x, last: x + last.roll(1)[:, None])
    assert found(read) == {"last": {(0, 1): 1, (0, 2): 1, (1, 2): 1}}


def test_what_no_input_changes_is_not_written() -> None:
    assert found(Counting(torch.zeros(3), lambda last, x: last + 1)) == {}
    half = Counting(torch.zeros(2), lambda last, x: torch.stack([last[0] + 1, x[:, 1].mean()]))
    assert found(half) == {"last": {(1,): 1}}
    reads = Counting(torch.zeros(2), half.write, lambda x, last: x + last[0])
    assert found(reads) == {"last": {(1,): 1}}


def test_counts_are_written_and_not_read() -> None:
    def positive(last: Tensor, x: Tensor) -> Tensor:
        return (1000 * x[:, 0].abs().sum()).long()[None]

    module = Counting(torch.zeros(1, dtype=torch.int64), positive, lambda x, last: x + last)
    assert found(module) == {"last": {(0,): 1}}


def test_nan_equals_itself() -> None:
    def writes(last: Tensor, x: Tensor) -> Tensor:
        return torch.stack([torch.tensor(float("nan")), x[:, 1].mean()])

    assert found(Counting(torch.zeros(2), writes)) == {"last": {(1,): 1}}
    one, other = torch.tensor([1.0, 1.0, float("nan"), 1.0]), torch.tensor([1.0, 2.0, float("nan"), float("nan")])
    assert _differs(one, other).tolist() == [False, True, False, True]
    assert _differs(other, one).tolist() == [False, True, False, True]


def test_outputs_that_are_nan_show_no_reading() -> None:
    def nan(x: Tensor, last: Tensor) -> Tensor:
        return torch.where(torch.arange(3)[:, None] == 2, float("nan"), x)

    assert found(Counting(torch.zeros(6), lambda last, x: x[:, 0].mean(0), nan)) == {"last": {(0,): 6}}


def test_agents_that_hear_others_show_nothing() -> None:
    assert found(Counting(torch.zeros(6), of_all), communication=True) == {}
    assert found(Counting(torch.zeros(6), of_all), communication=[[1], [], []]) == {}
    assert found(Counting(torch.zeros(6), of_all), communication=[[], [], []]) == {"last": {(0, 1, 2): 6}}


def test_a_module_that_does_not_train() -> None:
    def refuse(last: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("no training")

    assert found(Counting(torch.zeros(6), refuse)) == {}


def test_a_buffer_that_changes_its_shape_with_inputs() -> None:
    def of_some_length(last: Tensor, x: Tensor) -> Tensor:
        return torch.zeros(1 + int(x[0, 0, 0].abs() * 1e6) % 7)

    assert found(Counting(torch.zeros(1), of_some_length)) == {}


@pytest.mark.parametrize("module", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)])
def test_a_batch_norm_over_agents_has_a_place_for_each(module: nn.Module) -> None:
    sets = found(module)
    assert sets == {name: {(0,): 1, (1,): 1, (2,): 1} for name in ("running_mean", "running_var")}
