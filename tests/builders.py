"""What the tests of the core share: numbers, one-agent modules, and the loop that every call must equal."""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import functional_marl as fm

N = 3  # agents
Tensors = dict[str, Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal draws in double precision, from a generator of their own."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().double()


def mlp() -> nn.Module:
    """Two linear layers: leaves 0.weight, 0.bias, 2.weight, 2.bias."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


# Every kind of slot map over three agents. In the last, slot 0 is unused.
SHARINGS: dict[str, Any] = {
    "shared": "shared",
    "independent": "independent",
    "clusters": [0, 0, 1],
    "apart": [1, 0, 1],
    "layers": {"0.*": "shared", "*": [0, 1, 1]},
    "unused": fm.Sharing([2, 1, 2], 3),
}
# The same for modules without a leaf called "0.": one pattern for all.
FLAT_SHARINGS = {name: sharing for name, sharing in SHARINGS.items() if name != "layers"}


def own(net: fm.Network, params: Mapping[str, Tensor], agent: int) -> Tensors:
    """Agent's leaves, straight from the definition: ``P[leaf][slot of the agent]``."""
    return {name: leaf[net.sharing[name].slots[agent]] for name, leaf in params.items()}


def looped(
    net: fm.Network,
    params: Mapping[str, Tensor],
    x: Tensor,
    dim: int = -2,
    state: Mapping[str, Tensor] | None = None,
    out_dim: int | None = None,
) -> Tensor:
    """Each agent alone, as an ordinary module: what ``apply`` of one tensor means."""
    outputs = [fm.agent_module(net, params, i, state)(x.select(dim, i)) for i in range(net.n_agents)]
    return torch.stack(outputs, dim if out_dim is None else out_dim)


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two flat trees agree in names, order of names, dtypes and every bit."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.allclose(a[k], b[k], rtol=0, atol=0, equal_nan=True) for k in a
    )


def copied(tree: Mapping[str, Tensor]) -> Tensors:
    return {name: leaf.clone() for name, leaf in tree.items()}


@contextlib.contextmanager
def generators_untouched() -> Generator[None]:
    """Fails if the block moves a global generator: torch's, numpy's or Python's."""
    numpy_state: Any = np.random.get_state()
    before = torch.get_rng_state(), numpy_state, python_random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    numpy_now: Any = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(numpy_now, before[1], strict=True))
    assert python_random.getstate() == before[2]
