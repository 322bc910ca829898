"""A call of a module that is not made yet: its inputs, and how to change them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten
from functional_marl.laws._module_under_test import ModuleUnderTest

__all__ = ["ModuleCase"]


@dataclass(frozen=True)
class ModuleCase:
    """A module with inputs.

    Args:
        host: the module and what is claimed of it.
        pair: the two agents that laws compare.
        size: the size of every batch axis; None: that of the example.
        seed: what inputs are drawn from.
        train: whether calls are in training.
        leaves: the inputs, as the module takes them; drawn if not given.
        numbers: parameters and buffers that calls have instead of the module's own.
    """

    host: ModuleUnderTest
    pair: tuple[int, int] = (0, 0)
    size: int | None = None
    seed: int = 0
    train: bool = False
    leaves: tuple[Tensor, ...] = ()
    numbers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if not self.leaves:
            object.__setattr__(self, "leaves", tuple(self._drawn()))

    def __repr__(self) -> str:
        case = f"agents={self.pair}, rows={self.size}, seed={self.seed}"
        train = ", train=True" if self.train else ""
        return f"module_subject(module, {self.host.given}, {case}{train})"

    @property
    def n(self) -> int:
        """The number of agents."""
        return self.host.n_agents

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of the batch axes."""
        sizes = [leaf.shape for leaf, has in zip(self.leaves, self.host.batched, strict=True) if has]
        return tuple(sizes[0][: self.host.batch_dims]) if sizes else ()

    # --- inputs -------------------------------------------------------------------------------------------

    def _drawn(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        host = self.host
        if host.draw is not None:
            example = host.draw(generator)
            args: tuple[Any, ...] = example if type(example) is tuple else (example,)
            drawn = host.tensors_of((args, dict(host.claims.kwargs)))
        else:
            drawn = [_like(leaf, generator) for leaf in host.leaves]
        if self.size is None:
            return drawn
        index = (slice(self.size),) * host.batch_dims
        return [leaf[index].contiguous() if has else leaf for leaf, has in zip(drawn, host.batched, strict=True)]

    def whole(self) -> Self:
        """The same case with the batch of the example, drawn from the seed."""
        return replace(self, size=None, leaves=())

    def redrawn(self, seed: int) -> Self:
        """The same case with other inputs."""
        return replace(self, leaves=replace(self, seed=seed, leaves=()).leaves)

    def at(self, *index: Any) -> Self:
        """The same case with these rows of the batch axes."""
        having = zip(self.leaves, self.host.batched, strict=True)
        return replace(self, leaves=tuple(leaf[index] if has else leaf for leaf, has in having))

    def rows(self, axis: int, start: int, count: int) -> Self:
        """A piece of a batch axis."""
        return self.at(*(slice(None),) * axis, slice(start, start + count))

    def taking(self, agents: Sequence[int], *, joint_only: bool = False) -> Self:
        """Agent ``i`` gets what agent ``agents[i]`` got; both have inputs of one form."""

        pairs = zip(self.host.places, self.leaves, strict=True)
        return replace(self, leaves=tuple(place.taking(leaf, agents) for place, leaf in pairs))

    def with_agent(self, agent: int, other: ModuleCase) -> Self:
        """The same inputs, but for one agent's, which are those of the other case."""

        triples = zip(self.host.places, self.leaves, other.leaves, strict=True)
        return replace(self, leaves=tuple(place.with_agent(leaf, agent, new) for place, leaf, new in triples))

    def alike(self) -> Self:
        """Every agent gets what the first of its group got."""
        return self.taking([self.host.group_of(i)[0] for i in range(self.n)])

    def joint_inputs_alone(self) -> Self:
        """Which inputs are joint is not known: all are taken for joint ones."""
        return self

    def scaled(self, factor: float) -> Self:
        """Float inputs times a factor."""
        return replace(self, leaves=tuple(x * factor if x.is_floating_point() else x for x in self.leaves))

    def wanting_gradients(self) -> Self:
        """The same inputs, as leaves of autograd where they are floats."""
        return replace(
            self, leaves=tuple(leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in self.leaves)
        )

    def seen_by(self, agent: int) -> tuple[Tensor, ...]:
        """One agent's own inputs."""
        found = (place.of(agent, leaf) for place, leaf in zip(self.host.places, self.leaves, strict=True))
        return tuple(leaf for leaf in found if leaf is not None)

    # --- calls --------------------------------------------------------------------------------------------

    def outputs(self, *, train: bool | None = None, fold: int = 0, others: int | None = None) -> list[Tree]:
        """Each agent's outputs: the leaves that it is in, its own part of each.

        ``others`` is the seed of Python's and numpy's generators, where it is not that of torch's.
        """
        return self.by_agent(self._run(train, fold, others))

    def own_parts(self, outputs: list[Tree]) -> list[Tree]:
        """Of each agent's outputs those with an axis of agents, where there are such."""
        places = self.host.out_places
        own = [[p.dim is not None for p in places if p.dim is None or agent in p.members] for agent in range(self.n)]
        return [list(itertools.compress(mine, kept)) for mine, kept in zip(outputs, own, strict=True)]

    def trained(self) -> tuple[list[Tree], dict[str, Tensor]]:
        """Each agent's outputs of a call in training, and the buffers afterwards."""
        after: dict[str, Tensor] = {}
        return self.by_agent(self._run(True, 0, None, after)), after

    def _run(self, train: bool | None, fold: int, others: int | None, after: dict[str, Tensor] | None = None) -> Tree:
        train = self.train if train is None else train
        seed = self.seed + 7919 * fold
        return self.host.run(self.leaves, train=train, seed=seed, numbers=self.numbers, after=after, others=others)

    def by_agent(self, output: Any) -> list[Tree]:
        """Outputs taken apart."""
        leaves = flatten(output)[0]
        parts = [
            [place.of(i, leaf) for place, leaf in zip(self.host.out_places, leaves, strict=True)] for i in range(self.n)
        ]
        return [[leaf for leaf in own if leaf is not None] for own in parts]


def _like(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal floats, fair truth values, integers from those that the example has."""
    if leaf.is_floating_point():
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
    if leaf.dtype is torch.bool:
        return torch.randint(2, leaf.shape, generator=generator).bool().to(leaf.device)
    picked = torch.randint(max(leaf.numel(), 1), leaf.shape, generator=generator)
    return leaf.detach().flatten().cpu()[picked].to(leaf.device) if leaf.numel() else leaf
