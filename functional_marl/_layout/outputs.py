"""Outputs put back: the agent axis of every output moves from the front to its place."""

from __future__ import annotations

from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, prefix_leaves

__all__ = ["place_outputs"]


def place_outputs(outputs: Tree, out_agent_dim: Tree, position: int) -> Tree:
    """Move the agent axis of every output leaf from the front to its place.

    Args:
        outputs: leaves ``[n, ...]``; leaves that are no tensors stay.
        out_agent_dim: an int, a prefix, or None for the position of the inputs.
        position: where the inputs carry the agents.

    Raises:
        StructureError: an output with too few axes, or no prefix of the outputs.
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
            f"outputs: an agent's output of shape {list(leaf.shape[1:])} has no place for the agents at dim {dim}; "
            "set out_agent_dim= of the network"
        )
    return leaf.movedim(0, dim)
