"""Calls that take turns: races are found each time, and sound modules pass."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl.laws._compare import Broken
from functional_marl.laws._restore import Snapshot, kept
from functional_marl.laws._turns import agree_in_turns
from tests.laws.check_cases import ours, torchrl_mlp

X, Y = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(0))
Call = Callable[[], Any]


def two(function: Callable[[Any], Any], one: Any = X, other: Any = Y) -> list[Call]:
    def without_gradients(x: Any) -> Any:
        with torch.no_grad():
            return function(x)

    return [partial(without_gradients, one), partial(without_gradients, other)]


class Scratch(nn.Module):
    """Parameters of the running call are put into the module, as torchrl 0.14 does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gain = nn.Identity(), 0.0

    def forward(self, gain: float) -> float:
        self.gain = gain
        self.layer(gain)
        return self.gain


def test_a_value_that_a_module_keeps_during_a_call_is_found() -> None:
    module = Scratch()
    for seed in range(3):
        with pytest.raises(Broken, match=r"thread 0: expected 1\.0, got 2\.0"):
            agree_in_turns([lambda: module(1.0), lambda: module(2.0)], seed=seed)
    with pytest.raises(Broken, match=r"thread 0: expected 1\.0, got 2\.0"):
        agree_in_turns([lambda: module(1.0), lambda: module(2.0)], [1.0, 2.0])


class Hurried(nn.Module):
    """The same between two statements, without a call of any function between them."""

    last = 0.0

    def forward(self, gain: float) -> float:
        self.last = gain
        return self.last


def test_a_race_between_two_statements_is_found() -> None:
    module = nn.Sequential(nn.Identity(), nn.Identity(), Hurried(), nn.Identity())
    with pytest.raises(Broken, match=r"thread 0: expected 1\.0, got 2\.0"):
        agree_in_turns([lambda: module(1.0), lambda: module(2.0)])


_scratch: dict[str, Any] = {}


def one_scratch(net: fm.Network, params: Any, x: Tensor) -> Tensor:
    """The parameters are stored in one place for all threads."""
    _scratch["params"] = params
    return fm.apply(net, _scratch["params"], x)


def a_table(net: fm.Network, params: Any, x: Tensor) -> Tensor:
    """A call writes its parameters into a table and reads them back, key by key."""
    for name, leaf in params.items():
        _scratch[name] = leaf
    return fm.apply(net, {name: _scratch[name] for name in params}, x)


@pytest.mark.parametrize("strategy", ["loop", "vmap", "plan"])
def test_networks_are_sound_and_a_scratch_is_not(strategy: Any) -> None:
    net = fm.network(fm.nets.mlp(6, 8, 2), 3, sharing="independent", strategy=strategy)
    calls = {
        apply: [partial(apply, net, fm.init_params(net, seed), X, **how) for seed in range(2)]
        for apply, how in ((fm.apply, {}), (one_scratch, {}), (a_table, {}))
    }
    agree_in_turns(calls[fm.apply])
    for seed in range(3):
        for wrong in (one_scratch, a_table):
            with pytest.raises(Broken, match=r"thread 0: expected -?\d\.\d+ at \[0, 0, 0\], got"):
                agree_in_turns(calls[wrong], seed=seed)


@pytest.mark.parametrize("shared", [False, True])
def test_torchrl_swaps_parameters_into_a_template(shared: bool) -> None:
    module = torchrl_mlp(share_params=shared).eval()
    before = Snapshot(module)
    for seed in range(3):
        with pytest.raises(Broken, match=r"thread \d: expected outputs as alone, got "):
            agree_in_turns(two(module), seed=seed)
        before.restore()
    before.restore()
    assert before.changed() == []
    agree_in_turns(two(ours(share_params=shared).eval()))


def test_modules_without_memory_are_sound() -> None:
    agree_in_turns(two(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))))
    agree_in_turns(two(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(3), nn.GRU(5, 2)).eval()))


