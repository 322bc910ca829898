"""Calls from many threads, beside a thread that compiles, and from inside a module are correct."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _python_dispatch as flags

import functional_marl as fm

THREADS, CALLS = 8, 200


@pytest.fixture(autouse=True)
def impatient_interpreter() -> Iterator[None]:
    """Threads switch every 0.1 ms instead of every 5 ms: several times per call."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


def in_threads(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """``[work(0), work(1), ...]``, each in its own thread, started together."""
    start = threading.Barrier(threads)

    def run(thread: int) -> Any:
        start.wait(60)
        return work(thread)

    with ThreadPoolExecutor(threads) as pool:
        return [future.result(120) for future in [pool.submit(run, thread) for thread in range(threads)]]


class Residual(nn.Module):
    """Has no plan: its calls use a copy of the module per thread."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 8), nn.Linear(8, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.drop(torch.tanh(self.a(x))))


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(("build", "strategy"), [(Residual, "loop"), (Residual, "vmap"), (mixed, "plan")])
def test_no_wrong_result(build: Callable[[], nn.Module], strategy: Any, keyed: bool) -> None:
    net = fm.network(build, 2, sharing=[1, 0], strategy=strategy)
    x = torch.linspace(-1, 1, 16).view(2, 2, 4)
    many = [fm.init_params(net, seed) for seed in range(2 * THREADS)]
    call = lambda k: fm.apply(net, many[k], x, key=k, train=True) if keyed else fm.apply(net, many[k], x)
    expected = [call(k) for k in range(len(many))]
    assert all(not torch.equal(expected[0], other) for other in expected[1:])

    def work(thread: int) -> int:
        mine = [(thread + 3 * c) % len(many) for c in range(CALLS)]
        return sum(not torch.equal(call(k), expected[k]) for k in mine)

    state = torch.get_rng_state()
    assert in_threads(work) == [0] * THREADS
    if keyed:
        assert torch.equal(torch.get_rng_state(), state)


# --- two threads inside one forward at the same time ---------------------------------------------------

meeting: list[threading.Barrier] = []


class Meeting(nn.Module):
    """Waits between its two layers, and at its end, until another thread is there too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for barrier in meeting:
            barrier.wait(60)
        h = self.b(h)
        for barrier in meeting:
            barrier.wait(60)
        return h


def meet(call: Callable[[int], Tensor]) -> list[bool]:
    """Whether each of two threads has the same result as alone, if both are inside the module at once."""
    alone = [call(k) for k in range(2)]
    meeting.append(threading.Barrier(2))
    try:
        together = in_threads(call, 2)
    finally:
        meeting.clear()
    return [torch.equal(a, b) for a, b in zip(alone, together, strict=True)]


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_two_threads_inside_one_forward(strategy: Any) -> None:
    net = fm.network(Meeting, 2, strategy=strategy)
    many = [fm.init_params(net, seed) for seed in range(2)]
    x = torch.ones(3, 2, 4)
    assert meet(lambda k: fm.apply(net, many[k], x)) == [True, True]


def test_a_shared_template_would_be_caught() -> None:
    """``functional_call`` on one module from two threads mixes their parameters: the test above can fail."""
    module = Meeting()
    many = [{k: torch.full_like(p, 1.0 + t) for k, p in module.named_parameters()} for t in range(2)]
    assert meet(lambda k: functional_call(module, many[k], torch.ones(3, 4))) != [True, True]


# --- initialization --------------------------------------------------------------------------------------


def test_init_in_threads_is_init_alone() -> None:
    net = fm.network(mixed, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = [fm.init_params(net, seed) for seed in range(THREADS)]
        state = torch.get_rng_state()

        def work(seed: int) -> bool:
            again = [fm.init_params(net, seed) for _ in range(20)]
            return all(torch.equal(params[k], alone[seed][k]) for params in again for k in params)

        assert in_threads(work) == [True] * THREADS
        assert torch.equal(torch.get_rng_state(), state)


def test_init_while_others_use_the_global_generator() -> None:
    """Keyed initialization neither reads nor changes the generator that other threads use."""
    net = fm.network(Residual, 3)
    alone = fm.init_params(net, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampled = torch.rand(1000)
        torch.manual_seed(0)

        def work(thread: int) -> Any:
            if thread == 0:
                return torch.stack([torch.rand(()) for _ in range(1000)])
            return [fm.init_params(net, 0) for _ in range(30)]

        found = in_threads(work, 4)
    assert torch.equal(found[0], sampled)
    assert all(torch.equal(params[k], alone[k]) for many in found[1:] for params in many for k in alone)


# --- compiling -------------------------------------------------------------------------------------------


class Counting:
    """A backend that counts graphs: none means that torch.compile ran everything eagerly without a warning."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def test_one_thread_compiles_while_others_call() -> None:
    net = fm.network(Residual, 2, sharing=[1, 0])
    x = torch.linspace(-1, 1, 16).view(2, 2, 4)
    many = [fm.init_params(net, seed) for seed in range(4)]
    keyed = lambda k: fm.apply(net, many[k], x, key=k, train=True)
    plain = lambda k: fm.apply(net, many[k], x)
    expected = [(call, [call(k) for k in range(4)]) for call in (keyed, plain)]
    done = threading.Event()
    backend = Counting()

    def compiling() -> tuple[int, int]:
        try:
            torch.compiler.reset()
            found = torch.compile(keyed, fullgraph=True, backend=backend)(1)
        finally:
            done.set()
        return int(not torch.allclose(found, expected[0][1][1], atol=1e-6)), 1

    def work(thread: int) -> tuple[int, int]:
        if thread == 0:
            return compiling()
        wrong = calls = 0
        while not done.is_set() or not calls:
            for call, wanted in expected:
                wrong += not torch.equal(call(calls % 4), wanted[calls % 4])
            calls += 1
            time.sleep(1e-3)  # so that the compiler gets time
        return wrong, calls

    found = in_threads(work, 3)
    assert [wrong for wrong, _ in found] == [0] * 3
    assert all(calls > 0 for _, calls in found)
    assert backend.graphs == 1


def test_keys_in_threads_do_not_turn_the_compiler_off() -> None:
    """A dispatch mode that is entered and left in threads may leave flags set that make dynamo skip everything."""
    net = fm.network(Residual, 2)
    params, x = fm.init_params(net, 0), torch.ones(2, 4)

    def work(thread: int) -> None:
        for k in range(50):
            fm.apply(net, params, x, key=k, train=True)
            fm.init_params(net, k)

    in_threads(work)
    assert not flags._is_in_torch_dispatch_mode
    assert not flags._is_in_non_infra_torch_dispatch_mode
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch._C._len_torch_function_stack() == 0
    torch.compiler.reset()
    backend = Counting()
    torch.compile(lambda x: fm.apply(net, params, x), fullgraph=True, backend=backend)(x)
    assert backend.graphs == 1


# --- re-entrancy -----------------------------------------------------------------------------------------

nested: list[tuple[fm.Network, dict[str, Tensor], dict[str, Any]]] = []


class Recursive(nn.Module):
    """Calls ``fm.apply`` on the network that it is part of, with other parameters, between its layers."""

    def __init__(self, recurrent: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.gru = nn.GRU(4, 4, batch_first=True) if recurrent else None

    def forward(self, x: Tensor, depth: int) -> Tensor:
        h = self.drop(torch.tanh(self.a(x)))
        if depth:
            net, params, options = nested[0]
            h = h + fm.apply(net, params, torch.stack([x, -x]), depth - 1, **options).sum(0)
        if self.gru is not None:
            h, _ = self.gru(h)
        return self.b(h)


def recursive_by_hand(net: fm.Network, params: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """The same without dropout, with one module per agent and level."""
    rows: list[Tensor] = []
    for i, row in enumerate(x):
        module: Any = fm.agent_module(net, params, i)
        h = torch.tanh(module.a(row))
        if depth:
            h = h + recursive_by_hand(net, nested[0][1], torch.stack([row, -row]), depth - 1).sum(0)
        if module.gru is not None:
            h, _ = module.gru(h)
        rows.append(module.b(h))
    return torch.stack(rows)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_a_module_may_apply_its_own_network(strategy: Any, recurrent: bool) -> None:
    net = fm.network(lambda: Recursive(recurrent), 2, agent_dim=0, strategy=strategy)
    params, other = fm.init_params(net, 0), fm.init_params(net, 1)
    x = torch.linspace(-1, 1, 24).view(2, 3, 4)
    nested.append((net, other, {}))
    try:
        wanted = recursive_by_hand(net, params, x, 2)
        for _ in range(2):
            torch.testing.assert_close(fm.apply(net, params, x, 2), wanted)
    finally:
        nested.clear()


def test_keys_nest() -> None:
    """An inner call with its own key has the same masks as outside; then the outer key continues."""
    net = fm.network(Recursive, 2, agent_dim=0, strategy="loop")
    params, other = fm.init_params(net, 0), fm.init_params(net, 1)
    x = torch.linspace(-1, 1, 24).view(2, 3, 4)
    nested.append((net, other, {"key": fm.key(7), "train": True}))
    try:
        found = fm.apply(net, params, x, 1, key=3, train=True)
        again = fm.apply(net, params, x, 1, key=3, train=True)
        inner = [fm.apply(net, other, torch.stack([row, -row]), 0, key=7, train=True).sum(0) for row in x]
    finally:
        nested.clear()
    assert torch.equal(found, again)
    for i, row in enumerate(x):
        module: Any = fm.agent_module(net, params, i)
        drop = fm.random.bernoulli(fm.key(3), 0.5, (3, 4), 1, i)
        h = torch.where(drop, 0.0, torch.tanh(module.a(row)) / 0.5)
        torch.testing.assert_close(found[i], module.b(h + inner[i]))
