"""Agent ids as input features."""

from __future__ import annotations

import torch
from torch import Tensor

from functional_marl._arguments import as_index, short_repr
from functional_marl._errors import StructureError

__all__ = ["with_agent_ids"]


def with_agent_ids(x: Tensor, agent_dim: int = -2) -> Tensor:
    """Append a one-hot agent id to the features: ``[*B, n, F] -> [*B, n, F + n]``.

    A shared network can then behave differently for each agent (Gupta, Egorov, Kochenderfer 2017, "Cooperative
    multi-agent control using deep reinforcement learning"). ``agent_dim`` is the agent axis of ``x``, any axis
    but the last.

    Raises:
        StructureError: ``x`` is no tensor; ``agent_dim`` is no axis, or the last.

    >>> with_agent_ids(torch.zeros(2, 1))
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    if not isinstance(x, Tensor) or x.layout is not torch.strided:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"with_agent_ids: expected a dense tensor as x, got {short_repr(x)}")
    agent_dim = as_index(agent_dim, "agent_dim")
    if not -x.ndim <= agent_dim < x.ndim - 1 or agent_dim == -1:
        raise StructureError(
            f"agent_dim: expected an agent axis before the features, got dim {agent_dim} of {list(x.shape)}"
        )
    dim = agent_dim % x.ndim
    n = x.shape[dim]
    ids = torch.eye(n, dtype=x.dtype, device=x.device).view(n, *[1] * (x.ndim - dim - 2), n)
    return torch.cat((x, ids.expand(*x.shape[:-1], n)), -1)
