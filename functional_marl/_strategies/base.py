"""What an evaluation gets and gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from functional_marl._layout.inputs import Inputs
from functional_marl._network import Network
from functional_marl._pytrees import Tree

__all__ = ["Call", "Result"]


@dataclass(frozen=True)
class Call:
    """One call of ``apply``, checked: parameters, state and inputs fit the network."""

    net: Network
    params: dict[str, Tensor]  # [S, *leaf]
    state: dict[str, Tensor]  # [S, *leaf]
    inputs: Inputs
    key: Tensor | None  # [2]
    train: bool
    mutable: bool


@dataclass(frozen=True)
class Result:
    """Outputs with the agents in front, ``[n, ...]`` a leaf, and every agent's buffers after the call."""

    outputs: Tree
    state: dict[str, Tensor]  # [n, *leaf]; empty unless the call is mutable
