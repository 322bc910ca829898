"""``torch.compile(fullgraph=True)`` of apply and of a gradient step equals the plain loop, over the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.func import grad

import functional_marl as fm
from tests.integration.compose_cases import (
    CASES,
    SHARINGS,
    N,
    Params,
    Subject,
    extra_of,
    numbers,
    same,
    subject,
    weighed,
)

# Each case under one sharing, in turn, and for a gradient step under another.
SOME = [(name, SHARINGS[k % 4]) for k, name in enumerate(CASES)]
OTHERS = [(name, SHARINGS[(k + 2) % 4]) for k, name in enumerate(CASES)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test compiles alone: graphs of earlier tests would count towards the limit of recompiles."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that runs graphs without changes, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def step_of(call: Any) -> Callable[..., tuple[Params, Tensor]]:
    """One step of gradient descent."""

    def step(params: Params, inputs: Any, extra: Any) -> tuple[Params, Tensor]:
        slopes = grad(lambda p: weighed(call(p, inputs, extra)))(params)
        return {k: p - 0.1 * slopes[k] for k, p in params.items()}, slopes[next(iter(slopes))].norm()

    return step


@pytest.mark.parametrize(("name", "sharing"), SOME)
def test_compile_apply(name: str, sharing: str) -> None:
    """Outputs, and gradients by autograd; then again with other values."""
    s = subject(name, sharing)
    compiled = torch.compile(s.call, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        params = fm.init_params(s.net, seed, dtype=torch.float64)
        inputs, extra = tuple(x + seed for x in s.inputs), extra_of(s.case, s.net, seed)
        (outputs, slopes), wanted = (backward(call, params, inputs, extra) for call in (compiled, s.oracle))
        same((outputs, slopes), wanted)


def backward(call: Any, params: Params, inputs: Any, extra: Any) -> tuple[Any, list[Tensor]]:
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    outputs = call(leaves, inputs, extra)
    slopes = torch.autograd.grad(weighed(outputs), list(leaves.values()), materialize_grads=True)
    return outputs, list(slopes)


@pytest.mark.parametrize(("name", "sharing"), [*OTHERS, ("mlp", "shared"), ("centralized", "shared")])
def test_compile_gradient_step(name: str, sharing: str) -> None:
    s = subject(name, sharing)
    compiled = torch.compile(step_of(s.call), fullgraph=True, backend="aot_eager")
    same(compiled(*s.args), step_of(s.oracle)(*s.args))


@pytest.mark.parametrize(("name", "strategy"), [("mlp", "loop"), ("batchnorm_train", "loop"), ("dropout", "vmap")])
def test_compile_forced_strategies(name: str, strategy: str) -> None:
    s = subject(name, "clusters", strategy=strategy)
    same(torch.compile(s.call, fullgraph=True, backend="aot_eager")(*s.args), s.oracle(*s.args))


@pytest.mark.parametrize(("name", "sharing"), [("dropout", "per_leaf")])
def test_inductor(name: str, sharing: str) -> None:
    s = subject(name, sharing)
    compiled = torch.compile(step_of(s.call), fullgraph=True)
    same(compiled(*s.args), step_of(s.oracle)(*s.args))


@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm_train"])
def test_values_do_not_recompile(name: str) -> None:
    """One graph for all values of params, inputs, keys and states."""
    s, backend = subject(name, "clusters"), Counting()
    compiled = torch.compile(s.call, fullgraph=True, backend=backend)
    for seed in range(5):
        params = fm.init_params(s.net, seed, dtype=torch.float64)
        args = params, tuple(x * seed for x in s.inputs), extra_of(s.case, s.net, seed)
        same(compiled(*args), s.oracle(*args))
    assert backend.graphs == 1


@pytest.mark.parametrize(
    ("name", "dynamic", "most"),
    [
        ("mlp", True, 1),
        ("mlp", None, 2),  # once for the first size, once for all sizes
        ("dropout", True, 2),  # a number of samples that is no multiple of four has its own graph
    ],
)
def test_batch_sizes_recompile_once(name: str, dynamic: bool | None, most: int) -> None:
    s, backend = subject(name, "clusters"), Counting()
    compiled = torch.compile(s.call, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch in (7, 5, 8, 13, 9, 24):
        inputs = (numbers(batch, N, 4, seed=batch),)
        same(compiled(s.params, inputs, s.extra), s.oracle(s.params, inputs, s.extra))
    assert backend.graphs <= most


def test_one_function_serves_many_networks() -> None:
    """A compiled function recompiles for a network with other settings, and only then."""
    backend = Counting()
    compiled = torch.compile(fm.apply, fullgraph=True, backend=backend)
    x = numbers(2, N, 4)
    for _ in range(3):
        for sharing in SHARINGS:
            s = subject("mlp", sharing)  # a new object each time
            same(compiled(s.net, s.params, x), s.oracle(s.params, (x,), {}))
    assert backend.graphs == len(SHARINGS)


def test_an_int_is_a_key_in_a_graph_too() -> None:
    """Dynamo takes the first int for a constant; the second shows that it is not."""
    s, backend = subject("dropout"), Counting()
    compiled = torch.compile(lambda k: s.call(s.params, s.inputs, {"key": k}), fullgraph=True, backend=backend)
    for seed in range(5, 10):
        same(compiled(seed), s.oracle(s.params, s.inputs, {"key": fm.key(seed)}))
    assert backend.graphs <= 2


def test_compile_uses_the_global_generator_without_a_key() -> None:
    net = fm.network(lambda: nn.Dropout(0.5), N, sharing="shared", agent_dim=0)
    compiled = torch.compile(lambda x: fm.apply(net, {}, x, train=True), fullgraph=True, backend="aot_eager")
    x = torch.ones(N, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_compile_under_autocast_and_inference() -> None:
    s = subject("mlp", "clusters", dtype=torch.float32)
    compiled = torch.compile(s.call, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(compiled(*s.args).float(), s.oracle(*s.args).float(), rtol=0.05, atol=0.05)
    with torch.inference_mode():
        same(compiled(*s.args), s.oracle(*s.args), rtol=1e-5, atol=1e-6)


def test_compiled_population() -> None:
    """The gradient step of a population, seeds x agents x batch, is one graph too."""
    s = subject("dropout", "clusters")
    params = fm.init_params(s.net, fm.split(3, 2), dtype=torch.float64)
    keys = fm.split(4, 2)
    step = step_of(lambda p, xs, key: s.call(p, xs, {"key": key}))
    compiled = torch.compile(torch.func.vmap(step, (0, None, 0)), fullgraph=True, backend="aot_eager")
    found, _ = compiled(params, s.inputs, keys)
    for p in range(2):
        own = {k: v[p] for k, v in params.items()}
        wanted, _ = step_of(s.oracle)(own, s.inputs, {"key": keys[p]})
        same({k: v[p] for k, v in found.items()}, wanted)


def test_errors_are_the_same_when_compiled() -> None:
    s = subject("mlp")
    compiled = torch.compile(s.call, backend="aot_eager")
    with pytest.raises(fm.StructureError, match=r"params\['0.weight'\]: missing"):
        compiled({k: v for k, v in s.params.items() if k != "0.weight"}, s.inputs, s.extra)


class Dropping(nn.Module):
    """No plan, and a dropout that may be switched off."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.first, self.p = nn.Linear(4, 40), p

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return nn.functional.dropout(y, self.p, self.training) if self.p else y


