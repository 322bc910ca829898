"""The mapped call that is taken from the second call on, and how vmap is given up: nothing may tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import functional_marl as fm
from functional_marl import _torch_compat
from functional_marl._gather_slots import gather_slots
from functional_marl._strategies import vmap_fast_path
from functional_marl._strategies.under_torch_compile import is_compiled
from functional_marl._strategies.vmap_batching_rules import UseBatchingRules
from functional_marl._strategies.vmap_fast_path import VmapFastPath
from tests.builders import FLAT_SHARINGS, N, copied, numbers, same


class Odd(nn.Module):
    """No plan: tied weights, a layer without bias, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight
        self.scale = nn.Parameter(torch.randn(4))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x * self.scale)))))


class Does(nn.Module):
    """A linear layer, and a function of it and the input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear, x)


def does(function: Callable[[Any, Tensor], Any], **settings: Any) -> fm.Network:
    return fm.network(lambda: Does(function), N, **settings)


def gradients(net: fm.Network, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    x = x.clone().requires_grad_()
    y = fm.apply(net, leaves, x)
    return y, *torch.autograd.grad(y.square().sum(), [x, *leaves.values()])


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("dims", [(-2, None), (0, None), (1, -1), (-3, 0), (2, 1)])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_every_call_gives_what_the_loop_gives(sharing: Any, dims: tuple[int, int | None], strategy: Any) -> None:
    net = fm.network(Odd, N, sharing=sharing, agent_dim=dims[0], out_agent_dim=dims[1], strategy=strategy)
    sizes = [5, 2, 6, 4]
    sizes[dims[0]] = N
    params, x = fm.init_params(net, 0), numbers(*sizes)
    wanted = gradients(net.replace(strategy="loop"), params, x)
    kept = copied(params), x.clone()
    for _ in range(3):
        torch.testing.assert_close(gradients(net, params, x), wanted, rtol=1e-11, atol=1e-11)
    backwards = {k: params[k] for k in reversed(params)}
    torch.testing.assert_close(gradients(net, backwards, x)[0], wanted[0], rtol=1e-11, atol=1e-11)
    assert same(params, kept[0])
    assert torch.equal(x, kept[1])


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_an_input_is_not_written_to_at_any_call(strategy: Any) -> None:
    net = does(lambda linear, x: linear(x.mul_(2)), strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    kept = x.clone()
    outputs = [fm.apply(net, params, x) for _ in range(3)]
    assert torch.equal(x, kept)
    assert torch.equal(outputs[0], outputs[2])


def test_what_a_forward_sets_is_forgotten_at_any_call() -> None:
    def function(linear: Any, x: Tensor) -> Tensor:
        linear.calls = getattr(linear, "calls", 0) + 1
        linear.kept = linear.weight
        return linear(x) * linear.calls

    net = does(function)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    outputs = [fm.apply(net, params, x) for _ in range(4)]
    assert all(torch.equal(y, outputs[0]) for y in outputs)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_errors_at_any_call(strategy: Any) -> None:
    net = fm.network(Odd, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    good = fm.apply(net, params, x)
    for _ in range(3):
        with pytest.raises(fm.StructureError, match=r"expected 3 agents at dim -2, got 2"):
            fm.apply(net, params, x[:, :2])
        with pytest.raises(fm.StructureError, match=r"expected 3 agents at dim -2, got shape \[4\]"):
            fm.apply(net, params, x[0, 0])
        with pytest.raises(fm.StructureError, match=r"params\['c.bias'\]: expected \[3, 2\], got \[2\]"):
            fm.apply(net, {**params, "c.bias": params["c.bias"][0]}, x)
        with pytest.raises(RuntimeError, match="size"):
            fm.apply(net, params, numbers(5, N, 3))
        assert torch.equal(fm.apply(net, params, x), good)
    for out in (1, -2):
        narrow = does(lambda linear, x: linear(x).sum(), out_agent_dim=out, strategy=strategy)
        for _ in range(3):
            with pytest.raises(fm.StructureError, match=f"no place for the agents at dim {out}"):
                fm.apply(narrow, fm.init_params(narrow, 0), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda linear, x: linear(x) + torch.randn_like(x),
        lambda linear, x: (linear(x) + torch.randn_like(x), x),  # not one tensor
        lambda linear, x: linear(x + torch.randn_like(x)) * (1.0 if bool(x.sum() > 0) else 2.0),  # no vmap
    ],
    ids=["one", "two", "loop"],
)
def test_a_seed_means_the_same_at_every_call(function: Any) -> None:
    net = does(function)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    found: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(4):
            torch.manual_seed(3)
            found.append((fm.apply(net, params, x), torch.get_rng_state()))
    torch.testing.assert_close(found, [found[0]] * 4, rtol=0, atol=0)


def test_the_rng_state_is_restored_after_a_late_failure() -> None:
    """vmap works; in a later call it samples and then fails at a branch on numbers."""
    net = does(lambda linear, x: (x + torch.rand_like(x)) * 1 if x.dtype == torch.float64 else _branch(x))
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    for _ in range(3):
        fm.apply(net, params, x)
    found: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        for tried in (net, net.replace(strategy="loop")):
            torch.manual_seed(3)
            found.append((fm.apply(tried, params, x.float()), torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def _branch(x: Tensor) -> Tensor:
    y = x + torch.rand_like(x)
    return y if bool((y > 0).any()) else -y


depth: list[Any] = []


class Nested(nn.Module):
    """Applies the network that it is part of, between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if depth:
            net, params = depth.pop()
            h = h + fm.apply(net, params, torch.stack([x] * N, -2)).sum(-2)
        return self.b(h)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_a_network_inside_itself(strategy: Any) -> None:
    net = fm.network(Nested, N, strategy=strategy)
    params, other, x = fm.init_params(net, 0), fm.init_params(net, 1), numbers(5, N, 4)
    inner = torch.stack([fm.apply(net, other, torch.stack([x[:, i]] * N, -2)).sum(-2) for i in range(N)], 1)
    hidden = torch.tanh(torch.einsum("bni,noi->bno", x, params["a.weight"]) + params["a.bias"]) + inner
    wanted = torch.einsum("bni,noi->bno", hidden, params["b.weight"]) + params["b.bias"]
    for _ in range(3):
        depth[:] = [(net, other)]
        torch.testing.assert_close(fm.apply(net, params, x), wanted, rtol=1e-10, atol=1e-10)


