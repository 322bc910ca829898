"""The mapped call that is taken from the second call on, and how vmap is given up: nothing may tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import functional_marl as fm
from functional_marl import _torch_compat
from functional_marl._randomness import rng_state as draws
from functional_marl._slots import gather_slots
from functional_marl._strategies import apply_directly
from functional_marl._strategies import vmap_fast_path as direct
from functional_marl._strategies.batching_rules import Rules
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


def test_what_fails_late_gives_its_draws_back() -> None:
    """vmap goes well, then meets a branch on data behind a draw."""
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


def test_generators_of_all_devices_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a generator, for a test without one."""

    class Device:
        state = torch.tensor(5)

        def get_rng_state(self, device: torch.device) -> Tensor:
            return self.state

        def set_rng_state(self, state: Tensor, device: torch.device) -> None:
            self.state = state

    fake, meta = Device(), torch.device("meta")
    assert draws.rng_states([torch.empty(2, device=meta)]).keys() == {torch.device("cpu")}
    monkeypatch.setattr(draws, "_generators", lambda _: fake)
    before = draws.rng_states([torch.empty(2, device=meta), 3, torch.empty(2)])
    assert before.keys() == {torch.device("cpu"), meta}
    fake.state = torch.tensor(7)
    assert not draws.same_states(before, draws.rng_states([torch.empty(2, device=meta)]))
    draws.set_rng_states(before)
    assert int(fake.state) == 5
    assert draws.same_states(before, draws.rng_states([torch.empty(2, device=meta)]))


def test_a_device_has_the_generators_of_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, meta, gpu = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
    assert draws._generators(gpu) is torch.cuda
    assert draws._generators(torch.device("mps")) is torch.mps
    assert [draws._generators(d) for d in (meta, cpu, torch.device("vulkan"))] == [None] * 3
    assert draws._index(gpu) == (gpu,)
    assert draws._index(torch.device("mps")) == ()
    with FakeTensorMode():
        tensors = [torch.empty(2, device=d) for d in (gpu, meta)]
    given: list[torch.device] = []
    fake = SimpleNamespace(get_rng_state=lambda d: torch.tensor(5), set_rng_state=lambda s, d: given.append(d))
    monkeypatch.setattr(draws, "_generators", lambda d: {gpu: fake, meta: fake}[d])
    for capturing in (False, True):  # a CUDA graph is captured: its generator cannot be read
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)  # noqa: B023
        assert draws.rng_states(tensors).keys() == {cpu, gpu, meta}
        assert draws.rng_states(tensors, needed=False).keys() == ({cpu, meta} if capturing else {cpu, gpu, meta})
    draws.set_rng_states(draws.rng_states(tensors))
    assert set(given) == {gpu, meta}


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
    with Rules():
        torch.testing.assert_close(mapped(x), wanted, rtol=1e-12, atol=1e-12)  # a warning would be an error


# --- when it is taken ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("dims", [(-2, None), (0, None), (-4, -4), (2, 3), (1, -1)])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_it_answers_what_it_was_made_for(sharing: Any, dims: tuple[int, int | None], strategy: Any) -> None:
    net = fm.network(Odd, N, sharing=sharing, agent_dim=dims[0], out_agent_dim=dims[1], strategy=strategy)
    sizes = [5, 2, 6, 4]
    sizes[dims[0]] = N
    params, x = fm.init_params(net, 0), numbers(*sizes)
    for train in (False, True):
        assert apply_directly(net, params, x, train) is None  # the first call of a mode sees what the module does
        wanted = fm.apply(net.replace(strategy="loop"), params, x, train=train)
        fm.apply(net, params, x, train=train)
        for _ in range(2):
            found = apply_directly(net, params, x, train)
            assert found is not None
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
def test_it_leaves_other_calls_to_the_general_way(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(Odd, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    fm.apply(net, params, x)
    few = {k: v for k, v in params.items() if k != "scale"}
    for given in (few, {**params, "more": x}, {**few, "other": x}, {**few, "scale": 3}, {**few, "scale": x}):
        assert apply_directly(net, given, x, False) is None
    for other in (x[0, 0], x[:, :2]):
        assert apply_directly(net, params, other, False) is None
    assert apply_directly(net, params, x, False) is not None
    third = fm.network(Odd, N, strategy=strategy, agent_dim=2)
    fm.apply(third, params, numbers(5, 2, N, 4))
    assert apply_directly(third, params, x[0], False) is None
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        assert apply_directly(net, params, x, False) is None
    monkeypatch.setattr(_torch_compat, "dynamo_callback", lambda: print)
    assert apply_directly(net, params, x, False) is None


def test_dynamo_is_asked_whether_it_traces_or_runs_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not direct.is_compiled()
    for place, name, value in (
        (torch.compiler, "is_dynamo_compiling", True),
        (_torch_compat, "dynamo_callback", print),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, lambda: value)  # noqa: B023
            assert direct.is_compiled()


@pytest.mark.parametrize(("sharing", "gathered"), [("independent", 0), ("shared", 0), ([1, 0, 1], 6)], ids=str)
def test_slots_are_gathered_where_they_must_be(sharing: Any, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(Odd, N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    fm.apply(net, params, x)
    assert apply_directly(net, params, x, False) is not None
    kept, calls = net.__dict__["_mapped"], list[Any]()
    monkeypatch.setattr(direct, "gather_slots", lambda *given: calls.append(given) or gather_slots(*given))
    assert apply_directly(net, params, x, False) is not None
    assert len(calls) == gathered
    assert net.__dict__["_mapped"] is kept


def test_other_networks_have_no_such_way() -> None:
    def taken(build: Callable[[], nn.Module], x: Tensor, **settings: Any) -> bool:
        net = fm.network(build, N, **settings)
        params = fm.init_params(net, 0)
        for _ in range(2):
            fm.apply(net, params, x)
        return apply_directly(net, params, x, False) is not None

    x = numbers(5, N, 4)
    assert taken(Odd, x)
    assert not taken(Odd, x, strategy="loop")
    assert not taken(Odd, x, agent_dim=(-2,))
    assert not taken(Odd, x, agent_dim=None, out_agent_dim=0)
    assert taken(lambda: Does(lambda linear, x: x * 2), x)
    assert not taken(lambda: Does(lambda linear, x: x * 2), x, centralized=True)
    assert not taken(lambda: nn.Linear(4, 2).double(), x)
    assert taken(lambda: nn.Linear(4, 2).double(), x, strategy="vmap")
