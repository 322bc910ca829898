"""Modules whose inputs and outputs are dicts keyed by agent, as modules of inputs that carry an axis of agents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._pytrees import Tree, flatten, is_tensordict, structure
from functional_marl.laws._outputs import as_tree, selector
from functional_marl.laws._restore import kept, seeded
from functional_marl.laws._subject import CheckError
from functional_marl.laws._wrapped import Wrapped

__all__ = ["KeyedByAgent", "keyed_by_agent"]


@dataclass(frozen=True)
class _Keyed:
    """A place in the inputs that holds a dict keyed by agent: the order of its keys, and a TensorDict's batch axes."""

    keys: tuple[str, ...]
    tensordict_dims: int | None = None


@dataclass(frozen=True)
class _Layout:
    """What stands where: the agents of each group, in the order of their numbers, and the inputs keyed by agent."""

    groups: Mapping[str, tuple[str, ...]]
    stacked: bool  # all agents in one tensor; else in a dict of groups
    batch_dims: int
    spots: Tree  # of the positional inputs: _Keyed where they are keyed by agent, None at other leaves
    kwarg_spots: Mapping[str, Tree]
    select: Callable[[Any], Any] | None
    by_agent: bool  # select= looks at one agent's output


class KeyedByAgent(Wrapped):
    """A module of dicts keyed by agent, called with ``[*B, n, *F]`` or ``{group: [*B, n_g, *F]}``.

    Equivalent to ``stack([module({a: x[a] for a in agents})[a] for a in agents])``.

    Attributes:
        agents: the agents in the order of their numbers.
        groups: ``{group: number of agents}``, or None if all agents are alike.
        batch_dims: the number of axes ahead of the axis of agents, in inputs and outputs: ``out_agent_dim``.
        agent_dim: where the positional inputs have the agents, as a tuple of prefix trees; None for what all see.
    """

    __slots__ = ("_layout",)
    _layout: _Layout

    def __init__(self, inner: nn.Module, layout: _Layout) -> None:
        super().__init__(inner)
        object.__setattr__(self, "_layout", layout)

    def __reduce_ex__(self, protocol: Any) -> Any:  # for copies and pickles
        return KeyedByAgent, (self.inner, self._layout)

    def forward(self, *args: Any, **kwargs: Any) -> Tree:
        """The outputs, stacked.

        Raises:
            CheckError: outputs are not keyed by the agents, or those of one group have different shapes.
        """
        spots, named = self._layout.spots, self._layout.kwarg_spots
        given = _unstack(spots[: len(args)], args, self._layout)
        output = self.inner(*given, **{key: _unstack(named.get(key), kwargs[key], self._layout) for key in kwargs})
        return self.stack(_read(output, self.agents, self._layout.select, self._layout.by_agent), "outputs")

    def stack(self, tree: Tree, what: str = "inputs") -> Tree:
        """Every dict keyed by agent in a tree, stacked; the rest of it stays.

        Raises:
            CheckError: agents are missing or unknown, or those of one group have different shapes.
        """
        return _stack(tree, self._layout, what)

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents in the order of their numbers."""
        return tuple(agent for members in self._layout.groups.values() for agent in members)

    @property
    def groups(self) -> dict[str, int] | None:
        """How many agents each group has; None if all agents are alike."""
        if self._layout.stacked:
            return None
        return {group: len(members) for group, members in self._layout.groups.items()}

    @property
    def batch_dims(self) -> int:
        """The number of axes ahead of the agents."""
        return self._layout.batch_dims

    @property
    def agent_dim(self) -> tuple[Any, ...]:
        """Where positional inputs have the agents."""
        return _dims(self._layout.spots, self._layout.batch_dims)


def keyed_by_agent(
    module: nn.Module,
    agents: Sequence[str],
    example: Any,
    batch_dims: int | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    select: str | int | Callable[[Any], Any] | None = None,
) -> tuple[KeyedByAgent, Any, dict[str, int] | None, tuple[str, ...]]:
    """A module of dicts keyed by agent as one of stacked inputs.

    Agents whose inputs and outputs have the same structure, shapes and dtypes are stacked along an axis behind the
    batch axes. If not all are alike, groups are. Inputs that are not keyed by agent stay as they are: all see them.

    Args:
        module: takes and returns dicts keyed by agent, anywhere in its inputs and outputs.
        agents: their names.
        example: the inputs as the module takes them: a tuple of positional ones, or one; or a function of a
            ``torch.Generator`` that draws them.
        batch_dims: how many axes of each agent's tensors are batch axes; by default one if the first tensor has two
            axes or more, else none.
        kwargs: keyword inputs, which may be keyed as well; stack them by :meth:`KeyedByAgent.stack`.
        select: what laws look at. A word looks at one agent's output where the output is keyed by agent, else at the
            whole; a function gets the whole.

    Returns:
        The module of stacked inputs; the example, stacked, or the function that draws it; ``{group: number of
        agents}`` or None if all agents are alike; the agents in the order of their numbers.

    Raises:
        CheckError: inputs or outputs are not keyed by exactly these agents.

    >>> class Both(nn.Module):
    ...     def forward(self, x):
    ...         return {agent: 2 * x[agent] for agent in x}
    >>> module, x, groups, order = keyed_by_agent(Both(), ["a", "b"], {"b": torch.zeros(4, 5), "a": torch.ones(4, 5)})
    >>> list(module(x).shape), groups, order
    ([4, 2, 5], None, ('a', 'b'))
    """
    names = _names(agents)
    draw = example if callable(example) and not isinstance(example, Tensor) and not is_tensordict(example) else None
    first: Any = draw(torch.Generator().manual_seed(0)) if draw is not None else example
    args: tuple[Any, ...] = first if type(first) is tuple else (first,)
    spots = tuple(_spots(arg, names, f"inputs[{i}]") for i, arg in enumerate(args))
    named = {key: _spots(value, names, f"kwargs[{key!r}]") for key, value in (kwargs or {}).items()}
    found = [*_dicts((*args, *(kwargs or {}).values()), set(names))]
    if not found:
        kinds = [list(arg) if isinstance(arg, Mapping) else type(arg).__name__ for arg in args]
        raise CheckError(f"example: expected a dict keyed by the agents {list(names)}, got {kinds}")
    first_leaf = next((leaf for value in found for leaf in flatten(value)[0] if isinstance(leaf, Tensor)), None)
    if batch_dims is None:
        batch_dims = int(first_leaf is not None and first_leaf.ndim >= 2)
    layout = _Layout({"agents": names}, True, batch_dims, spots, named, selector(select), isinstance(select, str | int))
    layout = _grouped(layout, names, [*found, *_outputs(module, args, dict(kwargs or {}), layout, names)])
    wrapped = KeyedByAgent(module, layout)

    if draw is None:
        return wrapped, wrapped.stack(example), wrapped.groups, wrapped.agents
    return wrapped, (lambda generator: wrapped.stack(draw(generator))), wrapped.groups, wrapped.agents


def _names(agents: Sequence[str]) -> tuple[str, ...]:
    names = (agents,) if isinstance(agents, str) else tuple(agents)
    if isinstance(agents, str) or not names or len(set(names)) != len(names):
        raise CheckError(f"agents: expected a list of different names, got {agents!r}")
    return names


# --- where dicts are keyed --------------------------------------------------------------------------------


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or is_tensordict(value)


def _is_keyed(value: Any, names: Sequence[str], at: str) -> bool:
    """Whether it is keyed by agent.

    Raises:
        CheckError: it is, but not by all agents or by others, too.
    """
    if not _is_mapping(value) or not set(value.keys()) & set(names):
        return False
    missing = [name for name in names if name not in set(value.keys())]
    unknown = [key for key in value.keys() if key not in names]  # noqa: SIM118 (a TensorDict's keys)
    if missing or unknown:
        what = [f"{word} {found}" for word, found in (("misses", missing), ("has besides", unknown)) if found]
        raise CheckError(f"{at}: expected the agents {list(names)}; it {' and '.join(what)}")
    return True


def _spots(tree: Any, names: tuple[str, ...], at: str) -> Tree:
    """The tree with a mark at each dict keyed by agent, and None at other leaves."""
    if _is_keyed(tree, names, at):
        for name in names:
            for leaf in flatten(tree[name])[0]:
                if not isinstance(leaf, Tensor):
                    raise CheckError(f"{at}[{name!r}]: expected tensors, got {type(leaf).__name__}")
        return _Keyed(tuple(tree.keys()), tree.batch_dims if is_tensordict(tree) else None)
    if type(tree) is dict:
        return {key: _spots(value, names, f"{at}[{key!r}]") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_spots(value, names, f"{at}[{i}]") for i, value in enumerate(tree))
    return None


def _dims(spots: Tree, dim: int) -> Any:
    if isinstance(spots, dict):
        return {key: _dims(value, dim) for key, value in spots.items()}
    if isinstance(spots, list | tuple):
        return type(spots)(_dims(value, dim) for value in cast("list[Any]", spots))
    return dim if isinstance(spots, _Keyed) else None


def _dicts(tree: Any, names: set[str]) -> list[Any]:
    """All dicts keyed by agent in a tree."""
    if _is_mapping(tree) and names <= set(tree.keys()):
        return [tree]
    inner = tree.values() if type(tree) is dict else tree if type(tree) in (list, tuple) else ()
    return [found for value in inner for found in _dicts(value, names)]


# --- groups -----------------------------------------------------------------------------------------------


def _outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layout: _Layout, names: tuple[str, ...]
) -> list[Any]:
    """The keyed dicts of one call's outputs; none if the module raises, which the first stacked call will show."""
    with kept(module), seeded(0), torch.no_grad():
        module.eval()
        try:
            output = module(*args, **kwargs)
        except Exception:
            return []
    tree = _read(output, names, layout.select, layout.by_agent)
    _check_outputs(tree, names, "outputs")
    return _dicts(tree, set(names))


