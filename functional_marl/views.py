"""How agents see inputs, and where outputs carry them: pure functions of shapes ahead of the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_marl.errors import StructureError
from functional_marl.trees import Tree, flatten, leaf_names, prefix_leaves

__all__ = ["Inputs", "place_inputs", "place_outputs", "with_agent_ids"]

_DEFAULT_OUT = -2  # where outputs carry the agents when no input does


@dataclass(frozen=True)
class Inputs:
    """The leaves of all inputs, the agent axis of each (None: seen whole), and the way back."""

    leaves: list[Any]
    dims: list[int | None]
    rebuild: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    position: int  # the agent axis of the first input that has one; -2 where none has

    def of_agent(self, agent: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What one agent sees, as ``(args, kwargs)``; copies, for a module may write into its input."""
        return self.rebuild(
            [
                leaf if not isinstance(leaf, Tensor) else (leaf if dim is None else leaf.select(dim, agent)).clone()
                for leaf, dim in zip(self.leaves, self.dims, strict=True)
            ]
        )


def place_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], n_agents: int, agent_dim: Tree, centralized: bool
) -> Inputs:
    """Find the agent axis of every input leaf, check it, and merge it for a centralized network.

    Raises:
        StructureError: an input without the axis or of another size; nothing to merge.
    """
    dims: list[int | None]
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(agent_dim, int):
        leaves: list[Any] = [args[0]]
        rebuild = _one_argument
        dims = [_positive(args[0], agent_dim, n_agents, "inputs[0]")]
    else:
        leaves, rebuild = _flatten_call(args, kwargs)
        dims = _resolve(args, kwargs, leaves, n_agents, agent_dim)
    position = next((dim for dim in dims if dim is not None), _DEFAULT_OUT)
    if centralized:
        _merge(leaves, dims, len(flatten(args[:1])[0]))
    return Inputs(leaves, dims, rebuild, position)


def _one_argument(leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (leaves[0],), {}


def _flatten_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Callable[..., Any]]:
    if kwargs:
        return flatten((args, kwargs))
    leaves, rebuild = flatten(args)  # dynamo cannot trace optree over an empty dict
    return leaves, lambda new: (rebuild(new), {})


