"""Data stacked by group, and back: from one entry for each agent to one for each group.

A group map (:func:`functional_marl.group_map`) defines which agents form a group. The data of its agents are
stacked, so that one network evaluates all of them in one call. Its outputs are then split by agent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._check_arguments import as_flag, as_index
from functional_marl._errors import GroupingError, StructureError
from functional_marl._groups.check_group_map import as_groups, check_group_map, check_keys, quote
from functional_marl._pytrees import Tree, flatten, is_tensordict, leaf_names, tree_map

__all__ = ["group_agents", "ungroup_agents"]


def _check_data(
    groups: Mapping[str, Sequence[str]], batch_dims: int, squeeze_singletons: bool
) -> tuple[list[str], int, bool]:
    """Check a group map and the settings: all agents of the map, and the settings as plain values."""
    groups = as_groups(groups)
    agents = [name for members in groups.values() for name in members]
    if not agents:
        raise GroupingError("groups: expected at least one agent, got none; give each agent a group")
    check_group_map(groups, dict.fromkeys(agents))
    return agents, as_index(batch_dims, "batch_dims", 0), as_flag(squeeze_singletons, "squeeze_singletons")


def _tensor(leaf: Any) -> Tensor:
    """A leaf as a tensor: a tensor itself, a copy of a number or NumPy array."""
    if isinstance(leaf, Tensor):
        return leaf
    if hasattr(leaf, "__array_interface__"):
        leaf = leaf.copy()  # torch takes arrays that are writable and have no negative strides
    elif not isinstance(leaf, bool | int | float):
        raise TypeError(f"expected a tensor, an array or a number, got {type(leaf).__name__}; leave it out")
    return torch.as_tensor(leaf)


def _like(container: Tree, entries: dict[str, Tree], batch_dims: int) -> Tree:
    """The entries as a dict; as a TensorDict with batch axes [*B] if ``container`` is a TensorDict."""
    if not is_tensordict(container):
        return entries
    out = container.empty().to_tensordict()
    out.batch_size = container.batch_size[:batch_dims]
    for name, entry in entries.items():
        out.set(name, entry)
    return out


def _stack(leaves: Sequence[Any], dim: int) -> Tensor:
    """Leaves [*B, *leaf] of one shape and dtype -> [*B, n, *leaf]; a Python number fits any dtype."""
    tensors = [_tensor(leaf) for leaf in leaves]
    dtypes = [t.dtype for t, leaf in zip(tensors, leaves, strict=True) if not isinstance(leaf, bool | int | float)]
    for tensor in tensors:
        if tensor.ndim < dim:
            raise StructureError(f"expected {dim} or more batch axes, got shape {list(tensor.shape)}")
        if tensor.shape != tensors[0].shape:
            raise StructureError(f"expected shape {list(tensors[0].shape)}, got {list(tensor.shape)}")
    for dtype in dtypes:
        if dtype != dtypes[0]:
            raise StructureError(f"expected {dtypes[0]}, got {dtype}")
    return torch.stack(tensors, dim)


def _problem(leaves: Sequence[Any], dim: int) -> str:
    """Why these leaves cannot be stacked; empty if they can."""
    try:
        _stack(leaves, dim)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return ""


def _misfits(per_agent: Tree, members: Sequence[str], dim: int) -> list[str]:
    """Why the trees of these agents cannot be stacked: a message for each leaf that differs from the first agent's."""
    found = {
        agent: dict(zip(leaf_names(tree), flatten(tree)[0], strict=True))
        for agent, tree in ((agent, per_agent[agent]) for agent in members)
    }
    first = found[members[0]]
    wrong: list[str] = []
    for agent, leaves in found.items():
        for path in {**first, **leaves}:
            if path not in leaves:
                problem = "expected a leaf, got none"
            elif path not in first:
                problem = "expected no leaf, got one"
            elif not (problem := _problem([leaves[path]], dim)) and not _problem([first[path]], dim):
                problem = _problem([first[path], leaves[path]], dim)
            if problem:
                wrong.append(f"per_agent[{agent!r}]{path}: {problem}")
    return wrong


