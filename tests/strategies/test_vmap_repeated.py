"""The same call again and again, of modules without a plan: nothing is remembered that does not hold."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import functional_marl as fm
from functional_marl._strategies import vmap_chunks, vmap_map
from functional_marl._strategies.vmap_batching_rules import UseBatchingRules

N = 3


class Drops(nn.Module):
    """Dropout; a subclass adds a second output or a random operation at larger batches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = nn.functional.dropout(self.linear(x), 0.5, self.training)
        return y, y.sum(-1)


class DrawsForMany(Drops):
    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return y if len(x) < 3 else y + torch.rand_like(y)


def numbers(net: fm.Network, x: Tensor, times: int) -> list[Tensor]:
    params, out = fm.init_params(net, 0), list[Tensor]()
    for _ in range(times):
        torch.manual_seed(0)
        y = fm.apply(net, params, x, train=True)
        out.append(y[0] if isinstance(y, tuple) else y)
    return out


@pytest.mark.parametrize("strategy", ["auto", "vmap"])
@pytest.mark.parametrize("build", [Drops, DrawsForMany])
def test_a_seed_means_the_same_at_every_call(build: Any, strategy: Any) -> None:
    with torch.random.fork_rng():
        first, *others = numbers(fm.network(build, N, strategy=strategy), torch.ones(5, N, 4), 4)
        assert all(torch.equal(first, other) for other in others)


def test_what_draws_is_seen_for_every_kind_of_input() -> None:
    """If vmap fails after sampling, the RNG state is restored, also when smaller inputs sampled nothing."""

    class Late(DrawsForMany):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y if len(x) < 3 or y.sum() > -1e9 else -y  # a branch on numbers, which vmap refuses

    warm, fresh = fm.network(Late, N), fm.network(Late, N)
    with torch.random.fork_rng():
        for _ in range(3):
            numbers(warm, torch.ones(2, N, 4), 1)
        assert torch.equal(numbers(warm, torch.ones(5, N, 4), 1)[0], numbers(fresh, torch.ones(5, N, 4), 1)[0])


def test_fake_tensors_at_every_call() -> None:
    net = fm.network(DrawsForMany, N)
    params = fm.init_params(net, 0)
    fm.apply(net, params, torch.ones(5, N, 4))
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(p) for k, p in params.items()}
        for _ in range(3):
            assert fm.apply(net, fake, torch.ones(2, N, 4)).shape == (2, N, 4)


class Around(nn.Module):
    """A module of two inputs inside one without a plan."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y)


@pytest.mark.parametrize("build", [lambda: nn.GRUCell(4, 6), lambda: nn.RNNCell(4, 6), lambda: nn.Bilinear(4, 6, 2)])
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
def test_inputs_of_two_batches_are_refused_as_torch_refuses_them(build: Any, strategy: Any) -> None:
    net = fm.network(lambda: Around(build()), N, agent_dim=1, strategy=strategy)
    params = fm.init_params(net, 0)
    assert fm.apply(net, params, torch.ones(5, N, 4), torch.ones(5, N, 6)).shape[:2] == (5, N)
    with pytest.raises(RuntimeError):
        fm.apply(net, params, torch.ones(5, N, 4), torch.ones(1, N, 6))


def test_a_rule_takes_words_and_any_number_of_batch_axes() -> None:
    x, y, w, b = (torch.randn(shape) for shape in ((N, 5, 6, 4), (N, 5, 6, 3), (2, 4, 3), (2,)))
    wanted = torch.stack([torch.bilinear(x[i], y[i], w, b) for i in range(N)])
    with UseBatchingRules():  # where a rule is not taken torch warns, and a warning is an error
        found = torch.vmap(lambda x, y: torch.bilinear(x, y, w, bias=b))(x, y)
    torch.testing.assert_close(found, wanted)


def test_a_network_is_gone_when_nobody_holds_it() -> None:
    net = fm.network(DrawsForMany, N)
    numbers(net, torch.ones(2, N, 4), 3)
    gone = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert gone() is None
    finally:
        gc.enable()


# --- agents in chunks ----------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many agents have been mapped at a time."""
    numbers: list[int] = []
    whole = vmap_map._map
    monkeypatch.setattr(vmap_map, "_map", lambda function, n, *rest: numbers.append(n) or whole(function, n, *rest))
    return numbers


