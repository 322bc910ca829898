"""A call restores its module: what a forward puts into containers and plain tensors does not stay."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import FLAT_SHARINGS, N, numbers
from tests.module.modules import CustomForward


class Holds(nn.Module):
    """A linear layer whose output is scaled by what a test does to what the module holds."""

    def __init__(self, change: Callable[[Any, Tensor], Any], held: Callable[[], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.change, self.held = change, held()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.change(self.held, x)


def _append(held: Any, x: Tensor) -> int:
    held.append(x)
    return len(held)


def _nested(held: Any, x: Tensor) -> int:
    held["a"][0].append(1)
    return len(held["a"][0])


def _replace(held: Any, x: Tensor) -> int:
    held[0] += 1
    return held[0]


def _key(held: Any, x: Tensor) -> int:
    held[len(held)] = x
    return len(held)


def _add(held: Any, x: Tensor) -> int:
    held.add(len(held))
    return len(held)


def _count(held: Any, x: Tensor) -> int:
    held.count += 1
    held.log.append(x)
    return held.count + len(held.log)


def _default(held: Any, x: Tensor) -> int:
    held["x"].append(1)
    held["y"] = held.get("y", 0) + 1
    return len(held["x"]) + held["y"]


def _order(held: Any, x: Tensor) -> int:
    held.move_to_end("a")
    return 1 + list(held).index("a")


CONTAINERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "list": (_append, list),
    "deque": (_append, lambda: deque([1, 2], maxlen=5)),
    "full deque": (lambda held, x: (held.append(1 + held[-1]), held[-1])[1], lambda: deque([1, 2], maxlen=2)),
    "items": (_replace, lambda: [1]),
    "dict": (_key, dict),
    "set": (_add, set),
    "nested": (_nested, lambda: {"a": ([],)}),
    "object": (_count, lambda: SimpleNamespace(count=0, log=[])),
    "defaultdict": (_default, lambda: defaultdict(list)),
    "order": (_order, lambda: OrderedDict(a=1, b=2)),
    "module in a list": (
        lambda held, x: setattr(held[0], "calls", getattr(held[0], "calls", 0) + 1) or held[0].calls,
        lambda: [nn.Identity()],
    ),
}


def once(net: fm.Network, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Every agent as a module of its own that is called for the first time."""
    return torch.stack([fm.agent_module(net, params, i)(x[:, i]) for i in range(N)], 1).detach()


