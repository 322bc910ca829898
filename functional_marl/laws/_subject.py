"""What laws are checked on: something with agents, inputs and numbers, which can be called and changed.

There are two kinds: our own ``(net, params)`` (:mod:`functional_marl.laws._network_subject`), and any module from any
library (:mod:`functional_marl.laws._module_subject`). A law is written once, in the operations below. A subject is a
value: every change gives another subject, and the network beneath is left as it was.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten
from functional_marl._sharing import Sharing
from functional_marl.random import key as make_key

__all__ = ["CheckError", "Gradients", "InputGradients", "Subject", "generic_loss"]

# From a loss to its gradient by name: of every parameter, or for each agent of every input of its own.
Gradients = Callable[[Tensor], dict[str, Tensor]]
InputGradients = Callable[[Tensor], list[dict[str, Tensor]]]


class CheckError(ValueError):
    """A check cannot run: the module does not run, or what was claimed does not fit it."""


class Subject(ABC):
    """Something with agents: who shares what, how it is called, and inputs to call it with.

    Outputs and inputs are trees of tensors, one an agent: the leaves that belong to the agent, and those that belong
    to all.
    """

    seed: int
    train: bool = False  # whether calls are in training unless a law says otherwise

    # --- what is known of it ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of agents."""

    @property
    @abstractmethod
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of the batch axes."""

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, Sharing]:
        """Who shares what: the slot map of every leaf."""

    @abstractmethod
    def kind(self, agent: int) -> object:
        """What agents must have in common to take each other's place: the form of their inputs."""

    @property
    @abstractmethod
    def agents(self) -> Sequence[int]:
        """The agents that laws compare in this case, two or more where there are so many."""

    @property
    @abstractmethod
    def centralized(self) -> bool:
        """Whether each agent's network sees all agents' inputs."""

    @property
    @abstractmethod
    def repeatable(self) -> bool:
        """Whether a call gives the same again, under any seed."""

    @property
    @abstractmethod
    def draws_in_training(self) -> bool:
        """Whether outputs of training depend on the seed."""

    @property
    @abstractmethod
    def known_alone(self) -> bool:
        """Whether :meth:`alone` knows the network of one agent."""

    @property
    @abstractmethod
    def inputs_are_float(self) -> bool:
        """Whether agents have float inputs."""

    # What our own networks have anyway, and modules may not have.

    @property
    def fault(self) -> BaseException | None:
        """What a call of the example raises."""
        return None

    @property
    def gives_numbers(self) -> bool:
        """Whether outputs hold no NaN."""
        return True

    @property
    def has_agents_in_outputs(self) -> bool:
        """Whether outputs have an axis of agents."""
        return True

    @property
    def trains(self) -> bool:
        """Whether some parameter gets a gradient from some agent."""
        return True

    @property
    def carries_gradients(self) -> bool:
        """Whether some output carries a gradient of inputs."""
        return True

    @property
    def lines_up(self) -> bool:
        """Whether each agent's parameters have a counterpart in every other's."""
        return True

    @property
    def copies(self) -> bool:
        """Whether it can be copied to another dtype."""
        return True

    @property
    def hears(self) -> Sequence[set[int]]:
        """For each agent those whose inputs may change its outputs, itself included."""
        every = set(range(self.n))
        return [every if self.centralized else {agent} for agent in range(self.n)]

    @property
    def responds(self) -> bool:
        """Whether outputs are known to depend on inputs, in every case."""
        return False

    @property
    def tells_agents_apart(self) -> bool:
        """Whether it knows agents by ids of their own, or by their place in a graph."""
        return False

    def classes(self) -> list[list[int]]:
        """The agents that share everything and can take each other's place, together."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for agent in range(self.n):
            slots = tuple(sharing[agent] for sharing in self.slots.values())
            found.setdefault((self.kind(agent), *slots), []).append(agent)
        return list(found.values())

    def pairs(self) -> list[tuple[int, int]]:
        """The ordered pairs of different agents that laws compare in this case."""
        return [(i, j) for i in self.agents for j in self.agents if i != j]

    def share_nothing(self, i: int, j: int) -> bool:
        """Whether two agents have no slot in common."""
        return all(sharing[i] != sharing[j] for sharing in self.slots.values())

    # --- what laws draw -----------------------------------------------------------------------------------

    def rng(self) -> random.Random:
        """Python's random numbers under the seed."""
        return random.Random(self.seed)

    def key(self, fold: int = 0) -> Tensor:
        """A key under the seed."""
        return make_key((self.seed << 8) + fold)

    @abstractmethod
    def permutation(self) -> list[int]:
        """A permutation of the agents that can take each other's place, not the identity where there is a choice."""

    @abstractmethod
    def cluster_permutation(self) -> list[int]:
        """A permutation that leaves each agent among those that it shares everything with."""

    # --- other inputs -------------------------------------------------------------------------------------

    @abstractmethod
    def redrawn(self, seed: int) -> Self:
        """The same with other inputs."""

    @abstractmethod
    def taking(self, agents: Sequence[int], *, joint_only: bool = False) -> Self:
        """Agent ``i`` gets what agent ``agents[i]`` got; ``joint_only``: of what centralized networks see jointly."""

    @abstractmethod
    def with_agent(self, agent: int, other: Any) -> Self:
        """The same inputs, but for one agent's, which are those of the other subject."""

    @abstractmethod
    def joint_inputs_alone(self) -> Self:
        """Inputs that centralized networks do not see jointly, but each agent its own, are made equal."""

    @abstractmethod
    def rows(self, axis: int, start: int, count: int) -> Self:
        """A piece of a batch axis."""

    @abstractmethod
    def watching_inputs(self) -> tuple[Self, InputGradients]:
        """The same with inputs that want gradients, and from a loss to each agent's gradients by name of the input."""

    @abstractmethod
    def is_joint(self, name: str) -> bool:
        """Whether an input, by its name in gradients, is one that centralized networks see jointly."""

    # --- other numbers ------------------------------------------------------------------------------------

    @abstractmethod
    def with_numbers_of(self, other: Any) -> Self:
        """The same inputs with the parameters and buffers of another subject of this network."""

    @abstractmethod
    def exchanging(self, agents: Sequence[int]) -> Self:
        """Agent ``i`` gets the parameters and buffers that agent ``agents[i]`` had.

        Raises:
            CheckError: the agents' numbers do not line up.
        """

    @abstractmethod
    def watching_parameters(self) -> tuple[Self, Gradients]:
        """The same with parameters that want gradients, and from a loss to its gradient, zero where there is none."""

    @abstractmethod
    def stepped(self, loss: Callable[[list[Tree]], Tensor]) -> Self:
        """The subject after a step of training on a loss of all agents' outputs: parameters and buffers."""

    @abstractmethod
    def in_kind(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same with parameters, buffers and inputs of another device and dtype.

        Raises:
            CheckError: it cannot be moved there.
        """

    # --- calls --------------------------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, *, train: bool | None = None, fold: int = 0) -> list[Tree]:
        """Each agent's outputs; randomness is that of the seed and ``fold``."""

    @abstractmethod
    def alone(self, agent: int) -> Tree:
        """One agent's output from an ordinary module with its parameters, the oracle of every evaluation.

        Raises:
            CheckError: the network of one agent is not known, or does not take these parameters.
        """

    def evaluations(self) -> Mapping[str, Self]:
        """The same, evaluated in each way that there is, by the name of that way."""
        return {"": self}

    def own_parts(self, outputs: list[Tree]) -> list[Tree]:
        """Of each agent's outputs those that are its own, and not the same for all agents."""
        return outputs

    def loss(self, outputs: Tree) -> Tensor:
        """A generic smooth number made of all float and complex leaves of a tree: no weight of it is zero."""
        return generic_loss(outputs, self.seed)

    def training_loss(self, outputs: Sequence[Tree]) -> Tensor:
        """The sum of all agents' losses, with different weights for each."""
        return torch.stack([(i + 1) * self.loss(output) for i, output in enumerate(outputs)]).sum()


def generic_loss(outputs: Tree, seed: int) -> Tensor:
    """A smooth number made of all float and complex leaves of a tree, with weights under a seed, none of them zero.

    Infinite numbers, such as the logits of masked actions, count for nothing and get no gradient.
    """
    weights, total = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
    for leaf in flatten(outputs)[0]:
        if isinstance(leaf, Tensor) and leaf.is_complex():
            leaf = torch.view_as_real(leaf)
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            weight = (torch.rand(leaf.shape, generator=weights, dtype=torch.float64) + 0.5).to(leaf.device)
            # infinite are the logits of actions that are masked; float16 overflows in a square
            number = torch.where(leaf.isinf(), 0, leaf).to(weight.dtype)
            total = total + (weight * (number + number * number)).sum().to(total.device)
    return total
