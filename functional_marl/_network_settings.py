"""All that defines a network: what the strategies are prepared from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from functional_marl._module.module_spec import ModuleSpec
from functional_marl._pytrees import Tree
from functional_marl._sharing import Sharing

__all__ = ["NetworkSettings", "Randomness", "StrategyName"]

Randomness = Literal["error", "same", "different"]
StrategyName = Literal["auto", "loop", "vmap", "plan"]


@dataclass(frozen=True, eq=False)
class NetworkSettings:
    """The module of one agent, who owns which slot, and where inputs and outputs carry the agents."""

    n_agents: int
    sharing: dict[str, Sharing]  # parameter leaf -> slot map
    state_sharing: dict[str, Sharing]  # buffer -> slot map
    centralized: bool
    agent_dim: Tree
    out_agent_dim: Tree
    randomness: Randomness
    strategy: StrategyName
    module_spec: ModuleSpec = field(repr=False)
    param_shapes: dict[str, tuple[int, ...]] = field(repr=False)  # parameter leaf -> [S, *leaf]
    state_shapes: dict[str, tuple[int, ...]] = field(repr=False)  # buffer -> [S, *leaf]

    @property
    def all_shared(self) -> bool:
        """Whether every parameter has one slot."""
        return all(sharing.is_shared for sharing in self.sharing.values())

    def initial_buffer(self, name: str, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
        """A buffer as the factory built it, ``[S, *leaf]``; None keeps the factory's device or dtype."""
        return self.module_spec.buffers[name].to(device=device, dtype=dtype).expand(self.state_shapes[name]).clone()
