"""Which agents write and read the buffers of a module, found by calls."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace

import torch
from torch import Tensor

from functional_marl.laws._compare import gap
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_under_test import ModuleUnderTest
from functional_marl.laws._reached import Reached, reached

__all__ = ["constants_read", "shared_buffers"]


@torch.no_grad()
def shared_buffers(host: ModuleUnderTest) -> list[Reached]:
    """The buffers that training writes from inputs, and which agents write or read which of their elements.

    A call in training is repeated with one agent's input changed: what is written then differs where that agent writes.
    In evaluation, elements that the same agents write are changed together: agents whose outputs differ read them.
    """
    if any(len(heard) > 1 for heard in host.hears):
        return []  # an agent's input goes into what others write
    case = ModuleCase(host, seed=11)
    other = case.redrawn(12)
    try:
        after = case.trained()[1]
        changed = [case.with_agent(agent, other).trained()[1] for agent in range(host.n_agents)]
    except Exception:  # it does not train on the example: nothing is written
        return []
    found: list[Reached] = []
    for name, was in after.items():
        if all(name in rows and rows[name].shape == was.shape for rows in changed):
            writes = torch.stack([_differs(rows[name], was) for rows in changed])
            if bool(writes.any()):
                uses = writes.cpu() | _readers(case, name, after[name], writes.cpu())
                found.append(replace(reached(name, uses), is_buffer=True))
    return found


def _differs(one: Tensor, other: Tensor) -> Tensor:
    return (one != other) & ~((one != one) & (other != other))


def _readers(case: ModuleCase, name: str, value: Tensor, writes: Tensor) -> Tensor:
    """Which agents' evaluation reads which elements, ``[n, *buffer]``: elements with equal writers go together."""
    reads = torch.zeros_like(writes)
    if not value.is_floating_point():
        return reads
    rows = writes.reshape(len(writes), value.numel())  # also of a buffer without axes
    columns, which = torch.unique(rows.T, dim=0, return_inverse=True)
    usual = case.outputs(train=False)
    for k in range(len(columns)):
        if not bool(columns[k].any()):
            continue  # what no input changes here, as the mean of normalized rows, may belong to different agents
        here = (which == k).reshape(value.shape)
        moved = torch.where(here.to(value.device), 1.5 * value.abs() + 1, case.host.buffers()[name])
        outputs = replace(case, numbers={name: moved}).outputs(train=False)
        for agent, (one, was) in enumerate(zip(outputs, usual, strict=True)):
            if any(gap(a, b, oracle=True) for a, b in zip(one, was, strict=True)):
                reads[agent] |= here.cpu()
    return reads


@torch.no_grad()
def constants_read(host: ModuleUnderTest, moving: Container[str]) -> list[Reached]:
    """Float parameters and buffers that no training moves, and which agents' evaluation reads which of them.

    Such are the bounds of actions, scales of observations, target networks. Each is changed as a whole; where several
    agents read it and an axis has as many places as there are agents, each place of that axis is changed alone.

    Args:
        host: the module.
        moving: names of what training moves, which are left out.
    """
    case = ModuleCase(host, seed=13)
    usual = case.outputs(train=False)

    def readers(name: str, value: Tensor, here: Tensor) -> Tensor:
        moved = torch.where(here.to(value.device), 1.5 * value.abs() + 1, value)
        outputs = replace(case, numbers={name: moved}).outputs(train=False)
        pairs = zip(outputs, usual, strict=True)
        return torch.tensor([any(gap(a, b, oracle=True) for a, b in zip(one, was, strict=True)) for one, was in pairs])

    found: list[Reached] = []
    for name, leaf in {**host.params(), **host.buffers()}.items():
        if name in moving or not leaf.is_floating_point() or not leaf.numel():
            continue
        value = leaf.detach().clone()
        every = torch.ones(value.shape, dtype=torch.bool, device=value.device)
        try:
            mask = readers(name, value, every).view(-1, *[1] * value.ndim).expand(-1, *value.shape).clone()
            if int(mask.flatten(1).any(1).sum()) > 1:
                mask = _by_place(host.n_agents, mask, lambda here, name=name, value=value: readers(name, value, here))
        except Exception:  # it takes no other numbers: nothing is known
            continue
        found.append(reached(name, mask))
    return found


def _by_place(n: int, mask: Tensor, readers: Callable[[Tensor], Tensor]) -> Tensor:
    """The mask ``[n, *leaf]`` of readers, place by place along an axis of agents if that tells them apart."""
    for axis in (k for k, size in enumerate(mask.shape[1:]) if size == n):
        places = torch.zeros_like(mask)
        for k in range(n):
            here = torch.zeros(mask.shape[1:], dtype=torch.bool)
            here.select(axis, k).fill_(True)
            places |= readers(here).view(-1, *[1] * here.ndim) & here
        if all(int(places.select(axis + 1, k).flatten(1).any(1).sum()) <= 1 for k in range(n)):
            return places
    return mask