def mapped_calls(seen: list[bool], x: Tensor) -> Tensor:
    seen.append(_torch_compat.is_batched(x))
    return x * 2


def test_vmap_is_given_up_for_calls_of_one_kind_only() -> None:
    seen: list[bool] = []

    class Flagged(nn.Module):
        def forward(self, x: Tensor, hard: bool) -> Tensor:
            mapped_calls(seen, x)
            return x if hard and bool(x.sum() > 0) else x * 2

    net = fm.network(Flagged, N)
    x = numbers(5, N, 4)

    def ways(hard: bool) -> list[bool]:
        seen.clear()
        fm.apply(net, {}, x, hard)
        return list(seen)

    assert ways(True) == [True, False, False, False]  # vmap, then the loop
    assert ways(True) == [False] * N  # the loop at once
    assert ways(False) == [True]  # this goes, and still does
    assert ways(True) == [False] * N
    assert "loop (vmap raised" in fm.tabulate(net)


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap"])
def test_checkpoint_goes_around_the_call(strategy: Any) -> None:
    net = fm.network(Odd, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    _, _, *wanted = gradients(net, params, x)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    call = lambda x, *values: fm.apply(net, dict(zip(leaves, values, strict=True)), x)
    y: Any = checkpoint(call, x, *leaves.values(), use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), list(leaves.values())), tuple(wanted))


RULED: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRUCell(4, 5),
    "rnn": lambda: nn.RNNCell(4, 3),
    "relu": lambda: nn.RNNCell(4, 3, bias=False, nonlinearity="relu"),
    "bilinear": lambda: nn.Bilinear(4, 4, 3),
    "no bias": lambda: nn.Bilinear(4, 4, 3, bias=False),
    "norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "norm of columns": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), dim=1),
    "norm of a vector": lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm(4)),
    "norm of channels": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 3, 2), dim=1),
    "norm of all": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), dim=None),  # pyright: ignore
}


