"""Modules whose inputs and outputs are lists with one entry an agent, as modules of dicts keyed by agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._pytrees import Tree, is_tensordict
from functional_marl.laws._subject import CheckError
from functional_marl.laws._wrapped import Wrapped

__all__ = ["ListOfAgents", "listed_by_agent"]


class ListOfAgents(Wrapped):
    """A module of lists, called with dicts: ``{"agent_0": x_0, ...}`` goes in as ``[x_0, ...]``."""

    __slots__ = ("names",)
    names: tuple[str, ...]

    def __init__(self, inner: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(inner)
        object.__setattr__(self, "names", names)

    def __reduce_ex__(self, protocol: Any) -> Any:  # for copies and pickles
        return ListOfAgents, (self.inner, self.names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, with a dict in the place of each list of agents."""
        given, named = _lists(args, self.names), _lists(kwargs, self.names)
        output = self.inner(*given, **named)
        keyed = _dicts(output, self.names)
        if keyed is output and type(output) is tuple and len(cast("tuple[Any, ...]", output)) == len(self.names):
            return dict(zip(self.names, output, strict=True))
        return keyed


def listed_by_agent(module: nn.Module, n_agents: int, example: Any) -> tuple[ListOfAgents, tuple[str, ...], Any]:
    """A module of lists as one of dicts, the agents' names, and the example with dicts.

    Raises:
        CheckError: the example has no list with one entry an agent.

    >>> class Team(nn.Module):
    ...     def forward(self, observations):
    ...         return [2 * x for x in observations]
    >>> module, names, example = listed_by_agent(Team(), 2, [torch.zeros(4, 3), torch.ones(4, 3)])
    >>> list(module(example)) == list(names) == ['agent_0', 'agent_1']
    True
    """
    names = tuple(f"agent_{k}" for k in range(n_agents))
    if callable(example) and not isinstance(example, Tensor) and not is_tensordict(example):
        draw = cast("Callable[[torch.Generator], Any]", example)
        return ListOfAgents(module, names), names, lambda generator: _dicts(draw(generator), names)
    keyed = _dicts(example, names)
    if keyed is example:
        raise CheckError(f"example: expected a list with one entry for each of {n_agents} agents, as agents= claims")
    return ListOfAgents(module, names), names, keyed


def _dicts(tree: Any, names: tuple[str, ...]) -> Tree:
    """A tree with a dict in the place of each list of agents; the tree itself where there is none."""
    if type(tree) is list and len(cast("list[Any]", tree)) == len(names):
        return dict(zip(names, cast("list[Any]", tree), strict=True))
    return _changed(tree, lambda inner: _dicts(inner, names))


def _lists(tree: Any, names: tuple[str, ...]) -> Any:
    """A tree with a list in the place of each dict that is keyed by the agents."""
    if type(tree) is dict and tuple(cast("dict[Any, Any]", tree)) == names:
        return list(cast("dict[Any, Any]", tree).values())
    return _changed(tree, lambda inner: _lists(inner, names))


def _changed(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A container with changed entries, or itself where nothing changed."""
    if type(tree) is dict:
        entries = cast("dict[Any, Any]", tree)
        found = {key: change(value) for key, value in entries.items()}
        return found if any(found[key] is not value for key, value in entries.items()) else tree
    if type(tree) in (list, tuple):
        values = cast("list[Any]", tree)
        changed = [change(value) for value in values]
        return type(tree)(changed) if any(a is not b for a, b in zip(changed, values, strict=True)) else tree
    return tree
