"""Warn about shared one-agent modules that read the agent axis. In torchrl they see that axis, here they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from functional_marl._randomness.rng_state import rng_states, set_rng_states

__all__ = ["AgentsApartWarning", "reads_agent_axis", "warn_reads_agent_axis"]

_MAX_BATCH = 8  # the check needs no more of the first axis
_MESSAGE = (
    "torchrl calls the one-agent module of a shared network on the inputs of all agents at once, [*B, n, F]. Here it "
    "is called on the input of one agent, [*B, F]. The outputs of this module differ between the two, because it reads "
    "the agent axis. Compute what depends on several agents before the network, as further features (docs/torchrl.md)"
)


class AgentsApartWarning(UserWarning):
    """A subclass written for torchrl has a shared one-agent module that reads the agent axis.

    Each module warns once, at its first call.

    >>> import warnings
    >>> warnings.simplefilter("ignore", AgentsApartWarning)
    """


def warn_reads_agent_axis(module: Any) -> None:
    """Warn that this module reads the agent axis."""
    warnings.warn(f"{type(module).__name__}: {_MESSAGE}", AgentsApartWarning, stacklevel=6)  # the caller of the module


def reads_agent_axis(
    by_agent: Callable[[Tensor], Any], at_once: Callable[[Tensor], Any], x: Tensor, position: int
) -> bool:
    """Whether a module gives other outputs for all agents at once than for one agent after the other.

    A module that runs only on all agents at once counts too. Both functions are called without gradients, on some
    rows of ``x`` and on random numbers of the same shape. The random state is restored. False if the module is
    random, or its output is not a tensor: the outputs cannot be compared.

    Args:
        by_agent: the module, called on one agent after the other.
        at_once: the module, called on the inputs of all agents at once.
        x: its input.
        position: where ``x`` has the agent axis, counted from the front.
    """
    states = rng_states((x,), needed=False)
    try:
        with torch.no_grad():
            return any(_differ(by_agent, at_once, probe, position) for probe in _probes(x, position))
    except Exception:  # a transform may refuse the check; the call itself raises what is wrong with the call
        return False
    finally:
        set_rng_states(states)


def _probes(x: Tensor, position: int) -> Iterator[Tensor]:
    rows = x.detach()[:_MAX_BATCH] if position else x.detach()
    yield rows
    if rows.is_floating_point():  # the inputs of a first call are often zeros, or equal for all agents
        yield torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)


def _differ(by_agent: Callable[[Tensor], Any], at_once: Callable[[Tensor], Any], x: Tensor, position: int) -> bool:
    together = at_once(x)
    if not isinstance(together, Tensor) or together.ndim <= position or together.shape[position] != x.shape[position]:
        return False  # torchrl raises an error for these
    try:
        separate = by_agent(x)
    except Exception:  # the call itself raises it
        return True
    if not isinstance(separate, Tensor):
        return False
    return not _close(separate, together) and _close(separate, by_agent(x))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 5e-2
    difference, magnitude = (a - b).abs(), torch.maximum(a.abs(), b.abs())
    return not bool((difference > tolerance * magnitude.nan_to_num().amax()).any()) if a.numel() else True
