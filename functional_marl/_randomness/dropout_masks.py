"""The arithmetic of dropout: the shape of a mask, what a mask does to an input, and one dropout for all agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from functional_marl._errors import RandomnessError
from functional_marl.random import bernoulli

__all__ = [
    "DROPOUTS",
    "DropoutKind",
    "apply_mask",
    "batched_dropout",
    "forbidden_dropout",
    "keyed_probability",
    "mask_shape",
    "samples_mask",
]


class DropoutKind(NamedTuple):
    """Which dropout a function computes."""

    alpha: bool = False  # keeps mean and variance of a SELU net (Klambauer et al. 2017, arXiv:1706.02515)
    channels: bool = False  # drops whole channels (Tompson et al. 2015, arXiv:1411.4280)
    batch_ndim: int = 0  # with channels: an input of fewer axes has no batch axis, [C, ...]


DROPOUTS: dict[Any, DropoutKind] = {
    F.dropout: DropoutKind(),
    torch.dropout: DropoutKind(),
    F.dropout1d: DropoutKind(channels=True, batch_ndim=3),
    F.dropout2d: DropoutKind(channels=True),
    F.dropout3d: DropoutKind(channels=True, batch_ndim=5),
    torch.feature_dropout: DropoutKind(channels=True),
    F.alpha_dropout: DropoutKind(alpha=True),
    torch.alpha_dropout: DropoutKind(alpha=True),
    F.feature_alpha_dropout: DropoutKind(alpha=True, channels=True),
    torch.feature_alpha_dropout: DropoutKind(alpha=True, channels=True),
}


def mask_shape(kind: DropoutKind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the mask for an input of this shape."""
    if not kind.channels:
        return shape
    leading = 1 if len(shape) < kind.batch_ndim else 2  # [C, ...] without a batch axis, [N, C, ...] with one
    return (*shape[:leading], *[1] * (len(shape) - leading))


def apply_mask(x: Tensor, keep: Tensor, p: float, alpha: bool) -> Tensor:
    """``x`` where the mask is true, scaled so that the mean stays the same (Srivastava et al. 2014)."""
    mask = keep.to(x.dtype)
    if p == 1.0:
        return x * torch.zeros_like(mask)
    if not alpha:
        return x * (mask / (1.0 - p))
    low = -1.7580993408473766  # the lower limit of SELU: minus its scale times its alpha
    scale = (1.0 - p) ** -0.5 * (1.0 + p * low**2) ** -0.5
    return x * mask * scale + (1.0 - mask) * (low * scale) + (-low * scale * p)


def keyed_probability(p: float) -> float:
    """The probability that a keyed mask has: :func:`functional_marl.random.bernoulli` has 16 bits for it."""
    return round(p * 65536) / 65536


def samples_mask(p: float, x: Tensor) -> bool:
    """Whether a dropout of ``x`` samples. Torch's keeps all (p = 0) or drops all (p = 1) without random numbers."""
    return 0.0 < p < 1.0 and x.numel() > 0


def forbidden_dropout() -> RandomnessError:
    """The error of a dropout that samples under ``randomness="error"``."""
    return RandomnessError(
        'a dropout sampled in training under randomness="error": make the network with randomness="same" or '
        '"different", or call apply with train=False'
    )


def batched_dropout(
    function: Callable[..., Tensor],
    h: Tensor,
    p: float,
    mapped: bool,
    n_agents: int,
    key: Tensor | None,
    randomness: str,
    site: int,
) -> tuple[Tensor, bool]:
    """One dropout for all agents: ``h: [n, ...]`` if mapped, else ``[...]``, equal for all agents.

    Each agent gets the mask that it would sample alone. Returns the result, and whether it is mapped.
    """
    if randomness == "error" and samples_mask(p, h):
        raise forbidden_dropout()
    kind = DROPOUTS[function]
    if p == 1.0 or randomness == "error":  # nothing is sampled
        return apply_mask(h, torch.ones((), dtype=torch.bool, device=h.device), p, kind.alpha), mapped
    shape = mask_shape(kind, tuple(h.shape[mapped:]))
    different = randomness == "different"
    if key is None:
        keep = torch.rand((n_agents if different else 1, *shape), device=h.device) >= p
    else:
        agents = torch.arange(n_agents if different else 1, device=h.device)[:, None]
        keep = ~bernoulli(key.to(h.device), p, shape, site, agents)
        p = keyed_probability(p)
    if not different and not mapped:
        return apply_mask(h, keep[0], p, kind.alpha), False
    return apply_mask(h, keep, p, kind.alpha), True