class Around(nn.Module):
    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = build().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.flip(-1)) if isinstance(self.inner, nn.Bilinear) else self.inner(x)


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("sharing", ["independent", "shared", [1, 0, 1]])
def test_our_rules_for_what_torch_cannot_map(sharing: Any, name: str) -> None:
    net = fm.network(lambda: Around(RULED[name]), N, sharing=sharing, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    found, wanted = (gradients(tried, params, x) for tried in (net, net.replace(strategy="loop")))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_rule_spares_a_loop_over_rows() -> None:
    x, w = numbers(N, 5, 4), numbers(3, 4, 4)
    mapped = torch.vmap(lambda x: torch.bilinear(x, x, w, None))
    with pytest.warns(UserWarning, match="performance drop"):
        wanted = mapped(x)
    with UseBatchingRules():
        torch.testing.assert_close(mapped(x), wanted, rtol=1e-12, atol=1e-12)  # a warning would be an error


# --- when it is taken ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("dims", [(-2, None), (0, None), (-4, -4), (2, 3), (1, -1)])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_the_fast_path_is_the_loop(sharing: Any, dims: tuple[int, int | None], strategy: Any) -> None:
    net = fm.network(Odd, N, sharing=sharing, agent_dim=dims[0], out_agent_dim=dims[1], strategy=strategy)
    sizes = [5, 2, 6, 4]
    sizes[dims[0]] = N
    params, x = fm.init_params(net, 0), numbers(*sizes)
    for train in (False, True):
        assert net.evaluators[train].fast_path(params, x) is None  # the first call of a mode sees what the module does
        wanted = fm.apply(net.replace(strategy="loop"), params, x, train=train)
        fm.apply(net, params, x, train=train)
        for _ in range(2):
            found = net.evaluators[train].fast_path(params, x)
            assert found is not None
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_other_calls_take_the_general_path(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(Odd, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    fm.apply(net, params, x)
    few = {k: v for k, v in params.items() if k != "scale"}
    for given in (few, {**params, "more": x}, {**few, "other": x}, {**few, "scale": 3}, {**few, "scale": x}):
        assert net.evaluators[False].fast_path(given, x) is None
    for other in (x[0, 0], x[:, :2]):
        assert net.evaluators[False].fast_path(params, other) is None
    assert net.evaluators[False].fast_path(params, x) is not None
    third = fm.network(Odd, N, strategy=strategy, agent_dim=2)
    fm.apply(third, params, numbers(5, 2, N, 4))
    assert third.evaluators[False].fast_path(params, x[0]) is None
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        assert net.evaluators[False].fast_path(params, x) is None
    monkeypatch.setattr(_torch_compat, "dynamo_callback", lambda: print)
    assert net.evaluators[False].fast_path(params, x) is None


def test_a_call_inside_a_compiled_region_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_compiled()
    for place, name, value in (
        (torch.compiler, "is_dynamo_compiling", True),
        (_torch_compat, "dynamo_callback", print),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, lambda: value)  # noqa: B023
            assert is_compiled()


@pytest.mark.parametrize(("sharing", "gathered"), [("independent", 0), ("shared", 0), ([1, 0, 1], 6)], ids=str)
def test_slots_are_gathered_where_they_must_be(sharing: Any, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(Odd, N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    fm.apply(net, params, x)
    assert net.evaluators[False].fast_path(params, x) is not None
    calls = list[Any]()
    monkeypatch.setattr(vmap_fast_path, "gather_slots", lambda *given: calls.append(given) or gather_slots(*given))
    assert net.evaluators[False].fast_path(params, x) is not None
    assert len(calls) == gathered


def test_other_networks_have_no_fast_path() -> None:
    def taken(build: Callable[[], nn.Module], x: Tensor, **settings: Any) -> bool:
        net = fm.network(build, N, **settings)
        params = fm.init_params(net, 0)
        for _ in range(2):
            fm.apply(net, params, x)
        fast_path = net.evaluators[False].fast_path
        return isinstance(fast_path, VmapFastPath) and fast_path(params, x) is not None

    x = numbers(5, N, 4)
    assert taken(Odd, x)
    assert not taken(Odd, x, strategy="loop")
    assert not taken(Odd, x, agent_dim=(-2,))
    assert not taken(Odd, x, agent_dim=None, out_agent_dim=0)
    assert taken(lambda: Does(lambda linear, x: x * 2), x)
    assert not taken(lambda: Does(lambda linear, x: x * 2), x, centralized=True)
    assert not taken(lambda: nn.Linear(4, 2).double(), x)
    assert taken(lambda: nn.Linear(4, 2).double(), x, strategy="vmap")
