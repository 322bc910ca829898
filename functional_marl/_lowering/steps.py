"""What a step of the plan gets and gives.

A value is ``(h, mapped)``: mapped, the agents are in front, ``h: [n, *what one agent sees]``; not mapped,
all agents see the same ``h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from functional_marl._errors import Unsupported
from functional_marl._lowering.dense import gather_slots
from functional_marl._sharing import Sharing

__all__ = [
    "Leaves",
    "Run",
    "Step",
    "Unsupported",
    "Value",
    "channels_apart",
    "channels_together",
    "linear_of",
    "linear_rows",
    "plain_layout",
]


@dataclass
class Run:
    """What one call of a plan carries from step to step."""

    n_agents: int
    params: dict[str, Tensor]  # [S, *leaf]
    state: dict[str, Tensor]  # [S, *leaf]
    key: Tensor | None
    randomness: str
    train: bool
    site: int = 0


Value = tuple[Tensor, bool]
Step = Callable[[Run, Tensor, bool], Value]


@dataclass(frozen=True)
class Leaves:
    """A layer's leaves: full names and slot maps by attribute."""

    names: dict[str, str]
    slots: dict[str, Sharing]

    @property
    def shared(self) -> bool:
        """Whether all agents have the same leaves."""
        return all(sharing.is_shared for sharing in self.slots.values())

    def rows(self, run: Run, attribute: str) -> Tensor | None:
        """The leaf as ``[k, *leaf]``, ``k`` 1 if the layer is shared and else ``n``; None if it has none."""
        name = self.names.get(attribute)
        if name is None:
            return None
        leaf = run.params[name] if name in run.params else run.state[name]
        return leaf if self.shared else gather_slots(leaf, self.slots[attribute])


def linear_of(run: Run, leaves: Leaves, weight: str, bias: str) -> Callable[[Tensor], Tensor]:
    """``[n, B, F] -> [n, B, F_out]`` with every agent's weight; rows of one product where all share."""
    w = leaves.rows(run, weight)
    assert w is not None
    return linear_rows(w, leaves.rows(run, bias))


def linear_rows(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``[n, ..., F] -> [n, ..., F_out]`` with weights ``[k, out, in]``, where ``k`` is ``n`` or 1."""
    w, b = weight.mT, None if bias is None else bias.unsqueeze(1)

    def product(h: Tensor) -> Tensor:
        x = h.reshape(w.shape[0], -1, h.shape[-1]) if h.numel() else h.reshape(w.shape[0], 0, h.shape[-1])
        out = torch.bmm(x, w) if b is None else torch.baddbmm(b, x, w)
        return out.reshape(*h.shape[:-1], out.shape[-1])

    return product


def channels_together(x: Tensor) -> Tensor:
    """``[k, B, C, ...] -> [B, k * C, ...]``."""
    return x[0] if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)


def channels_apart(x: Tensor, k: int) -> Tensor:
    """``[B, k * C, ...] -> [k, B, C, ...]``."""
    return x[None] if k == 1 else x.unflatten(1, (k, -1)).transpose(0, 1)


def plain_layout(h: Tensor, mapped: bool) -> Tensor:
    """Images ``[n, B, C, H, W]`` without channels_last, which is the plan's alone: ``.view`` works as by the loop."""
    if mapped and h.ndim == 5 and h.stride(-1) != 1:
        return channels_apart(channels_together(h).contiguous(), h.shape[0])
    return h
