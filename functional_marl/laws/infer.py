"""Which agents' losses reach which elements of which parameter: sharing, found by gradients alone.

An element is an agent's where some input and some weights give the agent's loss a gradient on it: under the
module's own weights first, then under others, for sharing must outlast any training.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._sharing import Sharing
from functional_marl.laws.case import Case
from functional_marl.laws.host import AUTO, CheckError, Host, agents_of, kept, module_of

__all__ = ["Inferred", "Reached", "infer_sharing", "inferred"]

Agents = tuple[int, ...]


@dataclass(frozen=True)
class Reached:
    """One parameter: which sets of agents train how many of its elements.

    Args:
        name: of the parameter.
        shape: of the parameter.
        sets: ``{agents: number of elements that exactly these train}``, without those that nobody trains.
        at: ``{agents: the first such element}``.
        axis: the axis along which the sets change, as in a stack ``[n, *leaf]``; None where one set has all.
        along: the agents at each place of that axis; ``()`` at a place that nobody reaches.
    """

    name: str
    shape: tuple[int, ...]
    sets: Mapping[Agents, int]
    at: Mapping[Agents, tuple[int, ...]]
    axis: int | None
    along: tuple[Agents, ...]

    @property
    def slots(self) -> tuple[Agents, ...] | None:
        """The agents of each slot; None where the sets overlap, so that there are no slots."""
        members = [agent for agents in self.sets for agent in agents]
        return tuple(sorted(self.sets)) if len(members) == len(set(members)) else None

    def sharing(self, n_agents: int) -> Sharing | None:
        """The slot map, where each agent is in one slot."""
        slots = self.slots
        if slots is None or sum(map(len, slots)) != n_agents:
            return None
        return Sharing([next(k for k, agents in enumerate(slots) if i in agents) for i in range(n_agents)])

    def own(self, agent: int) -> tuple[Any, ...] | None:
        """The index of what the agent uses; None if it uses nothing of it."""
        if self.axis is None:
            return () if any(agent in agents for agents in self.sets) else None
        places = [k for k, agents in enumerate(self.along) if agent in agents]
        return (*(slice(None),) * self.axis, places[0]) if places else None

    @property
    def lines_up(self) -> bool:
        """Whether each agent's part is all of it or one place of the axis."""
        if self.axis is None:
            return len(self.sets) <= 1
        places = [agent for agents in self.along for agent in agents]
        return len(places) == len(set(places))

    def __str__(self) -> str:
        if not self.sets:
            return "no agent"
        shown = " ".join(_agents(agents) for agents in sorted(self.sets))
        return shown + (f" along axis {self.axis}" if self.axis is not None else "")


def _agents(agents: Sequence[int]) -> str:
    return "{" + ",".join(map(str, agents)) + "}"


