"""Our own networks as subjects of laws: ``(net, params)``, whose slots laws can see and change."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from functional_marl._pytrees import Params, Tree, flatten, leaf_names, tree_map
from functional_marl._sharing import Sharing
from functional_marl.laws._compare import broken
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws._restore import seeded
from functional_marl.laws._subject import Gradients, InputGradients, Subject

__all__ = ["NetworkSubject"]


@dataclass(frozen=True)
class NetworkSubject(Subject):
    """A network with parameters and inputs.

    Args:
        name: the Python that makes it again.
        net: the network.
        params: ``{leaf: [S, *leaf]}``.
        inputs: positional inputs with the agents in front, ``[n, *B, *leaf]``, where ``dims`` has an axis.
        dims: where the network wants the agents: an axis for each positional input, and one for all
            keyword inputs; None is seen whole by every agent.
        out_dim: where outputs carry the agents.
        kwargs: keyword inputs, as ``inputs``.
        state: buffers ``{leaf: [S, *leaf]}``.
        batch: the sizes of the batch axes ``*B``.
        least_batch_dims: how many batch axes one agent's module needs.
        traits: what cannot be seen from outside, such as "random" and "rows apart".
        strategies: those that can evaluate it, "auto" first.
        build: builds one agent's module anew, or None.
        seed: what laws draw from.
        ops: the operations under test.
    """

    name: str
    net: Any
    params: Params
    inputs: tuple[Tree, ...]
    dims: tuple[int | None, ...]
    out_dim: int = 0
    kwargs: Mapping[str, Tree] = field(default_factory=dict[str, Tree])
    state: Params = field(default_factory=dict[str, Tensor])
    batch: tuple[int, ...] = ()
    least_batch_dims: int = 0
    traits: frozenset[str] = frozenset()
    strategies: tuple[str, ...] = ("auto",)
    build: Callable[[], nn.Module] | None = None
    seed: int = 0
    ops: Operations = LIBRARY

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)  # hypothesis, too, prints the call that makes it again

    # --- what is known of it ------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """The number of agents."""
        return self.net.n_agents

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of the batch axes."""
        return self.batch

    @property
    def slots(self) -> dict[str, Sharing]:
        """The slot map of every leaf, parameters and buffers."""
        return {**self.net.sharing, **self.net.state_sharing}

    @property
    def agents(self) -> Sequence[int]:
        """All agents: there are few."""
        return range(self.n)

    @property
    def centralized(self) -> bool:
        """Whether each agent's network sees all agents' first inputs."""
        return self.net.centralized

    @property
    def repeatable(self) -> bool:
        """Evaluation draws nothing."""
        return True

    @property
    def draws_in_training(self) -> bool:
        """Whether training draws."""
        return "random" in self.traits

    @property
    def known_alone(self) -> bool:
        """The network of one agent is known."""
        return True

    @property
    def inputs_are_float(self) -> bool:
        """Whether the first input is float."""
        return self.dims[0] is not None and any(leaf.is_floating_point() for leaf in flatten(self.inputs[0])[0])

    @property
    def responds(self) -> bool:
        """Whether outputs are known to depend on inputs."""
        return "responds" in self.traits

    def kind(self, agent: int) -> object:
        """All agents' inputs have one form."""
        return None

    def of_agent(self, agent: int, params: Mapping[str, Tensor] | None = None) -> Params:
        """One agent's parameters by the definition of sharing: ``P[leaf][slot of the agent]``."""
        params = self.params if params is None else params
        return {name: leaf[self.slots[name][agent]] for name, leaf in params.items()}

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

    # --- other inputs -------------------------------------------------------------------------------------

    def with_inputs(self, inputs: tuple[Tree, ...]) -> NetworkSubject:
        """The same with these positional inputs, agents in front."""
        return replace(self, inputs=inputs)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> NetworkSubject:
        """Every input that agents have for themselves is changed; ``change`` gets ``[n, *B, *leaf]``."""

        def mapped(tree: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(change, tree)

        inputs = tuple(mapped(tree, dim) for tree, dim in zip(self.inputs, self.dims[:-1], strict=True))
        return replace(self, inputs=inputs, kwargs=mapped(dict(self.kwargs), self.dims[-1]))

    def redrawn(self, seed: int) -> NetworkSubject:
        """The same with other inputs: other floats of the same size, other integers of those that there are."""
        generator = torch.Generator().manual_seed(seed)

        def other(leaf: Tensor) -> Tensor:
            if leaf.is_floating_point():
                return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
            order = torch.randperm(leaf.numel(), generator=generator)
            return leaf.flatten()[order].reshape(leaf.shape)

        return self.mapped(other)

    def taking(self, agents: Sequence[int], *, joint_only: bool = False) -> NetworkSubject:
        """Agent ``i`` gets what agent ``agents[i]`` got as input."""
        taken = self.mapped(lambda leaf: leaf[list(agents)])
        if joint_only:
            return replace(self, inputs=(taken.inputs[0], *self.inputs[1:]))
        return taken

    def with_agent(self, agent: int, other: Self) -> Self:
        """The same inputs, but for one agent's, which are those of the other subject."""

        def put(tree: Tree, new: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(lambda leaf, its: _with_row(leaf, agent, its), tree, new)

        inputs = tuple(map(put, self.inputs, other.inputs, self.dims[:-1]))
        return replace(self, inputs=inputs, kwargs=put(dict(self.kwargs), dict(other.kwargs), self.dims[-1]))

    def joint_inputs_alone(self) -> NetworkSubject:
        """Inputs after the first are each agent's own: agent 0's for all."""
        equal = self.taking([0] * self.n)
        return replace(equal, inputs=(self.inputs[0], *equal.inputs[1:]))

    def rows(self, axis: int, start: int, count: int) -> NetworkSubject:
        """A piece of a batch axis."""

        def cut(tree: Tree, dim: int | None) -> Tree:
            return tree_map(lambda leaf: leaf.narrow(axis + (dim is not None), start, count), tree)

        inputs = tuple(map(cut, self.inputs, self.dims[:-1]))
        batch = (*self.batch[:axis], count, *self.batch[axis + 1 :])
        return replace(self, inputs=inputs, kwargs=cut(dict(self.kwargs), self.dims[-1]), batch=batch)

    def watching_inputs(self) -> tuple[NetworkSubject, InputGradients]:
        """The same with inputs that want gradients, and from a loss to each agent's gradients by name of the input."""
        watched = self.mapped(lambda leaf: leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf)
        leaves: dict[str, Tensor] = {}
        for k, (tree, dim) in enumerate(zip((*watched.inputs, dict(watched.kwargs)), self.dims, strict=True)):
            if dim is not None:
                names = leaf_names(tree, f"inputs[{k}]" if k < len(self.inputs) else "kwargs")
                leaves |= {name: leaf for name, leaf in zip(names, flatten(tree)[0], strict=True) if leaf.requires_grad}

        def gradients(loss: Tensor) -> list[dict[str, Tensor]]:
            found = _gradients(loss, leaves)
            return [{name: leaf[agent] for name, leaf in found.items()} for agent in range(self.n)]

        return watched, gradients

    def is_joint(self, name: str) -> bool:
        """Centralized networks see the first input of all agents, and each its own of the others."""
        return name.startswith("inputs[0]")

    # --- other numbers ------------------------------------------------------------------------------------

    def tiled(self) -> NetworkSubject:
        """The same agents, each with a copy of everything: independent."""

        def rows(leaves: Mapping[str, Tensor]) -> Params:
            return {name: leaf[list(self.slots[name])] for name, leaf in leaves.items()}

        net = self.net.replace(sharing="independent")
        return replace(self, net=net, params=rows(self.params), state=rows(self.state))

    def with_numbers_of(self, other: Self) -> Self:
        """The same inputs with the parameters and buffers of another subject."""
        return replace(self, params=other.params, state=other.state)

    def exchanging(self, agents: Sequence[int]) -> NetworkSubject:
        """Agent ``i``, in slot ``σ(i)``, gets what agent ``agents[i]`` has."""

        def moved(leaves: Params) -> Params:
            out = {name: leaf.clone() for name, leaf in leaves.items()}
            for name, leaf in out.items():
                for i, j in enumerate(agents):
                    leaf[self.slots[name][i]] = leaves[name][self.slots[name][j]]
            return out

        return replace(self, params=moved(self.params), state=moved(self.state))

    def with_parameters(self, params: Params) -> NetworkSubject:
        """The same with these parameters, stacked."""
        return replace(self, params=params)

    def gradient_of(self, agent: int) -> Params:
        """The gradient of one agent's part of the training loss, by an ordinary module: in its own slots."""
        args, kwargs = self.seen_by(agent)
        module = self.agent_module(agent)
        own = dict(module.named_parameters())
        loss = (agent + 1) * self.loss(module(*args, **kwargs))
        found = {name: torch.zeros_like(leaf) for name, leaf in self.params.items()}
        for name, gradient in _gradients(loss, own).items():
            found[name][self.slots[name][agent]] = gradient
        return found

    def watching_parameters(self) -> tuple[NetworkSubject, Gradients]:
        """The same with parameters that want gradients, and from a loss to its gradient."""
        leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in self.params.items()}
        return replace(self, params=leaves), lambda loss: _gradients(loss, leaves)

    def stepped(self, loss: Callable[[list[Tree]], Tensor]) -> NetworkSubject:
        """The subject after two steps of the optimizer on one gradient, in training."""
        watched, gradients = self.watching_parameters()
        outputs, state = watched.trained(key=self.key())
        found = gradients(loss(outputs))
        after = self.optimized(self.params, [found, found])
        return replace(self, params=after, state={name: leaf.detach() for name, leaf in state.items()})

    def optimized(self, params: Params, gradients: Sequence[Mapping[str, Tensor]]) -> Params:
        """The parameters after steps of ``ops.optimizer`` with these gradients."""
        leaves = {name: leaf.detach().clone() for name, leaf in params.items()}
        optimizer: Any = self.ops.optimizer(list(leaves.values()), lr=0.05)
        for gradient in gradients:
            for name, leaf in leaves.items():
                leaf.grad = gradient[name].contiguous()
            optimizer.step()
        for leaf in leaves.values():
            leaf.grad = None
        return leaves

    def in_kind(self, device: torch.device, dtype: torch.dtype) -> NetworkSubject:
        """The same with parameters, buffers and inputs of another device and dtype."""
        given = (self.params, self.state, self.inputs, dict(self.kwargs))
        moved = tree_map(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else None), given)
        params, state, inputs, kwargs = moved
        return replace(self, params=params, state=state, inputs=inputs, kwargs=kwargs)

    # --- calls --------------------------------------------------------------------------------------------

    def placed(self) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """Inputs as the network wants them: ``(args, kwargs)`` with the agents at ``dims``."""

        def place(tree: Tree, dim: int | None) -> Tree:
            return tree if dim is None else tree_map(lambda leaf: leaf.movedim(0, dim), tree)

        return tuple(map(place, self.inputs, self.dims[:-1])), place(dict(self.kwargs), self.dims[-1])

    def call(self, **how: Any) -> Any:
        """What ``ops.apply`` returns."""
        args, kwargs = self.placed()
        if self.state and "state" not in how:
            how["state"] = self.state
        return self.ops.apply(self.net, self.params, *args, kwargs=kwargs, **how)

    def outputs(self, *, train: bool | None = None, fold: int = 0, **how: Any) -> list[Tree]:
        """Each agent's output tree, of leaves ``[*B, ...]``; ``how`` goes to ``ops.apply``."""
        return self.trained(key=self.key(fold))[0] if train else self.by_agent(self.call(**how))

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

    def built(self, seed: int) -> tuple[Params, Params]:
        """Parameters and buffers of a module built under a seed of torch's global generator, which is restored."""
        assert self.build is not None
        with seeded(seed), torch.no_grad():
            module: nn.Module = self.build()
            if any(nn.parameter.is_lazy(p) for p in module.parameters()):
                module.eval()(*self.net.module_spec.example)
            return dict(module.named_parameters()), dict(module.named_buffers())

    def drawn_leaves(self) -> list[str]:
        """The parameters that a module draws at random, and does not set."""
        one, other = self.built(0)[0], self.built(1)[0]
        return [name for name, leaf in one.items() if not torch.equal(leaf, other[name])]

    def agent_module(self, agent: int) -> nn.Module:
        """An ordinary module with one agent's parameters and buffers."""
        return self.ops.agent_module(self.net, self.params, agent, self.state if self.state else None)

    def alone(self, agent: int) -> Tree:
        """One agent's output from an ordinary module: what every evaluation must give."""
        args, kwargs = self.seen_by(agent)
        return self.agent_module(agent)(*args, **kwargs)

    def evaluations(self) -> dict[str, NetworkSubject]:
        """The same in every strategy."""
        return {f"strategy {name}": replace(self, net=self.net.replace(strategy=name)) for name in self.strategies}


def _with_row(leaf: Tensor, agent: int, other: Tensor) -> Tensor:
    changed = leaf.clone()
    changed[agent] = other[agent]
    return changed


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a loss, zero where it does not depend on a leaf."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _shuffled(given: list[int], rng: random.Random) -> list[int]:
    """A permutation without the identity where there is a choice."""
    shuffled = list(given)
    rng.shuffle(shuffled)
    return shuffled if shuffled != given else [*given[1:], *given[:1]]
