"""Common parts of the tests: numbers, one-agent modules, and the loop that every call must equal."""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import functional_marl as fm

N = 3  # agents
Tensors = dict[str, Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in double precision, from a generator of their own."""
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
# The same for modules without leaves named "0.*": one pattern for all.
FLAT_SHARINGS = {name: sharing for name, sharing in SHARINGS.items() if name != "layers"}


def own(net: fm.Network, params: Mapping[str, Tensor], agent: int) -> Tensors:
    """One agent's leaves, by the definition: ``P[leaf][slot of the agent]``."""
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


@dataclass
class Outcome:
    """The results of a call: outputs, gradients of a weighted sum of them, and the buffers of every agent."""

    y: Tensor
    params: Tensors  # [S, *leaf], gradients
    x: Tensor | None
    buffers: list[Tensors]


def by_agents(net: fm.Network, params: Tensors, x: Tensor, train: bool = False, state: Any = None) -> Outcome:
    """The oracle: every agent is an ordinary module with its own copies, its input ``x[i]``, its own backward."""
    grads = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    buffers: list[Tensors] = []
    for i in range(net.n_agents):
        module = fm.agent_module(net, params, i, state).train(train)
        inputs.append(x[i].detach().clone().requires_grad_(x.is_floating_point()))
        outputs.append(module(inputs[i] * 1 if x.is_floating_point() else inputs[i]))
        if outputs[i].requires_grad:
            (outputs[i] * weights(outputs[i], i)).sum().backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                grads[name][net.sharing[name].slots[i]] += parameter.grad
        buffers.append({name: buffer.detach() for name, buffer in module.named_buffers()})
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in inputs] if x.is_floating_point() else []
    return Outcome(torch.stack(outputs).detach(), grads, torch.stack(found) if found else None, buffers)


def by_apply(net: fm.Network, params: Tensors, x: Tensor, train: bool = False, state: Any = None) -> Outcome:
    """The same from one call of ``apply``; agents are at dim 0 of inputs and outputs."""
    leaves = {name: leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for name, leaf in params.items()}
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    y, after = fm.apply(net, leaves, x, train=train, state=state, mutable=True)
    if y.requires_grad:
        sum((y[i] * weights(y[i], i)).sum() for i in range(net.n_agents)).backward()  # pyright: ignore
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    found = torch.zeros_like(x) if x.grad is None else x.grad
    buffers = [{k: b[net.state_sharing[k].slots[i]] for k, b in after.items()} for i in range(net.n_agents)]
    return Outcome(y.detach(), grads, found if x.is_floating_point() else None, buffers)


def weights(y: Tensor, agent: int) -> Tensor:
    return numbers(*y.shape, seed=100 + agent)


def assert_alike(got: Outcome, expected: Outcome, tolerance: float = 1e-11) -> None:
    close: Any = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, equal_nan=True)
    close(got.y, expected.y)
    close(got.params, expected.params)
    close(got.x, expected.x) if expected.x is not None else None
    close(got.buffers, expected.buffers)


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two flat trees agree in names, order of names, dtypes and every bit."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.allclose(a[k], b[k], rtol=0, atol=0, equal_nan=True) for k in a
    )


def copied(tree: Mapping[str, Tensor]) -> Tensors:
    return {name: leaf.clone() for name, leaf in tree.items()}


@contextlib.contextmanager
def generators_untouched() -> Generator[None]:
    """Fails if the block changes the state of a global generator: torch's, numpy's or Python's."""
    numpy_state: Any = np.random.get_state()
    before = torch.get_rng_state(), numpy_state, python_random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    numpy_now: Any = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(numpy_now, before[1], strict=True))
    assert python_random.getstate() == before[2]