@dataclass(frozen=True)
class Inferred:
    """What a module shares: one :class:`Reached` a parameter."""

    n_agents: int
    leaves: tuple[Reached, ...]

    def __getitem__(self, name: str) -> Reached:
        return next(leaf for leaf in self.leaves if leaf.name == name)

    @property
    def slots(self) -> dict[str, tuple[Agents, ...] | None]:
        """The slot map per parameter: the agents of each slot, None where slots overlap."""
        return {leaf.name: leaf.slots for leaf in self.leaves}

    @property
    def sharing(self) -> Any:
        """``"shared"``, ``"independent"``, a list of slots, or None where parameters differ or slots overlap.

        Parameters of one agent alone count for it: a list of modules, one an agent, is independent.
        """
        found = {agents for leaf in self.leaves for agents in leaf.sets}
        members = sorted(agent for agents in found for agent in agents)
        if members != list(range(self.n_agents)):
            return None
        if len(found) == 1:
            return "shared"
        if len(found) == self.n_agents:
            return "independent"
        order = sorted(found)
        return [next(k for k, agents in enumerate(order) if i in agents) for i in range(self.n_agents)]

    def claims(self) -> dict[str, Sharing]:
        """The finest slot maps that fit, a parameter; what no agent or one agent has says nothing."""
        if self.sharing is not None:
            whole = self.sharing
            one = {"shared": Sharing.shared, "independent": Sharing.independent}
            sharing = one[whole](self.n_agents) if isinstance(whole, str) else Sharing(whole)
            return {leaf.name: sharing for leaf in self.leaves}
        found: dict[str, Sharing] = {}
        for leaf in self.leaves:
            # Agents are together where the same sets have them.
            signs = [tuple(i in agents for agents in sorted(leaf.sets)) for i in range(self.n_agents)]
            order = list(dict.fromkeys(signs))
            found[leaf.name] = Sharing([order.index(sign) for sign in signs])
        return found

    @property
    def settled(self) -> bool:
        """Whether one sharing fits all, or each parameter that is reached: none looks shared by some alone."""
        return self.sharing is not None or all(leaf.sharing(self.n_agents) for leaf in self.leaves if leaf.sets)

    @property
    def apart(self) -> list[list[tuple[str, tuple[Any, ...]]]] | None:
        """For each agent the parts that it uses, ``(parameter, index)``; None where they do not line up."""
        if not all(leaf.lines_up for leaf in self.leaves):
            return None
        parts = [
            [(leaf.name, own) for leaf in self.leaves if (own := leaf.own(i)) is not None] for i in range(self.n_agents)
        ]
        return parts if len({len(own) for own in parts}) == 1 else None

    def tabulate(self) -> str:
        """A table: parameter, shape, who trains it."""
        width = max([len(leaf.name) for leaf in self.leaves] or [0])
        shapes = [str(list(leaf.shape)) for leaf in self.leaves]
        wide = max(map(len, shapes), default=0)
        rows = [
            f"{leaf.name:<{width}}  {shape:<{wide}}  {leaf}" for leaf, shape in zip(self.leaves, shapes, strict=True)
        ]
        return "\n".join([f"sharing of {self.n_agents} agents: {self.sharing or 'mixed'}", *rows])

    def __str__(self) -> str:
        return self.tabulate()


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
def gradients(s: Case, params: Mapping[str, Tensor]) -> list[list[Tensor | None]]:
    """For each agent's loss, its gradient with respect to each parameter."""
    rows: list[list[Tensor | None]] = []
    with _trainable(s.host.module):
        for output in s.outputs():
            loss = s.loss(output)
            found: Sequence[Tensor | None] = [None] * len(params)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
            rows.append(list(found))
    return rows


def _draws(host: Host, train: bool) -> Iterator[Case]:
    """Inputs for which agents who share see the same: equal inputs, then each other's in turn.

    A unit that is dead for one agent's input is then dead for all, and no sharing looks like less than it is. Large
    inputs of both signs wake the units behind frozen weights.
    """
    for seed in range(3):
        drawn = Case(host, rows=None, seed=seed, train=train).alike()
        yield drawn
        for scale in (30, -30) if any(leaf.is_floating_point() for leaf in drawn.leaves) else ():
            yield replace(drawn, leaves=tuple(x * scale if x.is_floating_point() else x for x in drawn.leaves))
    if host.n_agents <= 8:
        drawn = Case(host, seed=3, train=train)
        groups = sorted({host.group_of(i) for i in range(host.n_agents)})
        for turn in range(max(map(len, groups))):
            order = list(range(host.n_agents))
            for group in groups:
                for k, agent in enumerate(group):
                    order[agent] = group[(k + turn) % len(group)]
            yield drawn.taking(order)


def _redraws(host: Host, train: bool, masks: Mapping[str, Tensor]) -> Generator[Case]:
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
            case = Case(host, rows=None, seed=seed, train=train).alike()
            yield replace(case, leaves=tuple(map(_absolute, case.leaves))) if positive else case


def _absolute(leaf: Tensor) -> Tensor:
    return leaf.abs() if leaf.is_floating_point() else leaf


def inferred(host: Host, train: bool = False) -> Inferred:
    """What gradients say of a module; found once."""
    if ("inferred", train) not in host.facts:
        host.facts["inferred", train] = _infer(host, train)
    return host.facts["inferred", train]


def _infer(host: Host, train: bool) -> Inferred:
    if host.fault is not None:
        raise CheckError(f"the module raises on the example: {type(host.fault).__name__}: {host.fault}")
    params = host.params()
    masks = {name: torch.zeros((host.n_agents, *leaf.shape), dtype=torch.bool) for name, leaf in params.items()}
    for s in _draws(host, train):
        _mark(masks, s, params)
    found, quiet = _read(host, masks), 0
    with closing(_redraws(host, train, masks)) as redraws:
        for s in redraws:
            quiet += 1
            with suppress(Exception):  # weights that the module does not take say nothing
                if _mark(masks, s, params):
                    found, quiet = _read(host, masks), 0
            if quiet >= (8 if found.settled else 64):
                break
    return found


