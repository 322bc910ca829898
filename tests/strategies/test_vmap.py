"""The parts of the mapped call: the map itself, by private primitives and by the public function, and its silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl import _torch_compat
from functional_marl._strategies import vmap_map
from tests.builders import N, numbers


@pytest.mark.parametrize("tracer", [None, "is_compiling", "is_dynamo_compiling"])
def test_the_map_is_a_loop_whoever_traces_it(tracer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    public: list[Any] = []
    by_vmap = vmap_map._traceable
    monkeypatch.setattr(vmap_map, "_traceable", lambda *given: public.append(given) or by_vmap(*given))
    if tracer is not None:
        monkeypatch.setattr(torch.compiler, tracer, lambda: True)
    x, w = numbers(4, N), numbers(2)
    product, total = vmap_map._map(lambda a, b: [a * b.sum(), b.sum()], N, "same", [x, w], [1, None])
    assert torch.equal(product, torch.stack([x[:, i] * w.sum() for i in range(N)]))
    assert torch.equal(total, torch.stack([w.sum()] * N))
    (alone,) = vmap_map._map(lambda a: [2 * a], N, "same", [x], [1])
    assert torch.equal(alone, torch.stack([2 * x[:, i] for i in range(N)]))
    (constant,) = vmap_map._map(lambda: [w], N, "same", [], [])
    assert torch.equal(constant, torch.stack([w] * N))
    assert len(public) == (0 if tracer is None else 3)  # tracers expect the public function


@pytest.mark.parametrize("tracer", [None, "is_compiling", "is_dynamo_compiling"])
def test_the_map_draws_as_it_is_told(tracer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if tracer is not None:
        monkeypatch.setattr(torch.compiler, tracer, lambda: True)

    def draw(x: Tensor) -> list[Tensor]:
        return [x + torch.rand(8)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (same,) = vmap_map._map(draw, N, "same", [torch.zeros(N, 8)], [0])
        (different,) = vmap_map._map(draw, N, "different", [torch.zeros(N, 8)], [0])
        with pytest.raises(RuntimeError, match="randomness"):
            vmap_map._map(draw, N, "error", [torch.zeros(N, 8)], [0])
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


def test_the_warning_is_on_again_when_the_last_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[Any] = []
    monkeypatch.setattr(_torch_compat, "warn_of_fallback", flags.append)
    quiet = vmap_map._Quiet()
    for _ in range(2):
        flags.clear()
        with quiet:
            with quiet:
                assert flags == [False, False]
            with pytest.raises(KeyError), quiet:
                raise KeyError
            assert flags == [False, False, False]
        assert flags == [False, False, False, True]


def test_what_has_a_rule_is_mapped_without_the_warning_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_compat, "warn_of_fallback", lambda on: None)
    net = fm.network(lambda: nn.Bilinear(4, 4, 3).double(), N, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = torch.stack([fm.agent_module(net, params, i)(x[:, i], x[:, i]).detach() for i in range(N)], 1)
    for _ in range(2):
        torch.testing.assert_close(fm.apply(net, params, x, x), expected, rtol=1e-12, atol=1e-12)
