"""Any module as a subject of laws: what is known of it is found by calling it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from functional_marl._pytrees import Tree, flatten
from functional_marl._sharing import Sharing
from functional_marl.laws._functions import FunctionModule
from functional_marl.laws._infer import gradients_by_agent, inferred, pairs_of_parts, part
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_facts import fact, gives_numbers, mixes_rows, repeats, samples
from functional_marl.laws._reached import Reached
from functional_marl.laws._restore import kept, seeded
from functional_marl.laws._subject import CheckError, Gradients, InputGradients, Subject

__all__ = ["ModuleSubject"]

_STEP = 0.05  # of training: about as much as each number moves


class ModuleSubject(ModuleCase, Subject):
    """A module with inputs, two agents of which laws compare; see :class:`ModuleCase` for the arguments."""

    # --- what is known of it ------------------------------------------------------------------------------

    @property
    def slots(self) -> Mapping[str, Sharing]:
        """The claimed slot maps, or the inferred ones where nothing is claimed."""
        return self.host.slots if self.host.slots is not None else inferred(self.host).claims()

    @property
    def agents(self) -> Sequence[int]:
        """The two agents of the pair."""
        return sorted(set(self.pair))

    @property
    def centralized(self) -> bool:
        """Whether it is claimed that each agent's network sees all inputs."""
        return self.host.centralized

    @property
    def repeatable(self) -> bool:
        """Whether calls draw nothing that shows in outputs."""
        return repeats(self.host, self.train)

    @property
    def draws_in_training(self) -> bool:
        """Whether outputs of training depend on the seed."""
        return samples(self.host, True)

    @property
    def known_alone(self) -> bool:
        """Whether the network of one agent is known, and what it sees."""
        host = self.host
        if self.centralized or host.claims.communication or host.claims.ids or host.claims.groups is not None:
            return False
        return host.claims.single is not None or host.one_agent(0) is not None

    @property
    def inputs_are_float(self) -> bool:
        """Whether an input of agents is float."""
        places = zip(self.host.places, self.host.leaves, strict=True)
        return any(leaf.is_floating_point() and place.dim is not None for place, leaf in places)

    @property
    def fault(self) -> BaseException | None:
        """What a call of the example raises."""
        return self.host.fault

    @property
    def gives_numbers(self) -> bool:
        """Whether outputs hold no NaN."""
        return gives_numbers(self.host, self.train)

    @property
    def has_agents_in_outputs(self) -> bool:
        """Whether some output has an axis of agents."""
        return any(place.dim is not None for place in self.host.out_places)

    @property
    def hears(self) -> Sequence[set[int]]:
        """For each agent those whose inputs may change its outputs, by the claims.

        Where training uses statistics of the batch, as a batch norm does, agents that share the statistics are rows of
        it, too: agents of one network, or of one slot of its buffers.
        """
        if not (self.train and mixes_rows(self.host, True)):
            return self.host.hears
        statistics = [self.slots[leaf.name] for leaf in self.reached() if leaf.is_buffer and leaf.name in self.slots]
        together = [{j for j in range(self.n) if self._alike(i, j)} for i in range(self.n)]
        for sharing in statistics:
            together = [found | set(sharing.members(sharing[i])) for i, found in enumerate(together)]
        return [heard | found for heard, found in zip(self.host.hears, together, strict=True)]

    def _alike(self, i: int, j: int) -> bool:
        return any({i, j} <= set(members) for members in self.classes())

    @property
    def tells_agents_apart(self) -> bool:
        """Whether ids or a graph of communication are claimed."""
        return self.host.claims.ids or self.host.claims.communication not in (None, False, True)

    @property
    def trains_unevenly(self) -> bool:
        """Whether agents of one network may train different parts of it: some hear more than others."""
        return self.host.claims.communication not in (None, False, True)

    @property
    def communicates(self) -> bool:
        """Whether messages between agents are claimed."""
        return self.host.claims.communication not in (None, False)

    @property
    def trains(self) -> bool:
        """Whether some parameter gets a gradient from some agent."""

        def find() -> bool:
            try:
                rows = gradients_by_agent(self.whole(), self.host.params())
            except RuntimeError:  # an operation without a derivative
                return False
            return any(gradient is not None for row in rows for gradient in row)

        return bool(self.host.params()) and fact(self.host, "gradients", self.train, find)

    @property
    def carries_gradients(self) -> bool:
        """Whether some output carries a gradient of inputs."""

        def find() -> bool:
            outputs = self.whole().wanting_gradients().outputs()
            return any(self.loss(output).requires_grad for output in outputs)

        return fact(self.host, "gradients of inputs", self.train, find)

    @property
    def lines_up(self) -> bool:
        """Whether each agent's parameters have a counterpart in every other's."""
        return self.trains and inferred(self.host).apart is not None

    @property
    def copies(self) -> bool:
        """Whether the module can be copied."""

        def find() -> bool:
            try:
                copy.deepcopy(self.host.module)
            except Exception:
                return False
            return True

        return fact(self.host, "copies", False, find)

    @property
    def compiles(self) -> bool:
        """Whether dynamo can trace it: not a function of JAX or numpy, whose arrays it does not follow."""
        return not isinstance(self.host.module, FunctionModule)

    def reached(self) -> Sequence[Reached]:
        """Which agents train which numbers, and write or read which buffers."""
        return inferred(self.host, self.train).leaves

    def kind(self, agent: int) -> object:
        """Agents of one group have inputs of one form."""
        return self.host.group_of(agent)

    def permutation(self) -> list[int]:
        """The two agents of the pair change places."""
        order = list(range(self.n))
        i, j = self.pair
        order[i], order[j] = j, i
        return order

    def cluster_permutation(self) -> list[int]:
        """The two change places where they share everything."""
        together = any(set(self.pair) <= set(members) for members in self.classes())
        return self.permutation() if together else list(range(self.n))

    # --- gradients and other numbers ----------------------------------------------------------------------

    def watching_inputs(self) -> tuple[ModuleSubject, InputGradients]:
        """The same with inputs that want gradients, and from a loss to each agent's gradients by name of the input."""
        watched = self.wanting_gradients()
        places = [
            (place, leaf)
            for place, leaf in zip(self.host.places, watched.leaves, strict=True)
            if leaf.requires_grad and place.dim is not None
        ]

        def gradients(loss: Tensor) -> list[dict[str, Tensor]]:
            found = _gradients(loss, [leaf for _, leaf in places])
            rows: list[dict[str, Tensor]] = []
            for agent in range(self.n):
                parts = {place.name: place.of(agent, g) for (place, _), g in zip(places, found, strict=True)}
                # 0 times infinity, as where a mask goes through a logarithm, shows no dependence
                rows.append({name: torch.where(g.isnan(), 0, g) for name, g in parts.items() if g is not None})
            return rows

        return watched, gradients

    def is_joint(self, name: str) -> bool:
        """Which inputs are joint is not known: all are taken for joint ones."""
        return True

    def watching_parameters(self) -> tuple[ModuleSubject, Gradients]:
        """The module itself: its parameters want gradients, but those that are frozen."""
        params = {name: leaf for name, leaf in self.host.params().items() if leaf.requires_grad}
        return self, lambda loss: dict(zip(params, _gradients(loss, list(params.values())), strict=True))

    def gradient_of(self, agent: int) -> dict[str, Tensor]:
        """The gradient of one agent's part of the training loss, from a call of its own."""
        watched, gradients = self.watching_parameters()
        return gradients((agent + 1) * self.loss(watched.outputs()[agent]))

    def with_numbers_of(self, other: Self) -> Self:
        """The same inputs with the parameters and buffers of another subject of this module."""
        return replace(self, numbers=other.numbers)

    def stepped(self, loss: Callable[[list[Tree]], Tensor]) -> ModuleSubject:
        """The subject after a step of training, in which each number moves by at most a twentieth.

        Where the module raises in training, as under ``randomness="error"``, the gradient is that of evaluation.
        """
        watched, gradients = self.watching_parameters()
        try:
            outputs, buffers = watched.trained()
        except Exception:
            outputs, buffers = watched.outputs(train=False), dict[str, Tensor]()
        found, params = gradients(loss(outputs)), self.host.params()
        # Each number for itself: what an agent's numbers become must not depend on the size of another's gradient.
        moved = {name: params[name].detach() - _STEP * g / (g.abs() + 1e-3) for name, g in found.items()}
        return replace(self, numbers={**self.numbers, **moved, **buffers})

    def exchanging(self, agents: Sequence[int]) -> ModuleSubject:
        """Agent ``i`` gets the numbers that agent ``agents[i]`` had."""
        own = {**self.host.params(), **self.host.buffers()}
        numbers = dict(self.numbers)
        for i, j in enumerate(agents):
            for here, there in pairs_of_parts(self.host, i, j) if i != j else ():
                values = numbers.setdefault(here[0], own[here[0]].detach().clone())
                values[here[1]] = part(self.host, there).detach()
        return replace(self, numbers=numbers)

    def in_kind(self, device: torch.device, dtype: torch.dtype) -> ModuleSubject:
        """A copy of the module, moved."""
        if not getattr(self.host.module, "float64", True):
            raise CheckError(f"the function does not compute in {dtype}: JAX has 64 bits only with jax_enable_x64")
        host = copy.copy(self.host)
        try:
            host.module = copy.deepcopy(self.host.module).to(device, dtype)
        except Exception as error:
            raise CheckError(f"the module does not go to {dtype}: {type(error).__name__}: {error}") from None
        leaves = (leaf.to(device, dtype if leaf.is_floating_point() else None) for leaf in self.leaves)
        return replace(self, host=host, leaves=tuple(leaves))

    def counterparts(self, i: int, j: int) -> list[tuple[Tensor, Tensor]]:
        """What agent ``i`` has and ``j`` has not, beside what ``j`` has in its place."""
        return [(part(self.host, a), part(self.host, b)) for a, b in pairs_of_parts(self.host, i, j)]

    # --- the network of one agent -------------------------------------------------------------------------

    def single(self, seed: int) -> nn.Module:
        """A network of one agent from its factory, under a seed; a lazy one has seen agent 0's inputs.

        Raises:
            CheckError: it is lazy, and what one agent would see is not known.
        """
        assert self.host.claims.single is not None
        with seeded(seed), torch.no_grad():
            net = self.host.claims.single()
            if any(map(nn.parameter.is_lazy, net.parameters())):
                if self.centralized:
                    raise CheckError("one agent's network is lazy, and what it would see is not known")
                args, kwargs = self.host.rebuild(self.seen_by(0))
                net(*args, **kwargs)
            return net

    def alone(self, agent: int) -> Tree:
        """One agent's output of the network of one agent."""
        host = self.host
        args, kwargs = host.rebuild(self.seen_by(agent))
        with kept(host.module), seeded(self.seed):
            host.module.train(self.train)
            call = host.one_agent(agent)
            if call is None:
                call = self._filled(agent)
            return flatten(host.read(call(*args, **kwargs)))[0]

    def _filled(self, agent: int) -> Callable[..., Any]:
        """The user's network of one agent with the parameters that the agent has in the module."""
        assert self.host.claims.single is not None
        net = self.host.claims.single().train(self.train)
        if self.host.fault is not None:
            return net
        apart = inferred(self.host).apart
        names = dict(net.named_parameters(remove_duplicate=False))
        if apart is None or len(apart[agent]) != len(names) or list(net.buffers()):
            raise CheckError("the agents' parameters do not line up with those of the network of one agent")
        own = {name: part(self.host, where) for name, where in zip(names, apart[agent], strict=True)}
        if any(leaf.shape != names[name].shape for name, leaf in own.items()):
            raise CheckError("the agents' parameters do not line up with those of the network of one agent")
        return lambda *args, **kwargs: functional_call(net, own, args, kwargs, tie_weights=False)


def _gradients(loss: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a loss, zero where it does not depend on a leaf."""
    if not loss.requires_grad or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
