"""A call of a module from elsewhere that waits to be made: its inputs, drawn, and how to change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from functional_marl._pytrees import flatten
from functional_marl.laws.host import Host, Place

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A module with inputs.

    Args:
        host: the module and what is said of it.
        pair: the two agents that the law looks at first.
        rows: the size of every batch axis; None: that of the example.
        seed: what inputs are drawn from.
        train: whether calls are in training.
        leaves: the inputs, as the module takes them; drawn if not given.
    """

    host: Host
    pair: tuple[int, int] = (0, 0)
    rows: int | None = None
    seed: int = 0
    train: bool = False
    leaves: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.leaves:
            object.__setattr__(self, "leaves", tuple(self._drawn()))

    def __repr__(self) -> str:
        case = f"pair={self.pair}, rows={self.rows}, seed={self.seed}"
        return f"foreign({self.host.words}, {case}{', train=True' if self.train else ''})"

    # --- inputs -------------------------------------------------------------------------------------------

    def _drawn(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        host = self.host
        if host.draw is not None:
            example = host.draw(generator)
            args: tuple[Any, ...] = example if type(example) is tuple else (example,)
            drawn: list[Tensor] = flatten((args, dict(host.kwargs)))[0]
        else:
            drawn = [_like(leaf, generator) for leaf in host.leaves]
        if self.rows is None:
            return drawn
        index = (slice(self.rows),) * host.rows
        return [leaf[index].contiguous() if has else leaf for leaf, has in zip(drawn, host.batched, strict=True)]

    def redrawn(self, seed: int) -> Self:
        """The same case with other inputs."""
        return replace(self, seed=seed, leaves=())

    def at(self, *index: Any) -> Self:
        """The same case with these rows of the batch axes."""
        having = zip(self.leaves, self.host.batched, strict=True)
        return replace(self, leaves=tuple(leaf[index] if has else leaf for leaf, has in having))

    def taking(self, agents: Sequence[int]) -> Self:
        """Agent ``i`` gets what agent ``agents[i]`` got; both have inputs of one form."""

        def take(place: Place, leaf: Tensor) -> Tensor:
            if place.dim is None:
                return leaf
            rows = [place.members.index(agents[i]) for i in place.members]
            return leaf.index_select(place.dim, torch.tensor(rows, device=leaf.device))

        return replace(self, leaves=tuple(map(take, self.host.places, self.leaves)))

    def with_agent(self, agent: int, other: Case) -> Self:
        """The same inputs, but for one agent's, which are those of the other case."""

        def put(place: Place, leaf: Tensor, new: Tensor) -> Tensor:
            if place.dim is None or agent not in place.members:
                return leaf
            changed, k = leaf.clone(), place.members.index(agent)
            changed.select(place.dim, k).copy_(new.select(place.dim, k))
            return changed

        return replace(self, leaves=tuple(map(put, self.host.places, self.leaves, other.leaves)))

    def alike(self) -> Self:
        """Every agent gets what the first of its group got."""
        return self.taking([self.host.group_of(i)[0] for i in range(self.n)])

    def wanting_gradients(self) -> Self:
        """The same inputs, as leaves of autograd where they are floats."""
        return replace(
            self, leaves=tuple(leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in self.leaves)
        )

    def seen_by(self, agent: int) -> tuple[Tensor, ...]:
        """One agent's own inputs."""
        found = (place.of(agent, leaf) for place, leaf in zip(self.host.places, self.leaves, strict=True))
        return tuple(leaf for leaf in found if leaf is not None)

    @property
    def n(self) -> int:
        """The number of agents."""
        return self.host.n_agents

    # --- calls --------------------------------------------------------------------------------------------

    def outputs(self, *, train: bool | None = None, seed: int | None = None) -> list[list[Tensor]]:
        """Each agent's outputs: the leaves that it is in, its own part of each."""
        train, seed = self.train if train is None else train, self.seed if seed is None else seed
        return self.by_agent(self.host.run(self.leaves, train=train, seed=seed))

    def by_agent(self, output: Any) -> list[list[Tensor]]:
        """Outputs taken apart."""
        leaves = flatten(output)[0]
        parts = [
            [place.of(i, leaf) for place, leaf in zip(self.host.out_places, leaves, strict=True)] for i in range(self.n)
        ]
        return [[leaf for leaf in own if leaf is not None] for own in parts]

    def loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """A generic smooth number made of all float leaves: no weight of it is zero."""
        weights, total = torch.Generator().manual_seed(self.seed), torch.zeros((), dtype=torch.float64)
        for leaf in outputs:
            if leaf.is_floating_point():
                drawn = torch.rand(leaf.shape, generator=weights, dtype=torch.float64) + 0.5
                total = total + (drawn.to(leaf.device) * (leaf + leaf * leaf)).sum().to(total.device)
        return total

    def training_loss(self, outputs: Sequence[Sequence[Tensor]]) -> Tensor:
        """The sum of all agents' losses, with different weights for each."""
        return torch.stack([(i + 1) * self.loss(output) for i, output in enumerate(outputs)]).sum()


def _like(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal floats, coins for truth values, integers from those that the example has."""
    if leaf.is_floating_point():
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
    if leaf.dtype is torch.bool:
        return torch.randint(2, leaf.shape, generator=generator).bool().to(leaf.device)
    picked = torch.randint(max(leaf.numel(), 1), leaf.shape, generator=generator)
    return leaf.detach().flatten().cpu()[picked].to(leaf.device) if leaf.numel() else leaf
