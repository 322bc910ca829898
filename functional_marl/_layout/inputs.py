"""How agents see inputs, and where outputs carry them: pure functions of shapes ahead of the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_marl._arguments import as_index, shown
from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, is_array, leaf_names, prefix_leaves
from functional_marl._torch_compat import statically_true

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
    _check_leaves(args, leaves, names)
    if agent_dim is None or isinstance(agent_dim, int):
        if agent_dim is not None and args and isinstance(args[0], Mapping):
            _check_by_agent(args[0], n_agents, agent_dim)
        return _follow(agent_dim, leaves, names, n_agents, (agent_dim,) * (len(args) + bool(kwargs)))
    prefix: tuple[Any, ...] = agent_dim if isinstance(agent_dim, tuple) else (agent_dim,)
    if kwargs and len(prefix) == len(args) + 1:
        return _each(prefix_leaves(prefix, (*args, kwargs), "agent_dim"), leaves, names, n_agents)
    wanted = prefix_leaves(prefix, args, "agent_dim")
    dims = _each(wanted, leaves[: len(wanted)], names, n_agents)
    if not kwargs:
        return dims
    # keyword inputs without an entry follow the first input that has agents
    first = next((k for k, dim in enumerate(dims) if dim is not None), None)
    if first is None:
        return [*dims, *[None] * (len(leaves) - len(dims))]
    rest = [first, *range(len(dims), len(leaves))]
    lone = wanted[first]
    own = _follow(lone, [leaves[k] for k in rest], [names[k] for k in rest], n_agents, (*prefix, lone))
    return dims + own[1:]


def _each(dims: Sequence[Any], leaves: Sequence[Any], names: Sequence[str], n_agents: int) -> list[int | None]:
    """A position a leaf, from an entry a leaf."""
    return [
        _positive(leaf, dim, n_agents, name) if isinstance(leaf, Tensor) and dim is not None else None
        for leaf, dim, name in zip(leaves, dims, names, strict=False)
    ]


def _follow(
    dim: int | None, leaves: Sequence[Any], names: Sequence[str], n_agents: int, prefix: tuple[Any, ...]
) -> list[int | None]:
    """A position a leaf, from one int for all of them: see ``agent_dim`` of :func:`functional_marl.network`."""
    found: list[int | None] = [None] * len(leaves)
    tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if dim is None or not tensors:
        return found
    first = tensors[0]
    position = found[first] = _positive(leaves[first], dim, n_agents, names[first])
    for k in tensors[1:]:
        leaf = leaves[k]
        end = dim + leaf.ndim if dim < 0 else position
        if end == position or end < 0:
            found[k] = _positive(leaf, position, n_agents, names[k])
            continue
        candidates = [p for p in (end, position) if p < leaf.ndim]
        # A size that is left open while tracing is compared only where nothing else decides: it would be fixed.
        fits = [p for p in candidates if _surely(leaf.shape[p] == n_agents)]
        fits = fits or [p for p in candidates if leaf.shape[p] == n_agents]
        if not fits:
            found[k] = _positive(leaf, position, n_agents, names[k], f" or {dim}")
            continue
        found[k] = fits[0]
        # of a lone agent's axes of size 1 it is all the same which is taken
        if len(fits) == 2 and math.prod(leaf.shape[min(fits) : max(fits) + 1]) != 1:
            raise StructureError(
                f"{names[k]}: expected {n_agents} agents on one axis, got shape {list(leaf.shape)}, which "
                f"agent_dim={dim} reads in two ways: axis {end}, from its end, or axis {position}, where "
                f"{names[first]} of shape {list(leaves[first].shape)} has them; agent_dim={prefix} means from the end "
                f"of each, agent_dim={position} that position in all, and a tuple may mix them"
            )
    return found


def _surely(condition: Any) -> bool:
    """Whether a comparison of sizes holds, as far as a trace knows without a guard."""
    if type(condition) is bool and not torch.compiler.is_dynamo_compiling():
        return condition
    return statically_true(condition)


def _check_leaves(args: tuple[Any, ...], leaves: list[Any], names: list[str]) -> None:
    """Refuse arrays and lists of numbers where tensors are meant."""
    for leaf, name in zip(leaves, names, strict=True):
        if not isinstance(leaf, Tensor) and is_array(leaf):
            raise StructureError(
                f"{name}: expected a tensor, got a {type(leaf).__name__} of shape {list(leaf.shape)}; "
                "torch.as_tensor(x) makes one"
            )
    if args and isinstance(args[0], list) and not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise StructureError("inputs[0]: expected a tensor, or a tree with some, got a list without; torch.tensor(x)")


def _check_by_agent(first: Mapping[Any, Any], n_agents: int, dim: int) -> None:
    """Refuse a dict from agent to input: as many tensors as agents, alike, and none with an axis of agents."""
    shapes = [leaf.shape for leaf in first.values() if isinstance(leaf, Tensor)]
    if len(shapes) == len(first) == n_agents and all(shape == shapes[0] for shape in shapes):
        shape = shapes[0]
        if not (-len(shape) <= dim < len(shape) and shape[dim] == n_agents):
            raise StructureError(
                f"inputs[0]: expected {n_agents} agents at dim {dim}, got {n_agents} tensors of shape {list(shape)} by "
                "name; one input an agent is stacked by fm.group_agents"
            )


def _positive(leaf: Tensor, dim: int, n_agents: int, name: str, also: str = "") -> int:
    """The position of the agents, from 0; ``also`` is where else they were looked for."""
    if -leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == n_agents:
        return dim % leaf.ndim
    shape = list(leaf.shape)
    if not -leaf.ndim <= dim < leaf.ndim:
        raise StructureError(
            f"{name}: expected {n_agents} agents at dim {dim}{also}, got shape {shape}, which has no such dim; "
            "agent_dim= takes a prefix with None for inputs that all agents see whole"
        )
    raise StructureError(
        f"{name}: expected {n_agents} agents at dim {dim}{also}, got {shape[dim]} in shape {shape}; agent_dim= of the "
        "network says where they are, one int for all inputs or one for each"
    )


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
        StructureError: ``x`` is no tensor; ``agent_dim`` is no axis, or the last.

    >>> with_agent_ids(torch.zeros(2, 1))
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    if not isinstance(x, Tensor) or x.layout is not torch.strided:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"with_agent_ids: expected a dense tensor as x, got {shown(x)}")
    agent_dim = as_index(agent_dim, "agent_dim")
    if not -x.ndim <= agent_dim < x.ndim - 1 or agent_dim == -1:
        raise StructureError(
            f"agent_dim: expected an agent axis before the features, got dim {agent_dim} of {list(x.shape)}"
        )
    dim = agent_dim % x.ndim
    n = x.shape[dim]
    ids = torch.eye(n, dtype=x.dtype, device=x.device).view(n, *[1] * (x.ndim - dim - 2), n)
    return torch.cat((x, ids.expand(*x.shape[:-1], n)), -1)
