"""The states of the global generators that a module may draw from: on the CPU, and wherever its tensors live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["RngStates", "rng_states", "same_states", "set_rng_states"]

RngStates = dict[torch.device, Tensor]
_CPU = torch.device("cpu")


def rng_states(tensors: Iterable[Any], needed: bool = True) -> RngStates:
    """The states now, of the CPU's generator and of those on the devices of the tensors.

    While a CUDA graph is captured its generator cannot be read: left out where that is not needed.
    """
    states = {_CPU: torch.get_rng_state()}
    for device in {leaf.device for leaf in tensors if isinstance(leaf, Tensor)} - {_CPU}:
        generators = _generators(device)
        if device.type == "cuda" and not needed and torch.cuda.is_current_stream_capturing():
            continue
        if generators is not None:
            states[device] = generators.get_rng_state(*_index(device))
    return states


def set_rng_states(states: RngStates) -> None:
    """Put the generators back."""
    for device, state in states.items():
        if device == _CPU:
            torch.set_rng_state(state)
        else:
            _generators(device).set_rng_state(state, *_index(device))


def same_states(a: RngStates, b: RngStates) -> bool:
    """Whether nothing was drawn between the two."""
    return a.keys() == b.keys() and all(torch.equal(a[device], b[device]) for device in a)


def _generators(device: torch.device) -> Any:
    """The module of functions for a device, ``torch.cuda`` for one; None for one that draws nothing, as "meta"."""
    found: Any = getattr(torch, device.type, None)
    return found if hasattr(found, "get_rng_state") else None


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps has one device and takes none