def _resolve(
    args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any], n_agents: int, agent_dim: Tree
) -> list[int | None]:
    names = [*leaf_names(args, "inputs"), *(leaf_names(kwargs, "kwargs") if kwargs else ())]
    if agent_dim is None or isinstance(agent_dim, int):
        first = next((k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        if agent_dim is None or first is None:
            return [None] * len(leaves)
        position = _positive(leaves[first], agent_dim, n_agents, names[first])
        wanted: list[Any] = [position] * len(leaves)
    else:
        wanted = _prefix(args, kwargs, agent_dim)
    return [
        _positive(leaf, dim, n_agents, name) if isinstance(leaf, Tensor) and dim is not None else None
        for leaf, dim, name in zip(leaves, wanted, names, strict=True)
    ]


def _prefix(args: tuple[Any, ...], kwargs: dict[str, Any], agent_dim: Tree) -> list[Any]:
    """The prefix over the tuple of inputs; keyword inputs take the entry after the last positional one."""
    if not isinstance(agent_dim, tuple):
        agent_dim = (agent_dim,)
    if kwargs and len(agent_dim) == len(args) + 1:
        return prefix_leaves(agent_dim, (*args, kwargs), "agent_dim")
    dims = prefix_leaves(agent_dim, args, "agent_dim")
    if not kwargs:
        return dims
    first = next((k for k, dim in enumerate(dims) if dim is not None), None)
    if first is None:
        return dims + [None] * len(flatten(kwargs)[0])
    leaf = flatten(args)[0][first]
    return dims + [dims[first] % leaf.ndim] * len(flatten(kwargs)[0])


def _positive(leaf: Tensor, dim: int, n_agents: int, name: str) -> int:
    shape = list(leaf.shape)
    if not -leaf.ndim <= dim < leaf.ndim:
        raise StructureError(
            f"{name}: expected {n_agents} agents at dim {dim}, got shape {shape}, which has no such dim; "
            "agent_dim= takes a prefix with None for inputs that all agents see whole"
        )
    if shape[dim] != n_agents:
        raise StructureError(
            f"{name}: expected {n_agents} agents at dim {dim}, got {shape[dim]} in shape {shape}; agent_dim= of the "
            "network says where they are, one int for all inputs or one for each"
        )
    return dim % leaf.ndim


def _merge(leaves: list[Any], dims: list[int | None], first: int) -> None:
    """Merge the agent axis of the first input's leaves into the next axis; all agents see them whole."""
    if all(dim is None for dim in dims[:first]):
        raise StructureError(
            "inputs[0]: expected a positional input that carries the agents, for centralized merges their axis; "
            "got none"
        )
    for k in range(first):
        dim = dims[k]
        if dim is None:
            continue
        if dim + 1 >= leaves[k].ndim:
            raise StructureError(
                f"inputs[0]: expected an axis after the agents at dim {dim} to merge them into (centralized), "
                f"got shape {list(leaves[k].shape)}"
            )
        if leaves[k].layout is not torch.strided:
            raise StructureError(
                f"inputs[0]: centralized takes dense tensors, got {leaves[k].layout}; give x.to_dense()"
            )
        leaves[k], dims[k] = leaves[k].flatten(dim, dim + 1), None


def place_outputs(outputs: Tree, out_agent_dim: Tree, position: int) -> Tree:
    """Move the agent axis of every output leaf from the front to its place.

    Args:
        outputs: leaves ``[n, ...]``; leaves that are no tensors stay.
        out_agent_dim: an int, a prefix, or None for the position of the inputs.
        position: where the inputs carry the agents.
    """
    if isinstance(outputs, Tensor) and (out_agent_dim is None or isinstance(out_agent_dim, int)):
        return _move(outputs, position if out_agent_dim is None else out_agent_dim)
    leaves, rebuild = flatten(outputs)
    dims = prefix_leaves(out_agent_dim, outputs, "out_agent_dim")
    return rebuild(
        [
            _move(leaf, position if dim is None else dim) if isinstance(leaf, Tensor) else leaf
            for leaf, dim in zip(leaves, dims, strict=True)
        ]
    )


def _move(leaf: Tensor, dim: int) -> Tensor:
    if not -leaf.ndim <= dim < leaf.ndim:
        raise StructureError(
            f"outputs: an agent's output of shape {list(leaf.shape[1:])} has no place for the agents at dim "
            f"{dim}; give out_agent_dim="
        )
    return leaf.movedim(0, dim)


def with_agent_ids(x: Tensor, agent_dim: int = -2) -> Tensor:
    """Append a one-hot agent id to the features: ``[*B, n, F] -> [*B, n, F + n]``.

    A shared network can then treat agents apart (Gupta, Egorov, Kochenderfer 2017, "Cooperative
    multi-agent control using deep reinforcement learning"). ``agent_dim`` says where ``x`` carries the
    agents, any axis but the last.

    Raises:
        StructureError: ``agent_dim`` is no axis, or the last.

    >>> with_agent_ids(torch.zeros(2, 1))
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    if not -x.ndim <= agent_dim < x.ndim - 1 or agent_dim == -1:
        raise StructureError(
            f"with_agent_ids: expected an agent axis before the features, got dim {agent_dim} of {list(x.shape)}"
        )
    dim = agent_dim % x.ndim
    n = x.shape[dim]
    ids = torch.eye(n, dtype=x.dtype, device=x.device).view(n, *[1] * (x.ndim - dim - 2), n)
    return torch.cat((x, ids.expand(*x.shape[:-1], n)), -1)
