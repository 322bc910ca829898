"""Which agents train which elements of which parameter and buffer: sharing, found by calls and gradients alone.

An element of a parameter is an agent's where some input and some weights give the agent's loss a gradient on it: under
the module's own weights first, then under others, for sharing must outlast any training. An element of a buffer that
training changes is an agent's where the agent's input changes what is written, or its evaluation reads it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl.laws._claims import Claims
from functional_marl.laws._infer_buffers import constants_read, shared_buffers
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_under_test import ModuleUnderTest, module_of
from functional_marl.laws._reached import Inferred, reached
from functional_marl.laws._restore import kept
from functional_marl.laws._subject import CheckError, generic_loss

__all__ = ["gradients_by_agent", "infer_sharing", "inferred", "pairs_of_parts", "part"]


@contextmanager
def _trainable(module: nn.Module) -> Generator[None]:
    """Frozen parameters get gradients for a while."""
    frozen = [leaf for leaf in module.parameters() if not leaf.requires_grad and leaf.is_floating_point()]
    for leaf in frozen:
        leaf.requires_grad_()
    try:
        yield
    finally:
        for leaf in frozen:
            leaf.requires_grad_(False)


@torch.enable_grad()  # a law may ask in the middle of a change that records none
def gradients_by_agent(s: ModuleCase, params: Mapping[str, Tensor]) -> list[list[Tensor | None]]:
    """For each agent's loss, its gradient with respect to each parameter."""
    rows: list[list[Tensor | None]] = []
    with _trainable(s.host.module):
        for output in s.outputs():
            loss = generic_loss(output, s.seed)
            found: Sequence[Tensor | None] = [None] * len(params)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
            rows.append(list(found))
    return rows


def _draws(host: ModuleUnderTest, train: bool) -> Iterator[ModuleCase]:
    """Inputs for which agents who share see the same: equal inputs, then each other's in turn.

    A unit that is dead for one agent's input is then dead for all, and no sharing looks like less than it is. Large
    inputs of both signs wake the units behind frozen weights.
    """
    for seed in range(3):
        drawn = ModuleCase(host, seed=seed, train=train).alike()
        yield drawn
        for scale in (30, -30) if any(leaf.is_floating_point() for leaf in drawn.leaves) else ():
            yield drawn.scaled(scale)
    if host.n_agents <= 8:
        drawn = ModuleCase(host, seed=3, train=train)
        groups = sorted({host.group_of(i) for i in range(host.n_agents)})
        for turn in range(max(map(len, groups))):
            order = list(range(host.n_agents))
            for group in groups:
                for k, agent in enumerate(group):
                    order[agent] = group[(k + turn) % len(group)]
            yield drawn.taking(order)


def _redraws(host: ModuleUnderTest, train: bool, masks: Mapping[str, Tensor]) -> Generator[ModuleCase]:
    """Other weights, without end: each leaf as large as it was, all positive in turn with any sign.

    Where only a part is shared, a unit may be dead for one agent's own weights and every input, and what is shared
    behind it looks like another's alone. Positive weights and inputs wake most rectifiers. What no training changes
    stays: what is frozen, or a leaf that no loss reaches, or zeros that none does.
    """
    weights: list[tuple[Tensor, Tensor, float]] = []
    for name, leaf in host.params().items():
        reached = masks[name].any(0).to(leaf.device)
        if leaf.requires_grad and bool(reached.any()) and 0 not in leaf.stride():  # expanded ones cannot be written
            size = float(leaf.detach().double().square().mean().sqrt()) or 1.0
            weights.append((leaf, reached | (leaf.detach() != 0), size))
    with kept(host.module):
        for seed in count():
            positive = seed % 2 == 0
            generator = torch.Generator().manual_seed(seed)
            for leaf, free, size in weights:
                drawn = (size * torch.randn(leaf.shape, generator=generator)).to(leaf)
                # as data: a graph of the user's may hold the leaf
                leaf.data.copy_(torch.where(free, drawn.abs() if positive else drawn, leaf.detach()))
            case = ModuleCase(host, seed=seed, train=train).alike()
            yield replace(case, leaves=tuple(map(_absolute, case.leaves))) if positive else case


def _absolute(leaf: Tensor) -> Tensor:
    return leaf.abs() if leaf.is_floating_point() else leaf


def inferred(host: ModuleUnderTest, train: bool = False) -> Inferred:
    """What gradients say of a module; found once."""
    if ("inferred", train) not in host.facts:
        host.facts["inferred", train] = _infer(host, train)
    return host.facts["inferred", train]