@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_what_a_forward_puts_into_a_container_is_forgotten(name: str, strategy: Any) -> None:
    net = fm.network(lambda: Holds(*CONTAINERS[name]), N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    wanted = once(net, params, x)
    for _ in range(4):
        torch.testing.assert_close(fm.apply(net, params, x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("name", ["list", "dict", "items", "set", "full deque"])
def test_compiled_calls_forget_too(name: str, strategy: Any) -> None:
    net = fm.network(lambda: Holds(*CONTAINERS[name]), N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    wanted = once(net, params, x)
    torch._dynamo.reset()
    call = torch.compile(lambda p, x: fm.apply(net, p, x), backend="eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(call(params, x), wanted, rtol=1e-12, atol=1e-12)


def _counts(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.calls * x


def _remembers(self: Any, x: Tensor) -> Tensor:
    self.hidden = x if getattr(self, "hidden", None) is None else self.hidden + x
    return self.hidden


def _in_place(self: Any, x: Tensor) -> Tensor:
    self.held.add_(1)
    return x * self.held


def _by_data(self: Any, x: Tensor) -> Tensor:
    self.held.data.add_(1)
    return x * self.held


def _by_inputs(self: Any, x: Tensor) -> Tensor:
    self.held.add_(x.detach().sum(0))
    return x * self.held


class Sets(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.change, self.held = change, torch.ones(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.change(self, x))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("change", [_counts, _remembers, _in_place, _by_inputs, _by_data])
def test_attributes_and_plain_tensors_are_as_they_were(change: Any, strategy: Any, compiled: bool) -> None:
    net = fm.network(lambda: Sets(change), N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    wanted = once(net, params, x)
    if compiled:
        torch._dynamo.reset()
        fm.apply(net, params, x)  # a graph has no way back to the loop
    apply: Any = torch.compile(fm.apply, backend="eager", fullgraph=True) if compiled else fm.apply
    for _ in range(3):
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        y = apply(net, leaves, x)
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
        y.sum().backward()


# --- a forward that applies its own network ------------------------------------------------------------

network: list[Any] = []


class Itself(nn.Module):
    """Applies the network that it is part of to all agents, with what it has set before still there after."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.register_buffer("shift", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor, depth: int) -> Tensor:
        self.hidden = torch.tanh(self.a(x))
        if depth:
            net, params = network[-1]
            self.hidden = self.hidden + fm.apply(net, params, torch.stack([x] * N, -2), depth - 1).sum(-2)
        return self.b(self.hidden) + self.shift


def by_hand(module: Any, others: list[Any], x: Tensor, depth: int) -> Tensor:
    hidden = torch.tanh(module.a(x))
    if depth:
        hidden = hidden + sum(by_hand(other, others, x, depth - 1) for other in others)
    return module.b(hidden) + module.shift


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
def test_a_forward_may_apply_its_own_network(strategy: Any, sharing: Any) -> None:
    net = fm.network(Itself, N, sharing=sharing, strategy=strategy, agent_dim=(-2, None))
    params, inner, x = fm.init_params(net, 0), fm.init_params(net, 1), numbers(5, N, 4)
    network[:] = [(net, inner)]
    others = [fm.agent_module(net, inner, i) for i in range(N)]
    for depth in (0, 2, 1, 2):
        found = fm.apply(net, params, x, depth)
        rows = [by_hand(fm.agent_module(net, params, i), others, x[:, i], depth) for i in range(N)]
        torch.testing.assert_close(found, torch.stack(rows, 1).detach(), rtol=1e-11, atol=1e-11)
    assert len(net.module_spec.stateless._local.copies[False]) == 3  # one a depth, and no more at later calls


def test_the_first_call_is_rounded_as_the_others() -> None:
    """Its clones require grad where the parameters do, also under no_grad: torch's matmul looks at that."""
    for seed in range(5):
        net = fm.network(fm.nets.mlp(6, 8, 2), n_agents=3, sharing="shared", strategy="vmap")
        held = {name: nn.Parameter(leaf[0]) for name, leaf in fm.init_params(net, seed).items()}
        x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            params = {name: leaf.unsqueeze(0) for name, leaf in held.items()}  # views, as the facade makes them
            first, *others = (fm.apply(net, params, x) for _ in range(3))
        assert all(torch.equal(first, y) for y in others)


class Counting(nn.Module):
    """Counts its calls in an array of NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count = nn.Linear(4, 2), np.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) * float(self.count[0])


def test_arrays_are_restored() -> None:
    net = fm.network(Counting, 3)
    params, x = fm.init_params(net, 0), torch.ones(5, 3, 4)
    first = fm.apply(net, params, x)
    assert torch.equal(fm.apply(net, params, x), first)
    torch.testing.assert_close(first, fm.apply(net.replace(strategy="loop"), params, x))


def test_plain_tensors_stay_outside_of_a_transform_in_which_the_first_call_runs() -> None:
    """Each thread copies the module at its first call, and torch wraps what is made inside of ``torch.func.grad``."""
    build = partial(CustomForward, lambda m, x: m.linear(x) * m.mask, mask=torch.tensor([1.0, 0, 2, 1]))
    net = fm.network(build, N, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    torch.func.grad(lambda given: fm.apply(net, given, x).sum())(params)
    for train in (False, True):
        mask: Any = net.module_spec.stateless.module(train).module.mask
        assert not torch._C._functorch.is_functorch_wrapped_tensor(mask)  # pyright: ignore