class Locked(nn.Module):
    """The scratch behind a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = Scratch(), threading.Lock()

    def forward(self, gain: float) -> float:
        with self.lock:
            return self.inner(gain)


def test_a_lock_makes_it_sound_and_costs_seconds_only() -> None:
    module, start = Locked(), time.monotonic()
    agree_in_turns([lambda: module(1.0), lambda: module(2.0)])
    assert time.monotonic() - start < 30


class Draws(nn.Module):
    """Seeds a generator of its own and samples from it."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.rng.manual_seed(0)
        return x + torch.rand(x.shape, generator=self.rng)


def test_a_generator_for_two_threads_is_found() -> None:
    with pytest.raises(Broken, match="thread 1: expected"):
        agree_in_turns(two(Draws()))


class Busy(nn.Module):
    """Refuses a call that comes during another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.busy = nn.Identity(), False

    def forward(self, x: Any) -> Any:
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            return self.inner(x)
        finally:
            self.busy = False


def test_an_exception_in_one_thread_is_a_difference() -> None:
    module = Busy()
    with pytest.raises(Broken, match="thread 1: expected outputs as alone, got RuntimeError: busy"):
        agree_in_turns([lambda: module(1.0), lambda: module(2.0)])


def test_an_exception_of_a_call_alone_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        agree_in_turns([lambda: 1, lambda: 1 // 0])


def test_what_is_wanted_is_what_each_gives_alone() -> None:
    with pytest.raises(Broken, match="thread 1, alone: expected 3, got 2"):
        agree_in_turns([lambda: 1, lambda: 2], [1, 3])
    with pytest.raises(ValueError, match="points: expected 1 or more, got 0"):
        agree_in_turns([lambda: 1, lambda: 2], points=0)


def test_as_many_pairs_of_calls_as_points() -> None:
    made: list[int] = []
    layers = nn.Sequential(*[nn.Identity() for _ in range(100)])

    def call(x: int) -> int:
        made.append(x)
        return layers(x)

    for points in (1, 7, 48):
        made.clear()
        agree_in_turns([lambda: call(1), lambda: call(2)], points=points)
        assert len(made) == 2 * (points + 2)  # alone twice


_context: ContextVar[str] = ContextVar("context", default="nothing")


def test_threads_have_the_callers_context_and_its_trace_function_is_left_alone() -> None:
    traces: list[Any] = []
    _context.set("the caller's")
    was, interval = sys.gettrace(), sys.getswitchinterval()

    def call() -> str:
        traces.append(sys.gettrace())
        return _context.get()

    agree_in_turns([call, call], ["the caller's", "the caller's"])
    assert None not in traces
    assert (sys.gettrace(), sys.getswitchinterval()) == (was, interval)
    assert nn.modules.module._global_forward_pre_hooks == {}


def test_threads_of_a_debugger_are_traced_as_before() -> None:
    def other(frame: Any, event: str, arg: Any) -> None:
        return None

    found: list[Any] = []
    run = threading.Thread.run
    was = threading.gettrace()
    threading.settrace(other)  # what a debugger does
    try:
        agree_in_turns([lambda: 1, lambda: 1])
        thread = threading.Thread(target=lambda: found.append(sys.gettrace()))
        thread.start()
        thread.join()
    finally:
        threading.settrace(was)  # pyright: ignore[reportArgumentType]
    assert found == [other]
    assert threading.Thread.run is run


def test_ctrl_c_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    module = nn.Sequential(nn.Identity(), nn.Identity())
    made: list[int] = []

    def call() -> int:
        made.append(1)
        module(1)
        if len(made) >= 7 and 2 not in made:  # in a pair of calls, in a thread
            made.append(2)
            os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it
        return 1

    with pytest.raises(KeyboardInterrupt):
        agree_in_turns([call, call])
    assert threading.active_count() == before


def test_a_broken_module_is_mended_by_kept() -> None:
    module = Scratch()
    with pytest.raises(Broken), kept(module):
        agree_in_turns([lambda: module(1.0), lambda: module(2.0)])
    assert module.gain == 0.0
