"""How many agents ``torch.func.vmap`` maps at a time: fewer where the activations of all of them would be large."""

from __future__ import annotations

import torch
from torch import Tensor

from functional_marl._network_settings import NetworkSettings

__all__ = ["activation_bytes", "agents_at_once", "in_chunks", "widest_leaf"]

# Agents are mapped in chunks of about 2 MB of activations if all activations take more than 16 MB and no gradient is
# recorded. Forward at width 64: 512 agents at batch 256 take 78 ms instead of 151, 17 MB instead of 101. At batch 32
# 4,096 agents take 88 ms instead of 137, 17 MB instead of 102. With less than 16 MB chunks are slower. With backward
# they are up to 28x as slow, because each chunk adds a gradient of full size.
CHUNK_ABOVE = 16 << 20
CHUNK = 2 << 20


def widest_leaf(net: NetworkSettings) -> int:
    """The most features that a leaf ``[S, features, ...]`` gives."""
    return max((shape[1] for shape in net.param_shapes.values() if len(shape) > 1), default=1)


def activation_bytes(x: Tensor, widest: int) -> int:
    """About how much a layer's output takes for all agents: a row of the widest leaf for each row of the input."""
    return x.numel() // max(1, x.shape[-1] if x.ndim else 1) * widest * x.element_size()


def in_chunks(size: int) -> bool:
    """Whether agents with activations of so many bytes are mapped in chunks."""
    return size > CHUNK_ABOVE and not torch.is_grad_enabled()


def agents_at_once(n: int, size: int) -> int:
    """How many of ``n`` agents to map at a time, for activations of so many bytes."""
    return min(n, max(1, CHUNK * n // size)) if in_chunks(size) else n