def _infer(host: ModuleUnderTest, train: bool) -> Inferred:
    if host.fault is not None:
        raise CheckError(f"the module raises on the example: {type(host.fault).__name__}: {host.fault}")
    params = host.params()
    masks = {name: torch.zeros((host.n_agents, *leaf.shape), dtype=torch.bool) for name, leaf in params.items()}
    try:
        for s in _draws(host, train):
            _mark(masks, s, params)
    except RuntimeError as error:  # an operation without a derivative, or one that writes into what it needs
        raise CheckError(f"no gradient can be computed: {' '.join(str(error).split())[:160]}") from None
    found, quiet = _read(host, masks), 0
    with closing(_redraws(host, train, masks)) as redraws:
        for s in redraws:
            quiet += 1
            with suppress(Exception):  # weights that the module does not take show nothing
                if _mark(masks, s, params):
                    found, quiet = _read(host, masks), 0
            if quiet >= (8 if found.settled else 64):
                break
    leaves = (*found.leaves, *shared_buffers(host))
    constants = constants_read(host, {leaf.name for leaf in leaves if leaf.sets})
    return replace(found, leaves=leaves, constants=tuple(constants))


def _read(host: ModuleUnderTest, masks: Mapping[str, Tensor]) -> Inferred:
    return Inferred(host.n_agents, tuple(reached(name, mask) for name, mask in masks.items()))


def _mark(masks: Mapping[str, Tensor], s: ModuleCase, params: Mapping[str, Tensor]) -> bool:
    """Add what each agent's loss reaches in this case; whether that is new."""
    new = False
    for i, row in enumerate(gradients_by_agent(s, params)):
        for name, gradient in zip(params, row, strict=True):
            if gradient is not None:
                reached = (gradient.nan_to_num() != 0).cpu() & ~masks[name][i]
                masks[name][i] |= reached
                new |= bool(reached.any())
    return new


def infer_sharing(
    subject: nn.Module | tuple[Any, ...], claims: Claims | None = None, *, train: bool = False, **stated: Any
) -> Inferred:
    """Who shares what in a module from any library, by which agents train which elements.

    Trainable parameters are given other values for a while, for a unit that is dead now may be woken by training; no
    gradient is written, and all is restored. Buffers that training writes, such as running statistics, are shared by
    the agents that write or read them.

    Args:
        subject: a module, ``(net, params)`` of a :class:`functional_marl.Network`, or ``(function, params)``.
        claims: what it is called with; a claimed sharing is not looked at.
        train: whether losses are those of training.
        stated: fields of :class:`Claims`, instead of or on top of ``claims``.

    Raises:
        CheckError: the module does not run on the example, or agents are not where they are claimed to be.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.trunk = nn.Linear(4, 5)
    ...         self.heads = nn.Parameter(torch.randn(3, 5, 2))
    ...     def forward(self, x):
    ...         return torch.einsum("bnh,nho->bno", self.trunk(x), self.heads)
    >>> print(infer_sharing(Net(), n_agents=3, example=torch.zeros(2, 3, 4)))
    sharing of 3 agents: mixed
    heads         [3, 5, 2]  {0} {1} {2} along axis 0
    trunk.weight  [5, 4]     {0,1,2}
    trunk.bias    [5]        {0,1,2}
    """
    given = replace(claims, **stated) if claims is not None else Claims(**stated)
    return inferred(ModuleUnderTest(module_of(subject), replace(given, sharing=None)), train)


def part(host: ModuleUnderTest, where: tuple[str, tuple[Any, ...]]) -> Tensor:
    """A view of the elements that one agent uses of a parameter."""
    name, index = where
    return {**host.params(), **host.buffers()}[name][index]


Part = tuple[str, tuple[Any, ...]]


def pairs_of_parts(host: ModuleUnderTest, i: int, j: int) -> list[tuple[Part, Part]]:
    """What agent ``i`` has and ``j`` has not, ``(name, index)``, beside what ``j`` has in its place.

    Raises:
        CheckError: the agents' parameters do not line up.
    """
    apart = inferred(host).apart
    if apart is None:
        raise CheckError("the agents' parameters do not line up")
    found = [(a, b) for a, b in zip(apart[i], apart[j], strict=True) if a != b]
    if any(part(host, a).shape != part(host, b).shape for a, b in found):
        raise CheckError("the agents' parameters do not line up")
    return found
