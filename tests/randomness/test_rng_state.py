"""The states of torch's generators are saved and restored on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from functional_marl._randomness import rng_state
from functional_marl._randomness.rng_state import GlobalGenerators, rng_states, same_states, set_rng_states


def test_generators_of_all_devices_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake device that has a generator: the test needs no other hardware."""

    class Device:
        state = torch.tensor(5)

        def get_rng_state(self, device: torch.device) -> Tensor:
            return self.state

        def set_rng_state(self, state: Tensor, device: torch.device) -> None:
            self.state = state

    fake, meta = Device(), torch.device("meta")
    assert rng_states([torch.empty(2, device=meta)]).keys() == {torch.device("cpu")}
    monkeypatch.setattr(rng_state, "_device_module", lambda _: fake)
    before = rng_states([torch.empty(2, device=meta), 3, torch.empty(2)])
    assert before.keys() == {torch.device("cpu"), meta}
    fake.state = torch.tensor(7)
    assert not same_states(before, rng_states([torch.empty(2, device=meta)]))
    set_rng_states(before)
    assert int(fake.state) == 5
    assert same_states(before, rng_states([torch.empty(2, device=meta)]))


def test_a_device_has_the_generators_of_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, meta, gpu = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
    assert rng_state._device_module(gpu) is torch.cuda
    assert rng_state._device_module(torch.device("mps")) is torch.mps
    assert [rng_state._device_module(d) for d in (meta, cpu, torch.device("vulkan"))] == [None] * 3
    assert rng_state._device_argument(gpu) == (gpu,)
    assert rng_state._device_argument(torch.device("mps")) == ()
    with FakeTensorMode():
        tensors = [torch.empty(2, device=d) for d in (gpu, meta)]
    restored: list[torch.device] = []
    fake = SimpleNamespace(get_rng_state=lambda d: torch.tensor(5), set_rng_state=lambda s, d: restored.append(d))
    monkeypatch.setattr(rng_state, "_device_module", lambda d: {gpu: fake, meta: fake}[d])
    for capturing in (False, True):  # while a CUDA graph is captured, its generator cannot be read
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)  # noqa: B023
        assert rng_states(tensors).keys() == {cpu, gpu, meta}
        assert rng_states(tensors, needed=False).keys() == ({cpu, meta} if capturing else {cpu, gpu, meta})
    set_rng_states(rng_states(tensors))
    assert set(restored) == {gpu, meta}


@pytest.fixture
def own_generators() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        seed = torch.initial_seed()
        yield
        torch.manual_seed(seed)


def _sample() -> None:
    torch.rand(2)


def _seed_again() -> None:
    torch.manual_seed(torch.initial_seed())


@pytest.mark.parametrize(
    ("act", "changed", "reseeded"),
    [
        (lambda: None, False, False),
        (_sample, True, False),
        (lambda: torch.manual_seed(5), True, True),
        (lambda: torch.manual_seed(4), True, True),  # the seed that it had: at its start again
        (lambda: (_sample(), _seed_again()), True, True),
        (lambda: torch.set_rng_state(torch.Generator().manual_seed(9).get_state()), True, True),
    ],
    ids=["nothing", "sample", "other seed", "same seed", "sample and same seed", "state of another seed"],
)
def test_what_happened_to_the_global_generators(
    own_generators: None, act: Callable[[], object], changed: bool, reseeded: bool
) -> None:
    torch.manual_seed(4)
    _sample()
    saved = GlobalGenerators()
    seed, state = torch.initial_seed(), torch.get_rng_state()
    act()
    assert (saved.changed(), saved.reseeded()) == (changed, reseeded)
    saved.restore()
    assert torch.initial_seed() == seed
    assert torch.equal(torch.get_rng_state(), state)
    assert not saved.changed()
    assert not saved.reseeded()


def test_a_generator_at_its_start_was_not_seeded_by_that(own_generators: None) -> None:
    torch.manual_seed(4)
    saved = GlobalGenerators()
    assert not saved.reseeded()
    _sample()
    assert not saved.reseeded()
    _seed_again()  # back at the state of the copy: nothing can tell
    assert not saved.changed()
    assert not saved.reseeded()


def test_restoring_seeds_devices_that_are_not_in_use_yet(own_generators: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    saved = GlobalGenerators()
    seeds: list[int] = []
    seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda value: seeds.append(value) or seed(value))
    saved.restore()
    assert seeds == [4]