def _read(host: Host, masks: Mapping[str, Tensor]) -> Inferred:
    return Inferred(host.n_agents, tuple(_reached(name, mask) for name, mask in masks.items()))


def _mark(masks: Mapping[str, Tensor], s: Case, params: Mapping[str, Tensor]) -> bool:
    """Add what each agent's loss reaches in this case; whether that is new."""
    new = False
    for i, row in enumerate(gradients(s, params)):
        for name, gradient in zip(params, row, strict=True):
            if gradient is not None:
                reached = (gradient.nan_to_num() != 0).cpu() & ~masks[name][i]
                masks[name][i] |= reached
                new |= bool(reached.any())
    return new


def _reached(name: str, mask: Tensor) -> Reached:
    """From ``[n, *leaf]``, which agent reaches which element."""
    shape = tuple(mask.shape[1:])
    columns, which, counts = torch.unique(mask.flatten(1).T, dim=0, return_inverse=True, return_counts=True)
    agents: list[Agents] = [tuple(row.nonzero().flatten().tolist()) for row in columns]
    first = [int((which == k).nonzero()[0]) for k in range(len(agents))]
    found = [(who, int(count), place) for who, count, place in zip(agents, counts, first, strict=True) if who]
    found.sort()
    sets = {who: count for who, count, _ in found}
    at = {who: _unravel(place, shape) for who, _, place in found}
    axis, along = None, ()
    if len(sets) > 1:
        grid = which.reshape(shape)
        for k in range(len(shape)):
            along = tuple(_place(grid.select(k, place), agents) for place in range(shape[k]))
            if None not in along:
                axis = k
                break
    return Reached(name, shape, sets, at, axis, tuple(a or () for a in along) if axis is not None else ())


def _place(part: Tensor, agents: Sequence[Agents]) -> Agents | None:
    """The agents that alone reach a part of a parameter; None if several sets do."""
    found = [agents[k] for k in part.unique().tolist() if agents[k]]
    return None if len(found) > 1 else (*found, ())[0]


def _unravel(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        index.append(place % size)
        place //= size
    return tuple(reversed(index))


def infer_sharing(
    subject: nn.Module | tuple[Any, ...],
    *,
    n_agents: int | None = None,
    example: Any,
    agent_dim: Any = -2,
    out_agent_dim: Any = AUTO,
    kwargs: Mapping[str, Any] | None = None,
    groups: Mapping[str, int] | None = None,
    select: Callable[[Any], Any] | None = None,
    train: bool = False,
) -> Inferred:
    """Who shares what in a module from any library, by which agents' losses reach which elements.

    Trainable parameters are given other values for a while, for a unit that is dead now may be woken by training; no
    gradient is written, and all is put back.

    Args:
        subject: a module, called as ``module(*example)``; parameters may be stacked, listed, shared, in
            clusters. Or ``(net, params)`` of a :class:`functional_marl.Network`.
        n_agents: how many agents; a network, torchrl's and our classes say it themselves.
        example: inputs; only their shapes and kinds matter, but integers are picked from those it has.
        agent_dim, out_agent_dim, kwargs, groups, select: as in :func:`check`.
        train: ask in training.

    Raises:
        CheckError: the module does not run on the example, or agents are not where they are said to be.

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
    module = module_of(subject)
    host = Host(
        module,
        example,
        agents_of(module, n_agents),
        sharing=None,
        agent_dim=agent_dim,
        out_agent_dim=out_agent_dim,
        kwargs=kwargs or {},
        groups=groups,
        select=select,
    )
    return inferred(host, train)


def part(host: Host, where: tuple[str, tuple[Any, ...]]) -> Tensor:
    """A view of the elements that one agent uses of a parameter."""
    name, index = where
    return host.params()[name][index]


def pairs_of_parts(s: Case, i: int, j: int) -> list[tuple[Tensor, Tensor]]:
    """What agent ``i`` has and ``j`` has not, beside what ``j`` has in its place."""
    apart = inferred(s.host).apart
    if apart is None:
        raise CheckError("the agents' parameters do not line up")
    both = list(zip(apart[i], apart[j], strict=True))
    found = [(part(s.host, a), part(s.host, b)) for a, b in both if a != b]
    if any(a.shape != b.shape for a, b in found):
        raise CheckError("the agents' parameters do not line up")
    return found
