"""Inputs laid out for the agents: which axis each agent takes its part from, and the joint input if centralized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._layout.agent_axis import check_agent_axis, find_agent_axes
from functional_marl._pytrees import Tree, flatten, is_array, leaf_names

__all__ = ["Inputs", "place_inputs"]

_DEFAULT_POSITION = -2  # where outputs carry the agents if no input has an agent axis


@dataclass(frozen=True)
class Inputs:
    """The leaves of all inputs of a call, and the agent axis of each."""

    leaves: list[Any]
    dims: list[int | None]  # None: every agent sees the leaf whole
    rebuild: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]  # leaves -> (args, kwargs)
    position: int  # the agent axis of the first input that has one; -2 if none has

    def of_agent(self, agent: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What one agent sees, as ``(args, kwargs)``. These are copies: a module may write into its input."""
        return self.rebuild(
            [
                leaf if not isinstance(leaf, Tensor) else (leaf if dim is None else leaf.select(dim, agent)).clone()
                for leaf, dim in zip(self.leaves, self.dims, strict=True)
            ]
        )


def place_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], n_agents: int, agent_dim: Tree, centralized: bool
) -> Inputs:
    """Find and check the agent axis of every input leaf; merge it into the next axis for a centralized network.

    Raises:
        StructureError: an input without the axis or with another size there; no axis to merge.
    """
    dims: list[int | None]
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(agent_dim, int):
        leaves: list[Any] = [args[0]]
        rebuild = _one_argument
        dims = [check_agent_axis(args[0], agent_dim, n_agents, "inputs[0]")]
    else:
        leaves, rebuild = _flatten_call(args, kwargs)
        names = [*leaf_names(args, "inputs"), *(leaf_names(kwargs, "kwargs") if kwargs else ())]
        _check_tensors(args, leaves, names)
        if isinstance(agent_dim, int) and args and isinstance(args[0], Mapping):
            _check_not_by_agent(args[0], n_agents, agent_dim)
        dims = find_agent_axes(args, kwargs, leaves, names, n_agents, agent_dim)
    position = next((dim for dim in dims if dim is not None), _DEFAULT_POSITION)
    if centralized:
        _merge_agent_axis(leaves, dims, len(flatten(args[:1])[0]))
    return Inputs(leaves, dims, rebuild, position)


def _one_argument(leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (leaves[0],), {}


def _flatten_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Callable[..., Any]]:
    if kwargs:
        return flatten((args, kwargs))
    leaves, rebuild = flatten(args)  # dynamo cannot trace optree over an empty dict
    return leaves, lambda new: (rebuild(new), {})


def _check_tensors(args: tuple[Any, ...], leaves: list[Any], names: list[str]) -> None:
    """Raise for arrays and lists of numbers: inputs are tensors."""
    for leaf, name in zip(leaves, names, strict=True):
        if not isinstance(leaf, Tensor) and is_array(leaf):
            raise StructureError(
                f"{name}: expected a tensor, got a {type(leaf).__name__} of shape {list(leaf.shape)}; "
                "torch.as_tensor(x) makes one"
            )
    if args and isinstance(args[0], list) and not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise StructureError(
            "inputs[0]: expected a tensor, or a tree with tensors, got a list without any; torch.tensor(x) makes one"
        )


def _check_not_by_agent(first: Mapping[Any, Any], n_agents: int, dim: int) -> None:
    """Raise for a dict from agent to input: ``n_agents`` tensors of one shape, without an agent axis."""
    shapes = [leaf.shape for leaf in first.values() if isinstance(leaf, Tensor)]
    if len(shapes) == len(first) == n_agents and all(shape == shapes[0] for shape in shapes):
        shape = shapes[0]
        if not (-len(shape) <= dim < len(shape) and shape[dim] == n_agents):
            raise StructureError(
                f"inputs[0]: expected {n_agents} agents at dim {dim}, got a dict of {n_agents} tensors of shape "
                f"{list(shape)}; fm.group_agents stacks a dict from agent to input"
            )


def _merge_agent_axis(leaves: list[Any], dims: list[int | None], n_first: int) -> None:
    """Merge the agent axis of the first input's ``n_first`` leaves into the next axis: all agents see them whole."""
    if all(dim is None for dim in dims[:n_first]):
        raise StructureError(
            "inputs[0]: expected a positional input with an agent axis, which centralized=True merges into the "
            "next axis; got none"
        )
    for k in range(n_first):
        dim = dims[k]
        if dim is None:
            continue
        if dim + 1 >= leaves[k].ndim:
            raise StructureError(
                f"inputs[0]: expected an axis after the agents at dim {dim}, into which centralized=True merges them, "
                f"got shape {list(leaves[k].shape)}"
            )
        if leaves[k].layout is not torch.strided:
            raise StructureError(
                f"inputs[0]: centralized takes dense tensors, got {leaves[k].layout}; give x.to_dense()"
            )
        leaves[k], dims[k] = leaves[k].flatten(dim, dim + 1), None
