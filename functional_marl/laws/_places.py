"""Where a leaf of the inputs or outputs has which agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from functional_marl.laws._subject import CheckError

__all__ = ["PAIRS", "MisplacedAgents", "Place"]

PAIRS = "pairs"  # in agent_dim=: the last two axes are agents by agents, as of an adjacency [*B, n, n]


class MisplacedAgents(CheckError):
    """An output does not have the agents where it had them for the example."""


@dataclass(frozen=True)
class Place:
    """A leaf of the inputs or outputs, and where it has which agents.

    Args:
        name: of the leaf.
        members: the agents that it has.
        dim: their axis; None: all see it whole.
        pairs: whether the next axis has them, too, as of an adjacency.
    """

    name: str
    members: tuple[int, ...]
    dim: int | None
    pairs: bool = False

    def of(self, agent: int, leaf: Tensor) -> Tensor | None:
        """The part of one agent; None if it has none.

        Raises:
            MisplacedAgents: the agents are not where they were.
        """
        if self.dim is None:
            return leaf
        if not (self.dim < leaf.ndim and leaf.shape[self.dim] == len(self.members)):
            raise MisplacedAgents(
                f"{self.name}: expected {len(self.members)} agents at dim {self.dim}, got shape {list(leaf.shape)}"
            )
        return leaf.select(self.dim, self.members.index(agent)) if agent in self.members else None

    def taking(self, leaf: Tensor, agents: Sequence[int]) -> Tensor:
        """The leaf in which agent ``i`` has what agent ``agents[i]`` had."""
        if self.dim is None:
            return leaf
        rows = torch.tensor([self.members.index(agents[i]) for i in self.members], device=leaf.device)
        taken = leaf.index_select(self.dim, rows)
        return taken.index_select(self.dim + 1, rows) if self.pairs else taken

    def with_agent(self, leaf: Tensor, agent: int, other: Tensor) -> Tensor:
        """The leaf with one agent's part from another leaf; what belongs to pairs of agents stays."""
        if self.dim is None or self.pairs or agent not in self.members:
            return leaf
        changed, k = leaf.clone(), self.members.index(agent)
        changed.select(self.dim, k).copy_(other.select(self.dim, k))
        return changed
