"""From slots to agents: each agent's row of a stacked leaf."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._clean_context import no_active_modes
from functional_marl._sharing import Sharing

__all__ = ["gather_slots", "index_tensor"]


@lru_cache(maxsize=1024)
def _kept_index(values: tuple[int, ...], device: torch.device) -> Tensor:
    with no_active_modes():
        return torch.tensor(values, device=device)


def index_tensor(values: tuple[int, ...], device: torch.device) -> Tensor:
    """An index tensor, kept for later calls: torch copies a list as index to the device at each call."""
    if torch.compiler.is_dynamo_compiling() or _torch_compat.dispatch_modes():
        return torch.tensor(values, device=device)  # a dispatch mode may make it fake; a fake tensor must not be kept
    return _kept_index(values, device)


def gather_slots(leaf: Tensor, sharing: Sharing) -> Tensor:
    """``[S, *leaf] -> [n, *leaf]``: each agent's row. A view where no copy is needed."""
    if sharing.is_independent:
        return leaf
    if sharing.is_shared:
        return leaf.expand(sharing.n_agents, *leaf.shape[1:])
    return leaf.index_select(0, index_tensor(sharing.slots, leaf.device))
