"""Save, compare and restore the states of torch's global generators.

:func:`rng_states` is for a call: the CPU's generator, and those of the devices of its tensors.
:class:`GlobalGenerators` is for a factory: the CPU's and CUDA's, and whether the factory seeded them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from functional_marl._torch_compat import skip_python_dispatch

__all__ = ["GlobalGenerators", "RngStates", "rng_states", "same_states", "set_rng_states"]

RngStates = dict[torch.device, Tensor]
_CPU = torch.device("cpu")


def rng_states(tensors: Iterable[Any], needed: bool = True) -> RngStates:
    """The states of the CPU's generator, and of the generators on the devices of the tensors.

    CUDA's state cannot be read while a CUDA graph is captured. It is left out then, unless it is ``needed``.
    """
    states = {_CPU: torch.get_rng_state()}
    for device in {leaf.device for leaf in tensors if isinstance(leaf, Tensor)} - {_CPU}:
        backend = _device_module(device)
        if device.type == "cuda" and not needed and torch.cuda.is_current_stream_capturing():
            continue
        if backend is not None:
            states[device] = backend.get_rng_state(*_device_argument(device))
    return states


def set_rng_states(states: RngStates) -> None:
    """Restore the states of :func:`rng_states`."""
    for device, state in states.items():
        if device == _CPU:
            torch.set_rng_state(state)
        else:
            _device_module(device).set_rng_state(state, *_device_argument(device))


def same_states(a: RngStates, b: RngStates) -> bool:
    """Whether nothing was sampled between the two."""
    return a.keys() == b.keys() and all(torch.equal(a[device], b[device]) for device in a)


def _device_module(device: torch.device) -> Any:
    """``torch.cuda`` and the like; None for a device without a generator, as "meta"."""
    module: Any = getattr(torch, device.type, None)
    return module if hasattr(module, "get_rng_state") else None


def _device_argument(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps has one device and takes no argument


class GlobalGenerators:
    """A copy of torch's global generators: the CPU's, and CUDA's once CUDA is in use."""

    def __init__(self) -> None:
        generators = (torch.default_generator, *torch.cuda.default_generators)
        with skip_python_dispatch():
            self._saved = [(one, one.initial_seed(), one.get_state()) for one in generators]

    def changed(self) -> bool:
        """Whether one of them was sampled from, or seeded, since the copy."""
        with skip_python_dispatch():
            return not all(one.get_state().equal(state) for one, _, state in self._saved)

    def reseeded(self) -> bool:
        """Whether one of them was seeded since the copy. Sampling changes the state, and not the seed."""
        if any(one.initial_seed() != seed for one, seed, _ in self._saved):
            return True
        return self.changed() and any(self._restarted(*saved) for saved in self._saved)

    def _restarted(self, one: torch.Generator, seed: int, state: Tensor) -> bool:
        """Whether a generator was seeded with the seed that it had: it is at its start, and was not before."""
        with skip_python_dispatch():
            start = torch.Generator(one.device).manual_seed(seed).get_state()
            return one.get_state().equal(start) and not state.equal(start)

    def restore(self) -> None:
        """Restore seeds and states."""
        torch.manual_seed(self._saved[0][1])  # devices that are not in use yet take their seed from the last call
        for one, _, state in self._saved:
            one.set_state(state)
