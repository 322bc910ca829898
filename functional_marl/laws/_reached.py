"""What inference finds: which sets of agents have which elements of a leaf, and the slot maps that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_marl._sharing import Sharing

__all__ = ["Inferred", "Reached", "reached"]

Agents = tuple[int, ...]


@dataclass(frozen=True)
class Reached:
    """One parameter or buffer: which sets of agents train how many of its elements.

    Args:
        name: of the parameter or buffer.
        shape: of the parameter or buffer.
        sets: ``{agents: number of elements that exactly these train}``, without those that nobody trains.
        at: ``{agents: the first such element}``.
        axis: the axis along which the sets change, as in a stack ``[n, *leaf]``; None where one set has all.
        along: the agents at each place of that axis; ``()`` at a place that nobody reaches.
        is_buffer: whether it is a buffer, which agents write and read, and no parameter.
    """

    name: str
    shape: tuple[int, ...]
    sets: Mapping[Agents, int]
    at: Mapping[Agents, tuple[int, ...]]
    axis: int | None
    along: tuple[Agents, ...]
    is_buffer: bool = False

    @property
    def tells_apart(self) -> bool:
        """Whether it is what ids are: one place of a matrix or vector for each agent or type, and the others for all.

        So are the rows of a learned embedding, the columns that one-hot ids meet in the first layer, and a vector of
        one agent alone.
        """
        every = sorted({agent for agents in self.along for agent in agents})
        own = sorted(agent for agents in self.along if len(agents) < len(every) for agent in agents)
        one_vector = self.axis is None and len(self.shape) == 1
        return one_vector or (self.axis is not None and len(self.shape) <= 2 and own == every)

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
    """What a module shares: one :class:`Reached` a parameter, and a buffer that training writes.

    Args:
        n_agents: the number of agents.
        leaves: which agents train which elements.
        constants: which agents read which elements of what no training moves.
    """

    n_agents: int
    leaves: tuple[Reached, ...]
    constants: tuple[Reached, ...] = ()

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
        every = (*self.leaves, *self.constants)
        if not all(leaf.lines_up for leaf in every):
            return None
        parts = [[(leaf.name, own) for leaf in every if (own := leaf.own(i)) is not None] for i in range(self.n_agents)]
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


def reached(name: str, mask: Tensor) -> Reached:
    """From ``[n, *leaf]``, which agent reaches which element."""
    shape = tuple(mask.shape[1:])
    rows = mask.reshape(len(mask), mask[0].numel())  # also of a leaf without axes
    columns, which, counts = torch.unique(rows.T, dim=0, return_inverse=True, return_counts=True)
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
