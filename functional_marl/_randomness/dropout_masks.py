"""The arithmetic of dropout: which mask a dropout needs, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from functional_marl._errors import RandomnessError
from functional_marl.random import bernoulli

__all__ = ["DROPOUTS", "Dropout", "batched_dropout", "draws", "dropped", "forbidden", "mask_shape"]


class Dropout(NamedTuple):
    """What kind of dropout a function is."""

    alpha: bool = False  # keeps mean and variance of a SELU net (Klambauer et al. 2017, arXiv:1706.02515)
    channels: bool = False  # drops whole channels (Tompson et al. 2015, arXiv:1411.4280)
    batch_ndim: int = 0  # with channels: an input of fewer axes is a lone item [C, ...]


DROPOUTS: dict[Any, Dropout] = {
    F.dropout: Dropout(),
    torch.dropout: Dropout(),
    F.dropout1d: Dropout(channels=True, batch_ndim=3),
    F.dropout2d: Dropout(channels=True),
    F.dropout3d: Dropout(channels=True, batch_ndim=5),
    torch.feature_dropout: Dropout(channels=True),
    F.alpha_dropout: Dropout(alpha=True),
    torch.alpha_dropout: Dropout(alpha=True),
    F.feature_alpha_dropout: Dropout(alpha=True, channels=True),
    torch.feature_alpha_dropout: Dropout(alpha=True, channels=True),
}


def mask_shape(kind: Dropout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the mask for an input of this shape."""
    if not kind.channels:
        return shape
    lead = 1 if len(shape) < kind.batch_ndim else 2  # a lone item [C, ...], or a batch [N, C, ...]
    return (*shape[:lead], *[1] * (len(shape) - lead))


def dropped(x: Tensor, keep: Tensor, p: float, alpha: bool) -> Tensor:
    """``x`` where the mask is true, scaled so that the mean stays (Srivastava et al. 2014)."""
    mask = keep.to(x.dtype)
    if p == 1.0:
        return x * torch.zeros_like(mask)
    if not alpha:
        return x * (mask / (1.0 - p))
    low = -1.7580993408473766  # what a SELU saturates at: minus its scale times its alpha
    scale = (1.0 - p) ** -0.5 * (1.0 + p * low**2) ** -0.5
    return x * mask * scale + (1.0 - mask) * (low * scale) + (-low * scale * p)


def rounded(p: float) -> float:
    """The probability that a keyed mask really has."""
    return round(p * 65536) / 65536


def draws(p: float, x: Tensor) -> bool:
    """Whether a dropout of ``x`` draws: torch's keeps all, or drops all, without."""
    return 0.0 < p < 1.0 and x.numel() > 0


def forbidden() -> RandomnessError:
    """The error of a dropout under ``randomness="error"``."""
    return RandomnessError(
        'a dropout drew in training under randomness="error": make the network with randomness="same" or '
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
    """One dropout for all agents: ``h: [n, ...]``, or ``[...]`` where all see the same (not mapped).

    The masks are those that each agent would draw alone. Returns the result and whether it is mapped.
    """
    if randomness == "error" and draws(p, h):
        raise forbidden()
    kind = DROPOUTS[function]
    if p == 1.0 or randomness == "error":  # nothing is drawn
        return dropped(h, torch.ones((), dtype=torch.bool, device=h.device), p, kind.alpha), mapped
    shape = mask_shape(kind, tuple(h.shape[mapped:]))
    apart = randomness == "different"
    if key is None:
        keep = torch.rand((n_agents if apart else 1, *shape), device=h.device) >= p
    else:
        agents = torch.arange(n_agents if apart else 1, device=h.device)[:, None]
        keep = ~bernoulli(key.to(h.device), p, shape, site, agents)
        p = rounded(p)
    if not apart and not mapped:
        return dropped(h, keep[0], p, kind.alpha), False
    return dropped(h, keep, p, kind.alpha), True
