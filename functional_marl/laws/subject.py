"""What laws are asked of: something with agents, and the operations that are under test."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._apply import apply
from functional_marl._groups.group_data import group_agents, ungroup_agents
from functional_marl._groups.group_map import group_map
from functional_marl._init_params import init_params
from functional_marl._init_state import init_state
from functional_marl._layout.agent_ids import with_agent_ids
from functional_marl._network import Network, network
from functional_marl._parameters import (
    agent_module,
    agent_params,
    combine,
    partition,
    reshare,
    stack_agents,
    unstack_agents,
)
from functional_marl._pytrees import Params, Tree, flatten, tree_map
from functional_marl._sharing import Sharing, resolve
from functional_marl.laws.law import broken
from functional_marl.random import fold_in, split
from functional_marl.random import key as make_key

__all__ = ["LIBRARY", "WORDS", "Ops", "Subject"]

Op = Callable[..., Any]


def _copied(net: Network) -> Network:
    return pickle.loads(pickle.dumps(net))


# The facade needs tensordict, which takes a second to import: where it is asked for.


def _facade(kind: str, n_agents: int, lazy: bool, **words: Any) -> nn.Module:
    from functional_marl import nn as fmnn

    if kind == "mlp":
        return fmnn.MultiAgentMLP(None if lazy else 4, 2, n_agents, **words)
    return fmnn.MultiAgentConvNet(n_agents, in_features=None if lazy else 2, **words)


def _critic(groups: Sequence[tuple[int, int]], detached: Sequence[int], share_params: bool) -> nn.Module:
    from functional_marl import nn as fmnn

    specs = {
        f"g{k}": fmnn.CrossCriticGroupSpec(features, n, (f"g{k}", "seen"), (f"g{k}", "value"))
        for k, (n, features) in enumerate(groups)
    }
    how: dict[str, Any] = {"d_model": 5, "trunk_depth": 1, "trunk_cells": 6}
    return fmnn.CrossGroupCritic(specs, **how, share_params=share_params, detach_groups=[f"g{k}" for k in detached])


def _convert_state_dict(*args: Any, **how: Any) -> dict[str, Any]:
    from functional_marl import nn as fmnn

    return fmnn.convert_state_dict(*args, **how)


def _from_functional(*args: Any, **how: Any) -> nn.Module:
    from functional_marl import nn as fmnn

    return fmnn.from_functional(*args, **how)


@dataclass(frozen=True)
class Ops:
    """The operations that the laws speak of. A mutant has a wrong one in the place of one."""

    network: Op = network
    apply: Op = apply
    init_params: Op = init_params
    init_state: Op = init_state
    stack_agents: Op = stack_agents
    unstack_agents: Op = unstack_agents
    agent_params: Op = agent_params
    agent_module: Op = agent_module
    reshare: Op = reshare
    partition: Op = partition
    combine: Op = combine
    resolve: Op = resolve
    key: Op = make_key
    split: Op = split
    fold_in: Op = fold_in
    with_agent_ids: Op = with_agent_ids
    group_map: Op = group_map
    group_agents: Op = group_agents
    ungroup_agents: Op = ungroup_agents
    copied: Op = _copied  # through pickle
    facade: Op = _facade
    critic: Op = _critic
    convert_state_dict: Op = _convert_state_dict
    from_functional: Op = _from_functional
    optimizer: Op = torch.optim.Adam


LIBRARY = Ops()


@dataclass(frozen=True)
class Subject:
    """Something with agents: what it shares, how it is called, and inputs to call it with.

    Of a module from elsewhere ``ops.apply`` is a function that calls it, ``net`` anything with the first
    fields of a :class:`Network`, and ``params`` None where they cannot be reached; laws that need more
    say so in ``where``.

    Args:
        name: what failures call it.
        net: has ``n_agents``, ``sharing`` (leaf -> slot map), ``state_sharing``, ``centralized``.
        params: ``{leaf: [S, *leaf]}``, or None.
        inputs: positional inputs with the agents in front, ``[n, *B, *leaf]``, where ``dims`` has an axis.
        dims: where the network wants the agents: an axis for each positional input, and one for all
            keyword inputs; None is seen whole by every agent.
        out_dim: where outputs carry the agents.
        kwargs: keyword inputs, as ``inputs``.
        state: buffers ``{leaf: [S, *leaf]}``.
        batch: the sizes of the batch axes ``*B``.
        least_batch_dims: how many batch axes one agent's module needs.
        traits: words the subject answers to beyond what can be seen, such as "random" and "rows apart".
        ways: the strategies that can evaluate it, "auto" first.
        build: builds one agent's module anew, or None.
        seed: what laws draw from.
        ops: the operations under test.
    """

    name: str
    net: Any
    params: Params | None
    inputs: tuple[Tree, ...]
    dims: tuple[int | None, ...]
    out_dim: int = 0
    kwargs: Mapping[str, Tree] = field(default_factory=dict[str, Tree])
    state: Params = field(default_factory=dict[str, Tensor])
    batch: tuple[int, ...] = ()
    least_batch_dims: int = 0
    traits: frozenset[str] = frozenset()
    ways: tuple[str, ...] = ("auto",)
    build: Callable[[], nn.Module] | None = None
    seed: int = 0
    ops: Ops = LIBRARY

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)  # hypothesis, too, prints the call that makes it again

    def answers(self, word: str) -> bool:
        """Whether a word of :data:`WORDS` or a trait is true of this subject."""
        return WORDS[word](self) if word in WORDS else word in self.traits

    # --- who shares ---------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """The number of agents."""
        return self.net.n_agents

    @property
    def own(self) -> Params:
        """The parameters, for laws that reach them."""
        return self.params or {}

    @property
    def slots(self) -> dict[str, Sharing]:
        """The slot map of every leaf, parameters and buffers."""
        return {**self.net.sharing, **self.net.state_sharing}

    def classes(self) -> list[list[int]]:
        """The agents that share everything, together."""
        found: dict[tuple[int, ...], list[int]] = {}
        for agent in range(self.n):
            found.setdefault(tuple(sharing[agent] for sharing in self.slots.values()), []).append(agent)
        return list(found.values())

    def of_agent(self, agent: int, params: Mapping[str, Tensor] | None = None) -> Params:
        """One agent's parameters by the definition of sharing: ``P[leaf][slot of the agent]``."""
        params = self.own if params is None else params
        return {name: leaf[self.slots[name][agent]] for name, leaf in params.items()}

    def tiled(self) -> Subject:
        """The same agents, each with a copy of everything: independent."""

        def rows(leaves: Mapping[str, Tensor]) -> Params:
            return {name: leaf[list(self.slots[name])] for name, leaf in leaves.items()}

        net = self.net.replace(sharing="independent")
        return replace(self, net=net, params=rows(self.own), state=rows(self.state))

    # --- what the laws draw -------------------------------------------------------------------------------

    def rng(self) -> random.Random:
        """Python's random numbers under the seed."""
        return random.Random(self.seed)

    def key(self, fold: int = 0) -> Tensor:
        """A key under the seed."""
        return make_key((self.seed << 8) + fold)

    def generator(self) -> torch.Generator:
        """torch's random numbers under the seed."""
        return torch.Generator().manual_seed(self.seed)

    def permutation(self) -> list[int]:
        """A permutation of the agents, not the identity where there are two or more."""
        return _shuffled(list(range(self.n)), self.rng())

    def cluster_permutation(self) -> list[int]:
        """A permutation that leaves each agent among those that it shares everything with."""
        order = list(range(self.n))
        for members in self.classes():
            for agent, other in zip(members, _shuffled(members, self.rng()), strict=True):
                order[agent] = other
        return order

    # --- calls --------------------------------------------------------------------------------------------

    def taking(self, agents: Sequence[int]) -> Subject:
        """Agent ``i`` gets what agent ``agents[i]`` got as input."""

        def take(tree: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(lambda leaf: leaf[list(agents)], tree)

        inputs = tuple(take(tree, dim) for tree, dim in zip(self.inputs, self.dims[:-1], strict=True))
        return replace(self, inputs=inputs, kwargs=take(dict(self.kwargs), self.dims[-1]))

    def keeping(self, agents: Sequence[int]) -> Subject:
        """Only these agents, with their slots and inputs."""
        slots = {name: Sharing([s[i] for i in agents], s.n_slots) for name, s in self.slots.items()}
        net = self.net.replace(n_agents=len(agents), sharing=slots)
        return replace(self.taking(agents), net=net)

    def placed(self) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Inputs as the network wants them: ``(args, kwargs)`` with the agents at ``dims``."""

        def place(tree: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(lambda leaf: leaf.movedim(0, dim), tree)

        args = tuple(place(tree, dim) for tree, dim in zip(self.inputs, self.dims[:-1], strict=True))
        return args, place(dict(self.kwargs), self.dims[-1])

    def call(self, **how: Any) -> Any:
        """What ``ops.apply`` returns."""
        args, kwargs = self.placed()
        if self.state and "state" not in how:
            how["state"] = self.state
        return self.ops.apply(self.net, self.own, *args, kwargs=kwargs, **how)

    def outputs(self, **how: Any) -> list[Tree]:
        """Each agent's output tree, of leaves ``[*B, ...]``."""
        return self.by_agent(self.call(**how))

    def trained(self, **how: Any) -> tuple[list[Tree], Params]:
        """Each agent's output and the new state, of a call in training."""
        outputs, state = self.call(train=True, mutable=True, **how)
        return self.by_agent(outputs), state

    def by_agent(self, outputs: Tree) -> list[Tree]:
        """Outputs with the agents at ``out_dim`` taken apart."""
        for leaf in flatten(outputs)[0]:
            axes = isinstance(leaf, Tensor) and -leaf.ndim <= self.out_dim < leaf.ndim
            if isinstance(leaf, Tensor) and (not axes or leaf.shape[self.out_dim] != self.n):
                broken(f"outputs: expected {self.n} agents at dim {self.out_dim}, got shape {list(leaf.shape)}")
        return [
            tree_map(lambda leaf, i=i: leaf.select(self.out_dim, i) if isinstance(leaf, Tensor) else leaf, outputs)
            for i in range(self.n)
        ]

    def seen_by(self, agent: int) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """What one agent's module gets: its own rows, or all first inputs merged if centralized."""

        def see(tree: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(lambda leaf: leaf[agent].clone(), tree)

        args = [see(tree, dim) for tree, dim in zip(self.inputs, self.dims[:-1], strict=True)]
        if self.net.centralized and self.dims[0] is not None:
            b = len(self.batch)  # [n, *B, F, ...] -> [*B, n, F, ...] -> [*B, n * F, ...]
            args[0] = tree_map(lambda leaf: leaf.movedim(0, b).flatten(b, b + 1), self.inputs[0])
        return tuple(args), see(dict(self.kwargs), self.dims[-1])

    def alone(self, agent: int) -> Tree:
        """One agent's output from an ordinary module: what every evaluation must give."""
        args, kwargs = self.seen_by(agent)
        module = self.ops.agent_module(self.net, self.own, agent, self.state if self.state else None)
        return module(*args, **kwargs)

    def loss(self, outputs: Tree) -> Tensor:
        """A generic smooth number made of all leaves of a tree: no weight of it is zero."""
        weights, total = self.generator(), torch.zeros((), dtype=torch.float64)
        for leaf in flatten(outputs)[0]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                drawn = torch.rand(leaf.shape, generator=weights, dtype=torch.float64) + 0.5
                total = total + (drawn.to(leaf.device) * (leaf + leaf * leaf)).sum()
        return total

    def training_loss(self, outputs: list[Tree]) -> Tensor:
        """The sum of all agents' losses, with different weights for each."""
        return torch.stack([(i + 1) * self.loss(output) for i, output in enumerate(outputs)]).sum()


def _shuffled(given: list[int], rng: random.Random) -> list[int]:
    """A permutation without the identity where there is a choice."""
    shuffled = list(given)
    rng.shuffle(shuffled)
    return shuffled if shuffled != given else [*given[1:], *given[:1]]


def _spare(subject: Subject) -> bool:
    return any(sharing.unused() for sharing in subject.slots.values())


def _floats(subject: Subject) -> bool:
    return subject.dims[0] is not None and any(leaf.is_floating_point() for leaf in flatten(subject.inputs[0])[0])


WORDS: dict[str, Callable[[Subject], bool]] = {
    "shared": lambda s: len(s.classes()) == 1,
    "independent": lambda s: all(len(set(sharing)) == s.n for sharing in s.slots.values()),
    "a cluster": lambda s: any(len(members) > 1 for members in s.classes()),
    "several agents": lambda s: s.n > 1,
    "one agent": lambda s: s.n == 1,
    "local": lambda s: not s.net.centralized,
    "centralized": lambda s: s.net.centralized,
    "a batch": lambda s: bool(s.batch),
    "spare slots": _spare,
    "no spare slots": lambda s: not _spare(s),
    "float inputs": _floats,
    "no mask of agents": lambda s: "masks agents" not in s.traits,
    "wide inputs": lambda s: len(s.inputs) == 1 and isinstance(s.inputs[0], Tensor) and s.inputs[0].shape[-1] > s.n,
    "parameters": lambda s: s.params is not None,
    "settings": lambda s: isinstance(s.net, Network),
    "factory": lambda s: s.build is not None,
    "buffers": lambda s: bool(s.net.state_sharing),
}