def chunks_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Agents go in chunks of so many bytes, however few they are."""
    monkeypatch.setattr(vmap_chunks, "CHUNK_ABOVE", 0)
    monkeypatch.setattr(vmap_chunks, "CHUNK", size)


class Several(nn.Module):
    """No plan: a buffer, a weight of its own, outputs in a tuple with a word."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.linear(x) + self.shift, "word", (x * y).sum(-1)


@pytest.mark.parametrize("size", [1, 200, 500])
@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 1, 0, 2, 1]])
@pytest.mark.parametrize("dims", [(1, 1), (0, None), (-1, 1)])
def test_agents_in_chunks_are_agents(
    size: int, sharing: Any, dims: tuple[int, int | None], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(monkeypatch, size)
    net = fm.network(Several, 5, sharing=sharing, agent_dim=dims, out_agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net, 0)
    x, y = (torch.randn(7, 4).unsqueeze(0).repeat(5, 1, 1) * torch.arange(1, 6)[:, None, None] for _ in range(2))
    inputs = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip((x, y), dims, strict=True)]
    loop = fm.apply(net.replace(strategy="loop"), params, *inputs, state=state)
    with torch.no_grad():
        for _ in range(3):
            out = fm.apply(net, params, *inputs, state=state)
            assert out[1] == loop[1] == "word"
            torch.testing.assert_close(out[::2], loop[::2])
    assert len(asked) == 3 * -(-5 // asked[0])
    assert sum(asked) == 15
    assert asked[0] < 5 or size == 500
    fm.apply(net, params, *inputs, state=state)  # where gradients may be recorded, all at once
    assert asked[-1] == 5


def test_large_calls_of_the_commonest_kind_go_in_chunks_too(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.network(DrawsForMany, 5)
    params, x = fm.init_params(net, 0), torch.randn(2, 5, 4)
    with torch.no_grad():
        wanted = [fm.apply(net, params, x) for _ in range(3)][-1]
        asked.clear()
        chunks_of(monkeypatch, 64)
        torch.testing.assert_close(fm.apply(net, params, x), wanted)
    assert asked == [2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "how"),
    [({}, {"train": True}), ({}, {"mutable": True}), ({"randomness": "same"}, {})],
    ids=["training", "a state is wanted", "same draws"],
)
def test_what_may_draw_or_gives_a_state_is_mapped_at_once(
    settings: Any, how: Any, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(monkeypatch, 64)
    net = fm.network(Several, 5, agent_dim=1, out_agent_dim=0, strategy="vmap", **settings)
    params, state = fm.init_params(net, 0), fm.init_state(net, 0)
    with torch.no_grad():
        fm.apply(net, params, torch.randn(2, 5, 4), torch.randn(2, 5, 4), state=state, **how)
    assert asked == [5]


def test_a_network_that_sees_no_tensor_is_mapped() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Any) -> Tensor:
            return self.weight * input

    net = fm.network(lambda: Scaled(4, 2), N, out_agent_dim=0, strategy="vmap")
    params = fm.init_params(net, 0)
    assert torch.equal(fm.apply(net, params, 2.0), 2 * params["weight"])


def test_how_much_activations_take() -> None:
    wide = fm.network(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(9)), N)
    assert vmap_chunks.widest_leaf(wide) == 9
    assert vmap_chunks.widest_leaf(fm.network(nn.Tanh, N)) == 1
    for shape, rows in (((7, 5, 4), 35), ((3, 1), 3), ((), 1), ((3, 0), 0)):
        assert vmap_chunks.activation_bytes(torch.zeros(shape), 6) == rows * 6 * 4
    assert vmap_chunks.activation_bytes(torch.zeros(7, 4, dtype=torch.float64), 6) == 7 * 6 * 8
    with torch.no_grad():
        assert [vmap_chunks.in_chunks(vmap_chunks.CHUNK_ABOVE + more) for more in (0, 1)] == [False, True]
    assert not vmap_chunks.in_chunks(vmap_chunks.CHUNK_ABOVE + 1)


def test_what_all_agents_share_is_evaluated_once_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Joint(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(input)

    net = fm.network(lambda: Joint(20, 6), 5, sharing="shared", centralized=True)
    params, x = fm.init_params(net, 0), torch.randn(7, 5, 4)
    wanted = fm.apply(net.replace(strategy="loop"), params, x)
    chunks_of(monkeypatch, 64)
    calls.clear()
    with torch.no_grad():
        y = fm.apply(net, params, x)
    assert len(calls) == 1
    assert y.stride(1) == 0  # an expanded view, as the docstring of apply says
    torch.testing.assert_close(y, wanted)