def group_agents(
    groups: Mapping[str, Sequence[str]],
    per_agent: Tree,
    batch_dims: int = 0,
    *,
    squeeze_singletons: bool = False,
) -> Tree:
    """Stack the trees of the agents of each group: ``{agent: tree}`` -> ``{group: tree}``.

    Each leaf ``[*B, *leaf]`` of ``n`` agents becomes one new tensor ``[*B, n, *leaf]`` that shares no memory
    with its agents' leaves. Equivalent, leaf by leaf, to
    ``{group: torch.stack([per_agent[agent] for agent in members], batch_dims)}``.

    Args:
        groups: a group map of exactly the agents of ``per_agent``.
        per_agent: agent -> any tree of tensors, NumPy arrays and Python numbers, all of which become tensors
            (Python floats of torch's default dtype); or a TensorDict keyed by agent: the result is then one
            keyed by group, with entries of batch size ``[*B, n]``.
        batch_dims: the number of batch axes ``*B`` that stay in front of the agent axis.
        squeeze_singletons: leave the agent axis out where a group has one agent: the layout printed on
            TorchRL's page of ``MarlGroupMapType``. TorchRL itself (0.14) keeps the axis, and so does the default
            here: a network then sees the same axes for any number of agents.

    Raises:
        GroupingError: ``groups`` is no partition, or its agents are not those of ``per_agent``.
        StructureError: members of a group differ in structure, shape or dtype, or a leaf has too few axes.

    >>> boards = {f"player_{i}": torch.zeros(3, 3, 2) for i in (1, 2)}
    >>> {group: list(x.shape) for group, x in group_agents({"agents": list(boards)}, boards).items()}
    {'agents': [2, 3, 3, 2]}
    >>> group_agents({"a": ["x", "z"], "b": ["y"]}, {"x": 1, "y": 2, "z": 3})
    {'a': tensor([1, 3]), 'b': tensor([2])}
    """
    agents, batch_dims, squeeze_singletons = _check_data(groups, batch_dims, squeeze_singletons)
    fix = "give every agent of the groups and no other (for agents that have left, give placeholder data and mask it)"
    check_keys("per_agent", "agent", per_agent, agents, fix)
    grouped: dict[str, Tree] = {}
    for group, members in groups.items():
        member_trees = [per_agent[agent] for agent in members]
        squeeze = squeeze_singletons and len(members) == 1

        def stack(*leaves: Any, squeeze: bool = squeeze) -> Tensor:
            stacked = _stack(leaves, batch_dims)
            return stacked.squeeze(batch_dims) if squeeze else stacked

        try:
            tree = tree_map(stack, *member_trees)
            if is_tensordict(tree) and (leaves := flatten(tree)[0]):
                tree.batch_size = leaves[0].shape[: batch_dims + (not squeeze)]
        except (ValueError, TypeError, RuntimeError) as error:
            wrong = _misfits(per_agent, members, batch_dims) or [str(error)]
            raise StructureError(
                f"group {group!r} of {quote(members)} cannot be stacked, compared with {members[0]!r}:"
                f" {'; '.join(wrong)}; pad or cast the data, or put these agents into different groups"
            ) from None
        grouped[group] = tree
    return _like(per_agent, grouped, batch_dims)


def _split(path: str, tree: Tree, members: Sequence[str], dim: int, squeezed: bool) -> list[Tree]:
    """A tree of leaves [*B, n, *leaf] -> n trees of leaves [*B, *leaf], which are views."""
    leaves, rebuild = flatten(tree)
    axes = f"{dim} or more batch axes" if squeezed else f"{len(members)} agents on axis {dim}"

    def problem(leaf: Any) -> str:
        try:
            shape = list(_tensor(leaf).shape)
        except (TypeError, RuntimeError) as error:
            return str(error)
        fits = len(shape) >= dim if squeezed else shape[dim : dim + 1] == [len(members)]
        return "" if fits else f"expected {axes}, got shape {shape}"

    if any(problems := [problem(leaf) for leaf in leaves]):
        named = zip(leaf_names(tree, path), problems, strict=True)
        wrong = "; ".join(f"{name}: {text}" for name, text in named if text)
        raise StructureError(f"{wrong} (agents {quote(members)}); check groups and batch_dims")
    tensors = [_tensor(leaf) for leaf in leaves]
    if squeezed:
        return [rebuild(tensors)]
    if is_tensordict(tree) and tree.batch_dims > dim:
        return [member.copy() for member in tree.unbind(dim)]
    return [rebuild([tensor.select(dim, i) for tensor in tensors]) for i in range(len(members))]


def ungroup_agents(
    groups: Mapping[str, Sequence[str]],
    grouped: Tree,
    batch_dims: int = 0,
    *,
    squeeze_singletons: bool = False,
) -> Tree:
    """Undo :func:`group_agents`: ``{group: tree}`` -> ``{agent: tree}``, agents in the order of the groups.

    Each leaf ``[*B, n, *leaf]`` gives its agents the leaves ``leaf.select(batch_dims, i)``, ``[*B, *leaf]``.
    These are views: they share memory with the leaves of ``grouped`` (clone them before writing into them).
    NumPy arrays among the leaves are copied first.

    Args:
        groups: the group map that ``grouped`` follows.
        grouped: group -> tree; or a TensorDict keyed by group: the result is then one keyed by agent.
        batch_dims: the number of batch axes ``*B`` in front of the agent axis.
        squeeze_singletons: the agent axis is left out where a group has one agent.

    Raises:
        GroupingError: ``groups`` is no partition, or its groups are not those of ``grouped``.
        StructureError: a leaf without an agent axis of the size of its group.

    >>> ungroup_agents({"a": ["x", "z"], "b": ["y"]}, {"a": torch.tensor([1, 3]), "b": torch.tensor([2])})
    {'x': tensor(1), 'z': tensor(3), 'y': tensor(2)}
    """
    _, batch_dims, squeeze_singletons = _check_data(groups, batch_dims, squeeze_singletons)
    check_keys("grouped", "group", grouped, groups, "give one tree for each group")
    per_agent: dict[str, Tree] = {}
    for group, members in groups.items():
        squeezed = squeeze_singletons and len(members) == 1
        found = _split(f"grouped[{group!r}]", grouped[group], members, batch_dims, squeezed)
        per_agent.update(zip(members, found, strict=True))
    return _like(grouped, per_agent, batch_dims)