def _read(output: Any, names: Sequence[str], select: Callable[[Any], Any] | None, by_agent: bool) -> Tree:
    """What laws look at, as a tree in which dicts are keyed by agent."""
    if select is not None:
        if by_agent and _is_keyed(output, names, "outputs"):
            output = {name: select(output[name]) for name in names}
        else:
            output = select(output)
    return as_tree(output)


def _check_outputs(tree: Any, names: Sequence[str], at: str) -> None:
    if _is_keyed(tree, names, at):
        return
    if isinstance(tree, Tensor):
        raise CheckError(
            f"{at}: expected a dict keyed by the agents {list(names)}, got a tensor of shape {list(tree.shape)}; "
            "choose what is keyed with select="
        )
    items = tree.items() if isinstance(tree, dict) else enumerate(tree or ())
    for key, value in items:
        _check_outputs(value, names, f"{at}[{key!r}]")


def _grouped(layout: _Layout, names: tuple[str, ...], found: Sequence[Any]) -> _Layout:
    """The layout with agents of the same structure, shapes and dtypes together, in the order of the names."""
    alike: dict[Any, list[str]] = {}
    for name in names:
        form = tuple(
            (structure(value[name]), *((leaf.shape, leaf.dtype) for leaf in flatten(value[name])[0])) for value in found
        )
        alike.setdefault(form, []).append(name)
    groups = {_group_name(members, [*alike.values()]): tuple(members) for members in alike.values()}
    return replace(layout, groups=groups, stacked=len(groups) == 1)


