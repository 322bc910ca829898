"""The way of data into groups of agents and out again, and one network for each group.

A group map (:mod:`functional_marl.grouping`) says which agents form a group. Data keyed by agent are stacked,
so that one network evaluates all agents of a group in one call; what comes out is keyed by agent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl import _pytrees as trees
from functional_marl._apply import apply
from functional_marl._arguments import as_flag, as_index, shown
from functional_marl._errors import GroupingError, StructureError
from functional_marl._groups.group_map import as_groups, check_group_map, quote
from functional_marl._network import Network
from functional_marl._pytrees import Tree
from functional_marl.random import Key, fold_in

__all__ = ["apply_groups", "group_agents", "ungroup_agents"]


def _check_keys(what: str, kind: str, given: Any, wanted: Iterable[str], fix: str) -> None:
    """Raise unless the mapping or TensorDict ``given`` has exactly the keys ``wanted``."""
    if not hasattr(given, "keys"):
        raise GroupingError(f"{what}: expected a mapping from {kind} to tree, got {type(given).__name__}; {fix}")
    expected, got = dict.fromkeys(wanted), dict.fromkeys(given.keys())
    if expected.keys() != got.keys():
        missing = quote(key for key in expected if key not in got)
        extra = quote(key for key in got if key not in expected)
        raise GroupingError(
            f"{what}: expected the {kind}s {quote(expected)}, got {quote(got) or 'none'}"
            f" (missing: {missing or 'none'}; extra: {extra or 'none'}); {fix}"
        )


def _check_data(
    groups: Mapping[str, Sequence[str]], batch_dims: int, squeeze_singletons: bool
) -> tuple[list[str], int, bool]:
    """All agents of a group map, after checking that the map is a partition of them; and the checked settings."""
    groups = as_groups(groups)
    agents = [name for members in groups.values() for name in members]
    if not agents:
        raise GroupingError("groups: expected at least one agent, got none; give each agent a group")
    check_group_map(groups, dict.fromkeys(agents))
    return agents, as_index(batch_dims, "batch_dims", 0), as_flag(squeeze_singletons, "squeeze_singletons")


def _tensor(leaf: Any) -> Tensor:
    """A leaf as a tensor: tensors as they are, numbers and NumPy arrays as copies."""
    if isinstance(leaf, Tensor):
        return leaf
    if hasattr(leaf, "__array_interface__"):
        leaf = leaf.copy()  # a copy is writable and has no negative strides, as torch wants it
    elif not isinstance(leaf, bool | int | float):
        raise TypeError(f"expected a tensor, an array or a number, got {type(leaf).__name__}; leave it out")
    return torch.as_tensor(leaf)


def _like(container: Tree, entries: dict[str, Tree], batch_dims: int) -> Tree:
    """The entries as a dict, or, where ``container`` is a TensorDict, as a TensorDict of batch axes [*B]."""
    if not trees.is_tensordict(container):
        return entries
    out = container.empty().to_tensordict()
    out.batch_size = container.batch_size[:batch_dims]
    for name, entry in entries.items():
        out.set(name, entry)
    return out


def _stack(leaves: Sequence[Any], dim: int) -> Tensor:
    """Leaves [*B, *leaf] of one shape and dtype -> [*B, n, *leaf]; a Python number goes with any dtype."""
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
    """Why these leaves do not stack; empty if they do."""
    try:
        _stack(leaves, dim)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return ""


def _misfits(per_agent: Tree, members: Sequence[str], dim: int) -> list[str]:
    """Why the trees of these agents do not stack: one message for each leaf unlike the first agent's."""
    found = {
        agent: dict(zip(trees.leaf_names(tree), trees.flatten(tree)[0], strict=True))
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
            TorchRL's page of ``MarlGroupMapType``. TorchRL itself (0.14) keeps the axis, and so does the
            default here, for then networks need not ask how many agents a group has.

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
    fix = "give every agent of the groups and no other (fill in for agents that are gone, and mask them)"
    _check_keys("per_agent", "agent", per_agent, agents, fix)
    grouped: dict[str, Tree] = {}
    for group, members in groups.items():
        member_trees = [per_agent[agent] for agent in members]
        squeeze = squeeze_singletons and len(members) == 1

        def stack(*leaves: Any, squeeze: bool = squeeze) -> Tensor:
            stacked = _stack(leaves, batch_dims)
            return stacked.squeeze(batch_dims) if squeeze else stacked

        try:
            tree = trees.tree_map(stack, *member_trees)
            if trees.is_tensordict(tree) and (leaves := trees.flatten(tree)[0]):
                tree.batch_size = leaves[0].shape[: batch_dims + (not squeeze)]
        except (ValueError, TypeError, RuntimeError) as error:
            wrong = _misfits(per_agent, members, batch_dims) or [str(error)]
            raise StructureError(
                f"group {group!r} of {quote(members)} does not stack, measured by {members[0]!r}:"
                f" {'; '.join(wrong)}; pad or cast the data, or put these agents into different groups"
            ) from None
        grouped[group] = tree
    return _like(per_agent, grouped, batch_dims)


def _split(path: str, tree: Tree, members: Sequence[str], dim: int, squeezed: bool) -> list[Tree]:
    """A tree of leaves [*B, n, *leaf] -> n trees of leaves [*B, *leaf], views of them."""
    leaves, rebuild = trees.flatten(tree)
    axes = f"{dim} or more batch axes" if squeezed else f"{len(members)} agents on axis {dim}"

    def problem(leaf: Any) -> str:
        try:
            shape = list(_tensor(leaf).shape)
        except (TypeError, RuntimeError) as error:
            return str(error)
        fits = len(shape) >= dim if squeezed else shape[dim : dim + 1] == [len(members)]
        return "" if fits else f"expected {axes}, got shape {shape}"

    if any(problems := [problem(leaf) for leaf in leaves]):
        named = zip(trees.leaf_names(tree, path), problems, strict=True)
        wrong = "; ".join(f"{name}: {text}" for name, text in named if text)
        raise StructureError(f"{wrong} (agents {quote(members)}); check groups and batch_dims")
    tensors = [_tensor(leaf) for leaf in leaves]
    if squeezed:
        return [rebuild(tensors)]
    if trees.is_tensordict(tree) and tree.batch_dims > dim:
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
        StructureError: a leaf whose agent axis has not one place for each agent of its group.

    >>> ungroup_agents({"a": ["x", "z"], "b": ["y"]}, {"a": torch.tensor([1, 3]), "b": torch.tensor([2])})
    {'x': tensor(1), 'z': tensor(3), 'y': tensor(2)}
    """
    _, batch_dims, squeeze_singletons = _check_data(groups, batch_dims, squeeze_singletons)
    _check_keys("grouped", "group", grouped, groups, "give one tree for each group")
    per_agent: dict[str, Tree] = {}
    for group, members in groups.items():
        squeezed = squeeze_singletons and len(members) == 1
        found = _split(f"grouped[{group!r}]", grouped[group], members, batch_dims, squeezed)
        per_agent.update(zip(members, found, strict=True))
    return _like(grouped, per_agent, batch_dims)


def apply_groups(
    nets: Mapping[str, Network],
    params: Tree,
    inputs: Tree,
    *,
    key: Key | None = None,
    state: Mapping[str, Tree] | None = None,
    train: bool = False,
    mutable: bool | Mapping[str, bool] = False,
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate one network and one parameter tree a group, each as :func:`functional_marl.apply` does.

    Equivalent to ``{group: apply(nets[group], params[group], *inputs[group], ...) for group in nets}``.

    Args:
        nets: group -> network.
        params: group -> the parameters of that network.
        inputs: group -> its input ``[*B, n, F]``, or a tuple of several inputs (a named tuple is one input).
        key: group ``i``, in the order of ``nets``, draws from ``fold_in(key, i)``.
        state: group -> buffers, or ``None`` for a network without any.
        train: for all groups.
        mutable: for all groups, or group -> bool. The value of a group with ``True`` is ``(output, state)``.
        kwargs: group -> keyword inputs.

    Raises:
        GroupingError: ``nets`` is no mapping, or another mapping has other groups.

    >>> import functional_marl as fm
    >>> nets = {"wolf": fm.network(lambda: torch.nn.Linear(4, 2), n_agents=3, sharing="shared"),
    ...         "sheep": fm.network(lambda: torch.nn.Linear(5, 1), n_agents=1)}
    >>> params = {group: fm.init_params(net, fm.key(0)) for group, net in nets.items()}
    >>> y = apply_groups(nets, params, {"wolf": torch.zeros(7, 3, 4), "sheep": torch.zeros(7, 1, 5)})
    >>> {group: list(out.shape) for group, out in y.items()}
    {'wolf': [7, 3, 2], 'sheep': [7, 1, 1]}
    """
    if not isinstance(nets, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"nets: expected a mapping from group to network, got {shown(nets)}")
    may_change: Any = mutable if hasattr(mutable, "keys") else dict.fromkeys(nets, as_flag(mutable, "mutable"))
    no_state: dict[str, Tree] = dict.fromkeys(nets)
    states, keywords = no_state if state is None else state, no_state if kwargs is None else kwargs
    given = {"params": params, "inputs": inputs, "state": states, "mutable": may_change, "kwargs": keywords}
    for what, mapping in given.items():
        _check_keys(what, "group", mapping, nets, "give one entry for each group of nets")
    outputs: dict[str, Any] = {}
    for i, (group, net) in enumerate(nets.items()):
        x = inputs[group]
        several = isinstance(x, tuple) and not hasattr(x, "_fields")  # pyright: ignore[reportUnknownArgumentType]
        try:
            outputs[group] = apply(
                net,
                params[group],
                *(x if several else (x,)),
                key=None if key is None else fold_in(key, i),
                state=states[group],
                train=train,
                mutable=may_change[group],
                kwargs=keywords[group],
            )
        except Exception as error:
            error.add_note(f"in group {group!r} of apply_groups")
            raise
    return outputs
