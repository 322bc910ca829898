"""Sparse inputs: one agent after the other if torch can, else an error with the fix."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, looped, numbers


def own() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh()).double()


def linear() -> nn.Module:
    return nn.Linear(4, 3).double()


def sparse(x: Tensor, layout: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the CSR layout a beta, once a process
        return (x * (x > 0) if layout is torch.sparse_coo else x).to_sparse(layout=layout)


@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]])
@pytest.mark.parametrize("build", [linear, own])
@pytest.mark.parametrize(
    ("layout", "shape"), [(torch.sparse_coo, (5, N, 4)), (torch.sparse_coo, (N, 4)), (torch.sparse_csr, (N, 4))]
)
def test_agents_see_their_part_of_a_sparse_input(layout: Any, shape: Any, build: Any, sharing: Any) -> None:
    x = sparse(numbers(*shape), layout)
    for strategy in ("auto", "loop"):
        net = fm.network(build, N, sharing=sharing, strategy=strategy)
        params = fm.init_params(net, 0)
        for _ in range(2):
            found = fm.apply(net, params, x)
            torch.testing.assert_close(found, looped(net, params, x.to_dense()).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", ["vmap", "plan"])
@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_batched_strategies_raise_for_sparse_inputs(layout: Any, sharing: Any, strategy: Any) -> None:
    net = fm.network(linear, N, sharing=sharing, strategy=strategy)
    params, x = fm.init_params(net, 0), sparse(numbers(5, N, 4), layout)
    message = f'strategy="{strategy}": it takes dense tensors, got {layout}; give x.to_dense\\(\\); use "auto"'
    for _ in range(2):
        with pytest.raises(fm.StructureError, match=message):
            fm.apply(net, params, x)
        fm.apply(net, params, numbers(5, N, 4))


def test_a_layout_that_torch_cannot_compute_is_named() -> None:
    x = sparse(numbers(5, N, 4), torch.sparse_csr)
    for strategy in ("auto", "loop"):
        net = fm.network(linear, N, strategy=strategy)
        with pytest.raises(fm.StructureError, match=r"torch.sparse_csr fails in the loop over agents; give x.to_dense"):
            fm.apply(net, fm.init_params(net, 0), x)
    net = fm.network(lambda: nn.Linear(12, 3), N, centralized=True)
    with pytest.raises(fm.StructureError, match=r"inputs\[0\]: centralized takes dense tensors, got torch.sparse_csr"):
        fm.apply(net, fm.init_params(net, 0), x.float())
