"""Noticing a shared one-agent module that reads the agents' axis, which torchrl gives it and we do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from functional_marl._randomness.rng_state import rng_states, set_rng_states

__all__ = ["AgentsApartWarning", "reads_agents", "warn_apart"]

_ROWS = 8  # of the first axis are enough to see it
_APART = (
    "torchrl calls the one-agent module of a shared network on the inputs of all agents at once, [*B, n, F]; here it "
    "is called on one agent's, [*B, F], and this one computes something else then: it reads the agents' axis. Compute "
    'what depends on several agents ahead of the network, as further features (README, "Coming from torchrl")'
)


class AgentsApartWarning(UserWarning):
    """A subclass written for torchrl whose shared one-agent module reads the agents' axis.

    Given once, at a module's first call.

    >>> import warnings
    >>> warnings.simplefilter("ignore", AgentsApartWarning)
    """


def warn_apart(module: Any) -> None:
    """Say that this module reads the agents' axis."""
    warnings.warn(f"{type(module).__name__}: {_APART}", AgentsApartWarning, stacklevel=6)  # who called the module


def reads_agents(alone: Callable[[Tensor], Any], whole: Callable[[Tensor], Any], x: Tensor, position: int) -> bool:
    """Whether a module gives other outputs on all agents at once (``whole``) than on one after the other (``alone``).

    Or runs on all agents at once only. Both are called without gradients, on some rows of ``x`` and on random
    numbers in their place, and the random state is restored. What draws or gives no tensor tells nothing.
    """
    states = rng_states((x,), needed=False)
    try:
        with torch.no_grad():
            return any(_differ(alone, whole, given, position) for given in _inputs(x, position))
    except Exception:  # also what a transform refuses; the call itself raises what is wrong
        return False
    finally:
        set_rng_states(states)


def _inputs(x: Tensor, position: int) -> Iterator[Tensor]:
    few = x.detach()[:_ROWS] if position else x.detach()
    yield few
    if few.is_floating_point():  # inputs of a first call are often zeros, or the same for all agents
        yield torch.randn(few.shape, generator=torch.Generator().manual_seed(0)).to(few)


def _differ(alone: Callable[[Tensor], Any], whole: Callable[[Tensor], Any], x: Tensor, position: int) -> bool:
    together = whole(x)
    if not isinstance(together, Tensor) or together.ndim <= position or together.shape[position] != x.shape[position]:
        return False  # torchrl raises
    try:
        own = alone(x)
    except Exception:  # the call itself raises it
        return True
    if not isinstance(own, Tensor):
        return False
    return not _close(own, together) and _close(own, alone(x))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    fine = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 5e-2
    gap, scale = (a - b).abs(), torch.maximum(a.abs(), b.abs())
    return not bool((gap > fine * scale.nan_to_num().amax()).any()) if a.numel() else True
