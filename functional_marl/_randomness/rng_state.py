"""The generators that a module may draw from: the global ones, on the CPU and where its tensors live, and its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from functional_marl._randomness.keyed_dropout import given_generator, is_random
from functional_marl._torch_compat import LocalMode, generator_id

__all__ = ["Alike", "RngStates", "rng_states", "same_states", "set_rng_states"]

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


class Alike(LocalMode):
    """Gives every agent the draws of the first, from generators that the module hands to its operations."""

    def __init__(self) -> None:
        super().__init__()
        # by address, for an operation sees another Python object each time; what is kept keeps its address
        self._first: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._seen: set[int] = set()

    def next_agent(self) -> None:
        """From now on another agent draws."""
        self._seen.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op, from where its generator stood when the first agent drew from it."""
        kwargs = kwargs or {}
        given = given_generator(args, kwargs) if is_random(func, args, kwargs) else None
        if given is not None:
            address = generator_id(given)
            if address not in self._seen:
                self._seen.add(address)
                generator, state = self._first.setdefault(address, (given, given.get_state()))
                generator.set_state(state)
        return func(*args, **kwargs)


def _generators(device: torch.device) -> Any:
    """The module of functions for a device, ``torch.cuda`` for one; None for one that draws nothing, as "meta"."""
    found: Any = getattr(torch, device.type, None)
    return found if hasattr(found, "get_rng_state") else None


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps has one device and takes none