def alike(p: float, randomness: Any = "same") -> tuple[fm.Network, Params, Tensor]:
    """All agents have equal parameters and inputs, so differences come from random numbers."""
    net = fm.network(lambda: Dropping(p), N, randomness=randomness, strategy="loop")
    params = fm.init_params(net.replace(sharing="shared"), 0)
    return (
        net,
        {k: v.expand(N, *v.shape[1:]).clone() for k, v in params.items()},
        numbers(2, 1, 4).float().expand(2, N, 4),
    )


@pytest.mark.parametrize(("p", "train"), [(0.5, False), (0.0, True)])
def test_a_loop_without_random_operations_compiles_under_same(p: float, train: bool) -> None:
    net, params, x = alike(p)
    compiled = torch.compile(lambda p, x: fm.apply(net, p, x, train=train), fullgraph=True, backend="aot_eager")
    same(compiled(params, x), fm.apply(net, params, x), 1e-6, 1e-6)


def test_a_random_loop_runs_eagerly_under_same() -> None:
    net, params, x = alike(0.5)
    call = lambda p, x: fm.apply(net, p, x, train=True)
    with pytest.raises(Unsupported, match=r'randomness="same": a traced loop .*give apply a key='):
        torch.compile(call, fullgraph=True, backend="aot_eager")(params, x)
    torch.compiler.reset()
    y = torch.compile(call, backend="aot_eager")(params, x)
    assert torch.equal(y[:, 0], y[:, 1])
    assert bool((y == 0).any())
    keyed = torch.compile(lambda p, x: fm.apply(net, p, x, key=3, train=True), fullgraph=True, backend="aot_eager")
    same(keyed(params, x), fm.apply(net, params, x, key=3, train=True), 1e-6, 1e-6)


