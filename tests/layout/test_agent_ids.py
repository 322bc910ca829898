"""Agent ids as input features."""

from __future__ import annotations

import pytest
import torch

import functional_marl as fm
from tests.builders import N, numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(N, 2), (4, N, 2), (N, 4, 2), (4, 0, N, 2), (4, N, 5, 0)])
def test_agent_ids_are_one_hot_behind_the_features(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = numbers(*shape).to(dtype)
    dim = shape.index(N)
    got = fm.with_agent_ids(x, dim)
    assert got.dtype == dtype
    assert torch.equal(fm.with_agent_ids(x, dim - x.ndim), got)
    for i in range(N):
        mine = got.select(dim, i)
        assert torch.equal(mine[..., : shape[-1]], x.select(dim, i))
        expected = [float(i == j) for j in range(N)]
        assert all(row == expected for row in mine[..., shape[-1] :].reshape(-1, N).tolist())


def test_agent_ids_are_made_where_the_input_is() -> None:
    assert fm.with_agent_ids(torch.empty(4, N, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("dim", [-1, 2, 3, -4])
def test_agent_ids_need_features_behind_the_agents(dim: int) -> None:
    with pytest.raises(fm.StructureError, match=rf"agent axis before the features, got dim {dim} of \[4, 3, 2\]"):
        fm.with_agent_ids(torch.zeros(4, N, 2), dim)