def _group_name(members: Sequence[str], groups: Sequence[Sequence[str]]) -> str:
    """The stem that the members' names share, as ``adversary`` of ``adversary_0``, or else all their names."""

    def stem(name: str) -> str:
        head, _, tail = name.rpartition("_")
        return head if head and tail.isdecimal() else name

    stems = {stem(name) for name in members}
    elsewhere = {stem(name) for group in groups if group is not members for name in group}
    return stems.pop() if len(stems) == 1 and not stems & elsewhere else "+".join(members)


# --- stacking ---------------------------------------------------------------------------------------------


def _stack(tree: Any, layout: _Layout, at: str) -> Tree:
    names = [agent for members in layout.groups.values() for agent in members]
    if _is_keyed(tree, names, at):
        stacked = {group: _stacked(tree, members, layout, at) for group, members in layout.groups.items()}
        return next(iter(stacked.values())) if layout.stacked else stacked
    if at.startswith("outputs"):
        _check_outputs(tree, names, at)
    if type(tree) is dict:
        return {key: _stack(value, layout, f"{at}[{key!r}]") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_stack(value, layout, f"{at}[{i}]") for i, value in enumerate(tree))
    return tree


def _stacked(tree: Any, members: Sequence[str], layout: _Layout, at: str) -> Tree:
    """One group's leaves along a new axis."""
    flat = [flatten(tree[name]) for name in members]
    shapes = {name: [list(leaf.shape) for leaf in leaves] for name, (leaves, _) in zip(members, flat, strict=True)}
    if len({str(found) for found in shapes.values()}) > 1:
        raise CheckError(f"{at}: expected the same shapes as of the example for {list(members)}, got {shapes}")
    for name, found in shapes.items():
        if any(len(shape) < layout.batch_dims for shape in found):
            raise CheckError(
                f"{at}[{name!r}]: expected {layout.batch_dims} batch axes in front, got shapes {found}; "
                "say how many there are with batch_dims="
            )
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return flat[0][1]([torch.stack(column, layout.batch_dims) for column in columns])


def _unstack(spots: Tree, tree: Any, layout: _Layout) -> Any:
    if isinstance(spots, _Keyed):
        found: dict[str, Any] = {}
        for group, members in layout.groups.items():
            leaves, rebuild = flatten(tree if layout.stacked else tree[group])
            for i, name in enumerate(members):
                found[name] = rebuild([leaf.select(layout.batch_dims, i) for leaf in leaves])
        ordered = {key: found[key] for key in spots.keys}
        return ordered if spots.tensordict_dims is None else _tensordict(ordered, spots.tensordict_dims)
    if isinstance(spots, dict):
        return {key: _unstack(spots[key], value, layout) for key, value in tree.items()}
    if isinstance(spots, list | tuple):
        parts = zip(cast("list[Any]", spots), tree, strict=True)
        return type(spots)(_unstack(inner, value, layout) for inner, value in parts)
    return tree


def _tensordict(entries: dict[str, Any], batch_dims: int) -> Any:
    tensordict: Any = sys.modules["tensordict"]  # the inputs were one
    return tensordict.TensorDict(entries).auto_batch_size_(batch_dims)
