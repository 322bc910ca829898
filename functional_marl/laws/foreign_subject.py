"""A module from elsewhere as a subject of laws, and the words that laws ask of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_marl.laws.case import Case
from functional_marl.laws.host import CheckError
from functional_marl.laws.infer import gradients, inferred
from functional_marl.laws.subject import Subject
from functional_marl.laws.values import subject_of

__all__ = ["REASONS", "WORDS", "Foreign", "draws_here"]


class Foreign(Case):
    """A module with inputs, for laws that only call it: what :class:`Subject` is to our own networks."""

    @property
    def claims(self) -> dict[str, Any]:
        """The claimed slot maps, or the inferred ones where nothing is claimed."""
        return self.host.claims if self.host.claims is not None else inferred(self.host).claims()

    def classes(self) -> list[list[int]]:
        """The agents that share everything and have inputs of one form, together."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for agent in range(self.n):
            slots = tuple(sharing[agent] for sharing in self.claims.values())
            found.setdefault((self.host.group_of(agent), *slots), []).append(agent)
        return list(found.values())

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

    def functional(self) -> Subject:
        """A functional network as a subject of the core's laws.

        Raises:
            CheckError: it is none.
        """
        return subject_of(self, draws(self, True))

    def answers(self, word: str) -> bool:
        """Whether a word is true of this subject; words that need our own networks are not."""
        return WORDS[word](self) if word in WORDS else False


# --- what can be said of it -------------------------------------------------------------------------------


def _fact(name: str) -> Callable[[Callable[[Foreign], bool]], Callable[[Foreign], bool]]:
    """Found out once a module and mode."""

    def wrap(find: Callable[[Foreign], bool]) -> Callable[[Foreign], bool]:
        def found(s: Foreign) -> bool:
            facts = s.host.facts
            if (name, s.train) not in facts:
                facts[name, s.train] = find(s)
            return facts[name, s.train]

        return found

    return wrap


def _same(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    pairs = itertools.chain.from_iterable(zip(a, b, strict=True) for a, b in zip(one, other, strict=True))
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs
    )


def draws(s: Foreign, train: bool) -> bool:
    """Whether outputs depend on the seed; a module that raises at the draw draws, too.

    The mask of a small network is the same by chance under many a seed, so one whose draws are seen in torch's
    generators is asked often.
    """
    case = replace(s, rows=None, leaves=(), seed=0)
    try:
        for seed in range(32 if s.host.draws(case.leaves, train=train) else 2):
            drawn = case.redrawn(seed)
            if not _same(drawn.outputs(train=train, seed=1), drawn.outputs(train=train, seed=2)):
                return True
    except Exception as error:
        return "random" in str(error)
    return False


def draws_here(s: Foreign) -> bool:
    """Whether outputs of this very case depend on the seed, seldom as others may: a violation may be a draw."""
    try:
        if not s.host.draws(s.leaves, train=s.train):
            return False
        for case in (s, s.taking(s.permutation())):
            outputs = case.outputs(seed=0)
            if not all(_same(case.outputs(seed=seed), outputs) for seed in range(1, 16)):
                return True
    except Exception as error:
        return "random" in str(error)
    return False


@_fact("nothing random")
def _repeats(s: Foreign) -> bool:
    return not draws(s, s.train)


@_fact("random in training")
def _random(s: Foreign) -> bool:
    return draws(s, True)


@_fact("gradients")
def _gradients(s: Foreign) -> bool:
    if not s.host.params():
        return False
    try:
        rows = gradients(replace(s, rows=None, leaves=()), s.host.params())
    except RuntimeError:  # an op without a derivative
        return False
    return any(gradient is not None for row in rows for gradient in row)


@_fact("gradients of inputs")
def _input_gradients(s: Foreign) -> bool:
    outputs = replace(s, rows=None, leaves=()).wanting_gradients().outputs()
    return any(s.loss(output).requires_grad for output in outputs)


@_fact("parameters by agent")
def _slices(s: Foreign) -> bool:
    return _gradients(s) and inferred(s.host).apart is not None


@_fact("copies")
def _copies(s: Foreign) -> bool:
    try:
        copy.deepcopy(s.host.module)
    except Exception:
        return False
    return True


def _one_agent(s: Foreign) -> bool:
    return s.host.single is not None or s.host.one_agent(0) is not None


def _runs(s: Foreign) -> bool:
    return s.host.fault is None


def _each(s: Foreign, test: Callable[[list[int]], bool]) -> bool:
    try:
        return all(test(list(sharing)) for sharing in s.claims.values())
    except CheckError:
        return False


WORDS: dict[str, Callable[[Foreign], bool]] = {
    "runs": _runs,
    "shared": lambda s: _each(s, lambda slots: len(set(slots)) == 1),
    "independent": lambda s: _each(s, lambda slots: len(set(slots)) == s.n),
    "a cluster": lambda s: any(len(members) > 1 for members in s.classes()),
    "several agents": lambda s: s.n > 1,
    "local": lambda s: not s.host.centralized,
    "centralized": lambda s: bool(s.host.centralized),
    "a batch": lambda s: s.host.rows > 0,
    "outputs by agent": lambda s: any(place.dim is not None for place in s.host.out_places),
    "float inputs": lambda s: any(
        leaf.is_floating_point() and place.dim is not None
        for place, leaf in zip(s.host.places, s.host.leaves, strict=True)
    ),
    "gradients": _gradients,
    "gradients of inputs": _input_gradients,
    "parameters by agent": _slices,
    "nothing random": _repeats,
    "random in training": _random,
    "a claim of randomness": lambda s: s.host.randomness is not None,
    "one agent's network": _one_agent,
    "its factory": lambda s: s.host.single is not None,
    "a reset": lambda s: hasattr(s.host.module, "reset_parameters"),
    "any batch axes": lambda s: s.host.facade and len(s.host.leaves) == 1,
    "evaluation": lambda s: not s.train,
    "nothing random if it runs": lambda s: not _runs(s) or _repeats(s),
    "one claim": lambda s: _runs(s) and len({tuple(sharing) for sharing in s.claims.values()}) == 1,
    "copies": _copies,
}

# Why a law says nothing where a word is not true.
REASONS: dict[str, str] = {
    "runs": "the module raises on the example",
    "shared": "not all agents share everything",
    "independent": "not every agent has its own",
    "a cluster": "no two agents share everything",
    "several agents": "there is one agent",
    "local": "the module is centralized",
    "centralized": "the module is local",
    "a batch": "the example has no batch axis",
    "outputs by agent": "outputs have no axis of agents",
    "float inputs": "no input of agents is float",
    "gradients": "no parameter gets a gradient",
    "parameters by agent": "the agents' parameters do not line up",
    "nothing random": "calls draw random numbers",
    "random in training": "training draws nothing",
    "a claim of randomness": "no randomness= is claimed",
    "one agent's network": "one agent's network is not known: say it with single= (--single)",
    "its factory": "one agent's factory is not known: say it with single= (--single)",
    "a reset": "there is no reset_parameters",
    "any batch axes": "only said of torchrl's and our classes",
    "gradients of inputs": "outputs carry no gradient",
    "evaluation": "asked in evaluation only",
    "nothing random if it runs": "calls draw random numbers",
    "one claim": "parameters are shared in different ways",
    "copies": "the module has no deepcopy",
}
