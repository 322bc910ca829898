"""Find the agent axis of every input, from ``agent_dim=`` of the network; the errors for a wrong one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, prefix_leaves
from functional_marl._torch_compat import statically_true

__all__ = ["check_agent_axis", "find_agent_axes"]


def find_agent_axes(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Sequence[Any],
    names: Sequence[str],
    n_agents: int,
    agent_dim: Tree,
) -> list[int | None]:
    """The agent axis of every leaf of a call, from 0; ``None`` for a leaf that every agent sees whole.

    Args:
        args, kwargs: the inputs of the call.
        leaves: their leaves, those of ``args`` first.
        names: the path of each leaf, for errors.
        n_agents: the size of an agent axis.
        agent_dim: as in :func:`functional_marl.network`.

    Raises:
        StructureError: an input without the axis, or with another size there; an int that fits two axes.
    """
    if agent_dim is None or isinstance(agent_dim, int):
        return _from_int(agent_dim, leaves, names, n_agents, (agent_dim,) * (len(args) + bool(kwargs)))
    prefix: tuple[Any, ...] = agent_dim if isinstance(agent_dim, tuple) else (agent_dim,)
    if kwargs and len(prefix) == len(args) + 1:
        return _from_each(prefix_leaves(prefix, (*args, kwargs), "agent_dim"), leaves, names, n_agents)
    dims = prefix_leaves(prefix, args, "agent_dim")
    axes = _from_each(dims, leaves[: len(dims)], names, n_agents)
    if not kwargs:
        return axes
    # Keyword inputs without an entry of their own follow the first input that has an agent axis.
    first = next((k for k, axis in enumerate(axes) if axis is not None), None)
    if first is None:
        return [*axes, *[None] * (len(leaves) - len(axes))]
    chosen = [first, *range(len(axes), len(leaves))]
    followed = _from_int(
        dims[first], [leaves[k] for k in chosen], [names[k] for k in chosen], n_agents, (*prefix, dims[first])
    )
    return axes + followed[1:]


def check_agent_axis(leaf: Tensor, dim: int, n_agents: int, name: str, also: str = "") -> int:
    """``dim`` as an axis from 0, checked to have one place for each agent.

    Args:
        leaf: an input.
        dim: where its agents should be.
        n_agents: the size of the axis.
        name: the path of the input, for the error.
        also: other axes that were tried, for the error.

    Raises:
        StructureError: no such axis, or another size there.

    >>> check_agent_axis(torch.zeros(5, 3, 4), -2, 3, "inputs[0]")
    1
    """
    if -leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == n_agents:
        return dim % leaf.ndim
    shape = list(leaf.shape)
    if not -leaf.ndim <= dim < leaf.ndim:
        raise StructureError(
            f"{name}: expected {n_agents} agents at dim {dim}{also}, got shape {shape}, which has no such dim; "
            "set agent_dim= of the network, with None for an input that every agent sees whole"
        )
    raise StructureError(
        f"{name}: expected {n_agents} agents at dim {dim}{also}, got {shape[dim]} in shape {shape}; set agent_dim= of "
        "the network to the agent axis, one int for all inputs or one for each"
    )


def _from_each(dims: Sequence[Any], leaves: Sequence[Any], names: Sequence[str], n_agents: int) -> list[int | None]:
    """The agent axis of every leaf, where each leaf has an entry of its own."""
    return [
        check_agent_axis(leaf, dim, n_agents, name) if isinstance(leaf, Tensor) and dim is not None else None
        for leaf, dim, name in zip(leaves, dims, names, strict=False)
    ]


def _from_int(
    dim: int | None, leaves: Sequence[Any], names: Sequence[str], n_agents: int, prefix: tuple[Any, ...]
) -> list[int | None]:
    """The agent axis of every leaf, where one int is for all of them; ``prefix`` is the same written for each."""
    found: list[int | None] = [None] * len(leaves)
    tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if dim is None or not tensors:
        return found
    first = tensors[0]
    position = found[first] = check_agent_axis(leaves[first], dim, n_agents, names[first])
    for k in tensors[1:]:
        leaf = leaves[k]
        from_end = dim + leaf.ndim if dim < 0 else position
        if from_end == position or from_end < 0:
            found[k] = check_agent_axis(leaf, position, n_agents, names[k])
            continue
        candidates = [axis for axis in (from_end, position) if axis < leaf.ndim]
        # A comparison fixes a size that a trace left open: such a size is compared only if no other axis fits.
        fits = [axis for axis in candidates if _holds_in_every_trace(leaf.shape[axis] == n_agents)]
        fits = fits or [axis for axis in candidates if leaf.shape[axis] == n_agents]
        if not fits:
            found[k] = check_agent_axis(leaf, position, n_agents, names[k], f" or {dim}")
            continue
        found[k] = fits[0]
        # If all axes from one to the other have size 1, both choices give the same.
        if len(fits) == 2 and math.prod(leaf.shape[min(fits) : max(fits) + 1]) != 1:
            raise StructureError(
                f"{names[k]}: expected {n_agents} agents on one axis, got shape {list(leaf.shape)}, where "
                f"agent_dim={dim} fits two axes: {from_end} (from the end of this input) and {position} (where "
                f"{names[first]} of shape {list(leaves[first].shape)} has the agents); agent_dim={prefix} counts from "
                f"the end of each input, agent_dim={position} is that axis in all of them, and a tuple can mix both"
            )
    return found


def _holds_in_every_trace(condition: Any) -> bool:
    """Whether a comparison of sizes is known to hold without a guard on a size that a trace left open."""
    if type(condition) is bool and not torch.compiler.is_dynamo_compiling():
        return condition
    return statically_true(condition)
