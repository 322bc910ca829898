"""Batched products: the size rules change speed alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import functional_marl as fm
from functional_marl._lowering import linear_kernels as dense
from tests.builders import numbers
from tests.lowering.test_plan import assert_plan_is_loop


@pytest.mark.parametrize("sharing", ["independent", [0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 2], [2, 1, 0, 2, 1, 0]])
@pytest.mark.parametrize("rules", [{"CHUNK_ABOVE": 0, "CHUNK": 1_000}, {"FEATURE_MAJOR_FROM": 1}, {"GATHER_UP_TO": 0}])
def test_size_rules_change_no_number(sharing: Any, rules: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rules.items():
        monkeypatch.setattr(dense, name, value)
    net = fm.network(fm.nets.mlp(6, 8, 3), 6, sharing=sharing)
    assert_plan_is_loop(net, (numbers(9, 6, 6),))


def test_chunks_of_a_size_are_chosen_in_one_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    product = dense.product

    def counted(weights: Any, h: Any) -> Any:
        sizes.append(h.shape[0])
        return product(weights, h)

    monkeypatch.setattr(dense, "product", counted)
    net = fm.network(fm.nets.mlp(6, 8, 3), 6, sharing="independent", strategy="plan")
    params, x = fm.init_params(net, 0), numbers(9, 6, 6).float()

    def chunks() -> list[int]:
        sizes.clear()
        found.append(fm.apply(net, params, x, key=0))  # without a key the fast path would evaluate it
        return list(sizes)

    found: list[Any] = []
    whole = chunks()
    assert dense.forced_chunk() is None
    with dense.chunks_of(2 * 9 * 8 * 4):  # two agents of nine rows of width 8
        assert dense.forced_chunk() == 576
        with ThreadPoolExecutor(1) as pool:
            elsewhere = pool.submit(chunks).result()
        pairs = chunks()
        with dense.chunks_of(1):
            single = chunks()
        assert dense.forced_chunk() == 576
        assert fm.apply(net, params, x[:0], key=0).shape == (0, 6, 3)
    assert (whole, elsewhere, pairs, single) == ([6], [6], [2, 2, 2], [1] * 6)
    assert chunks() == [6]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_chunks_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="chunks_of: expected 1 byte or more, got 0"), dense.chunks_of(0):
        pass