def test_a_compiled_loop_samples_nothing_under_error() -> None:
    net, params, x = alike(0.5, "error")
    with pytest.raises(Unsupported, match="Observed exception"):
        torch.compile(lambda p, x: fm.apply(net, p, x, train=True), fullgraph=True, backend="aot_eager")(params, x)


class Broken(nn.Module):
    """Its graph breaks before the statistics are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.norm(x)


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("build", [lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Broken])
def test_statistics_are_not_lost_in_a_graph(build: Any, strategy: Any) -> None:
    net = fm.network(build, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(8, N, 4).float()
    with pytest.raises(fm.StructureError, match=r"changed its buffers .*running_mean.*mutable=True"):
        torch.compile(lambda p, x: fm.apply(net, p, x, train=True), backend="aot_eager")(params, x)
    if build is not Broken:
        with pytest.raises(Unsupported, match="Observed exception"):
            torch.compile(lambda p, x: fm.apply(net, p, x, train=True), fullgraph=True, backend="aot_eager")(params, x)


def test_frozen_statistics_need_no_state() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    net = fm.network(lambda: Frozen(4), N)
    params, x = fm.init_params(net, 0), numbers(8, N, 4).float()
    compiled = torch.compile(lambda p, x: fm.apply(net, p, x, train=True), fullgraph=True, backend="aot_eager")
    same(compiled(params, x), fm.apply(net, params, x), 1e-5, 1e-5)


class Remembering(nn.Module):
    """No plan, and a cell without a batching rule in torch; warnings are errors here."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.pairs = nn.GRUCell(4, 3), nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(torch.sin(x))
        return self.pairs(h, h)


def test_compile_without_warnings_of_missing_rules() -> None:
    net = fm.network(Remembering, N)
    params, x = fm.init_params(net, 0), numbers(2, N, 4).float()
    compiled = torch.compile(lambda p, x: fm.apply(net, p, x), fullgraph=True, backend="aot_eager")
    same(compiled(params, x), fm.apply(net.replace(strategy="loop"), params, x), 1e-5, 1e-5)


def test_the_oracle_is_independent() -> None:
    """The oracle of these tests does not use the library: a wrong key or a swapped agent is noticed."""
    s = subject("dropout")
    other: dict[str, Any] = {"key": fm.key(1)}
    with pytest.raises(AssertionError):
        same(s.call(*s.args), s.oracle(s.params, s.inputs, other))
    swapped = Subject(s.case, s.net, {k: v.flip(0) for k, v in s.params.items()}, s.inputs, s.extra)
    with pytest.raises(AssertionError):
        same(s.call(*s.args), s.oracle(*swapped.args))
