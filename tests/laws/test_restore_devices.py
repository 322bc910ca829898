"""Seeds of what is not there: an accelerator, an old NumPy, no NumPy; and what attention is evaluated in."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from functional_marl.laws import _restore
from functional_marl.laws._restore import Snapshot, differentiable_attention, kept, seeded


class Device:
    """The generators of two devices of an accelerator, each a number."""

    def __init__(self) -> None:
        self.states = [10, 11]
        self.seeds: list[int] = []

    def get_rng_state(self, index: int) -> int:
        return self.states[index]

    def manual_seed_all(self, seed: int) -> None:
        self.seeds.append(seed)

    def manual_seed(self, seed: int) -> None:
        raise AssertionError("one device would be seeded")


class Metal:
    """One device, whose functions take no index and seed all there is."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def get_rng_state(self) -> int:
        return 7

    def manual_seed(self, seed: int) -> None:
        self.seeds.append(seed)


def there_is(monkeypatch: pytest.MonkeyPatch, kind: str, count: int, module: Any) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "get_device_module", lambda device: {kind: module}[torch.device(device).type])


def test_states_of_all_devices_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    there_is(monkeypatch, "cuda", 2, Device())
    states: Any = _restore._torch_states()
    assert states.pop(torch.device("cpu")).equal(torch.get_rng_state())
    assert states == {torch.device("cuda", 0): 10, torch.device("cuda", 1): 11}


def test_metal_has_one_device_and_takes_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    there_is(monkeypatch, "mps", 1, Metal())
    states: Any = _restore._torch_states()
    assert states[torch.device("mps", 0)] == 7


def test_without_an_accelerator_there_is_the_state_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert list(_restore._torch_states()) == [torch.device("cpu")]


@pytest.mark.parametrize(("kind", "module"), [("cuda", Device()), ("mps", Metal())])
def test_all_devices_are_seeded_once(monkeypatch: pytest.MonkeyPatch, kind: str, module: Any) -> None:
    there_is(monkeypatch, kind, 2, module)
    states: Any = {torch.device("cpu"): None, torch.device(kind, 0): None, torch.device(kind, 1): None}
    with torch.random.fork_rng(devices=[]):
        _restore._seed_torch(states, 5)
        assert torch.initial_seed() == 5
    assert module.seeds == [5]


def test_states_go_back_to_where_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(_restore, "set_rng_states", given.append)
    before = torch.get_rng_state()
    with seeded(3):
        torch.rand(2)
    assert [torch.equal(states[torch.device("cpu")], before) for states in given] == [True]
    torch.set_rng_state(before)


# --- NumPy --------------------------------------------------------------------------------------------------


class OldRandom:
    """The functions of ``numpy.random`` before 1.24."""

    def __init__(self) -> None:
        self.state: Any = "first"

    def get_state(self, legacy: bool) -> Any:
        assert legacy is False
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state

    def seed(self, seed: int) -> None:
        self.state = seed


def test_an_old_numpy_is_seeded_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = OldRandom()
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(random=rng))  # pyright: ignore
    restore = _restore._seed_numpy(2**32 + 3)
    assert rng.state == 3
    restore()
    assert rng.state == "first"


@pytest.mark.parametrize("numpy", [None, SimpleNamespace()])
def test_without_numpy_there_is_nothing_to_seed(monkeypatch: pytest.MonkeyPatch, numpy: Any) -> None:
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    was = random.getstate()
    with seeded(3):
        assert random.random() == random.Random(3).random()
    assert random.getstate() == was


def test_large_seeds_are_those_of_numpys_range() -> None:
    with seeded(2**32 + 3):
        assert np.random.random() == np.random.RandomState(3).random_sample()
    with seeded(2**32 - 1):
        assert np.random.random() == np.random.RandomState(2**32 - 1).random_sample()


def test_generators_that_are_put_aside_are_used_again() -> None:
    with seeded(1):
        pass
    spare = len(_restore._spare)
    assert spare > 0
    with seeded(1):
        assert len(_restore._spare) == spare - 1
        with seeded(2):
            np.random.random()
        assert np.random.random() == np.random.RandomState(1).random_sample()
    assert len(_restore._spare) == max(spare, 2)


def test_the_second_number_of_a_pair_comes_after_the_block() -> None:
    np.random.seed(4)
    pairs = np.random.RandomState(4)
    assert np.random.normal() == pairs.normal()
    with seeded(1):
        np.random.normal()
    assert np.random.normal() == pairs.normal()


def test_no_second_number_of_the_block_is_left_behind() -> None:
    np.random.seed(4)
    plain = np.random.RandomState(4)
    with seeded(1):
        np.random.normal()
    assert np.random.normal() == plain.normal()


def test_a_block_does_not_begin_with_the_second_number_of_before() -> None:
    np.random.seed(4)
    np.random.normal()
    with seeded(1):
        assert np.random.normal() == np.random.RandomState(1).normal()


@pytest.mark.parametrize("others", [0, 5])
def test_others_have_a_seed_of_their_own(others: int) -> None:
    with seeded(3, others):
        assert random.random() == random.Random(others).random()
        assert np.random.random() == np.random.RandomState(others).random_sample()
        assert torch.initial_seed() == 3


# --- snapshots and attention ----------------------------------------------------------------------------------


def test_nothing_is_recorded_while_a_snapshot_is_put_back() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.requires_grad_()
    before = Snapshot(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    before.restore()
    assert layer.weight.is_leaf
    assert torch.is_grad_enabled()


def test_changes_are_sorted_and_named_once() -> None:
    layer: Any = nn.BatchNorm1d(2)
    layer.last = layer.first = 0
    before = Snapshot(layer)
    layer.last = layer.first = 1
    layer.train()(torch.randn(4, 2))
    found = before.changed()
    assert found == sorted(set(found))
    assert {"attribute first", "attribute last", "buffer running_mean"} <= set(found)


def test_a_snapshot_holds_others() -> None:
    generator, tensor = torch.Generator().manual_seed(1), torch.zeros(2)
    with kept(nn.Identity(), generator, tensor) as before:
        torch.rand(1, generator=generator)
        tensor.add_(1)
        assert len(before.changed()) == 2
    assert torch.equal(tensor, torch.zeros(2))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        lambda: nn.ModuleList([nn.Identity(), nn.TransformerEncoderLayer(4, 2, 8)]),
    ],
)
def test_functions_compute_what_they_computed(build: Any) -> None:
    x = torch.randn(3, 4)
    wanted = torch.softmax(x, dim=-1), torch.nn.functional.pad(x, (0, 1), value=2.0), x.sum()
    with differentiable_attention(build()):
        found = torch.softmax(x, dim=-1), torch.nn.functional.pad(x, (0, 1), value=2.0), x.sum()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
