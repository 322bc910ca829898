"""Leave a module as it was: snapshots of all that it holds, calls under seeds, attention that has derivatives.

:func:`kept` and :class:`Snapshot` change nothing outside of the module. :func:`seeded` sets the process-wide
generators and restores them. :func:`differentiable_attention` acts on one thread.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from functional_marl._randomness.rng_state import RngStates, set_rng_states
from functional_marl.laws._held import Held, registered_and_hidden

__all__ = ["Snapshot", "differentiable_attention", "kept", "seeded"]


class Snapshot:
    """All that a module holds, to be put back bit for bit, or to be compared with what it holds later.

    Held are, of the module and of every module in it, also of modules in plain attributes:

    - parameters and buffers: which tensors they are, their numbers, ``requires_grad``, ``.grad``;
    - submodules, hooks, training flags, plain attributes;
    - at any depth in attributes: tensors, lists, dicts, sets, deques, NumPy arrays, objects with a ``__dict__`` or
      slots, and generators (``torch.Generator``, ``random.Random``, NumPy's).

    Numbers are restored through ``.data``: autograd counts no write. What the first call of a lazy module makes
    stays, with every attribute of the modules around it. Not held are: what only functions reach (closures, methods,
    hooks), class attributes, globals, attributes of a ``ScriptModule`` other than its leaves, the numbers of sparse,
    nested, quantized and meta tensors, and objects of locks, threads, loggers and weak references.

    Args:
        module: the module.
        others: what else to hold, as generators or tensors.

    >>> layer = nn.Linear(2, 1)
    >>> layer.calls = 0
    >>> before = Snapshot(layer)
    >>> layer.calls += 1
    >>> _ = nn.init.ones_(layer.bias)
    >>> before.changed()
    ['attribute calls', 'parameter bias']
    >>> before.restore()
    >>> before.changed()
    []
    """

    def __init__(self, module: nn.Module, *others: Any) -> None:
        self._held = Held(module, others)

    def restore(self) -> None:
        """Put everything back. Only what changed is written."""
        with torch.no_grad():
            self._held.restore()

    def changed(self) -> list[str]:
        """Names of what differs from the snapshot now, sorted: "attribute last", "buffer norm.running_mean".

        Values are compared, to the bit: a list that was replaced by an equal one is not named.
        """
        with torch.no_grad():
            return sorted(set(self._held.changed()))


@contextmanager
def kept(module: nn.Module, *others: Any) -> Generator[Snapshot]:
    """Afterwards the module holds what it held before, also after an exception; see :class:`Snapshot`."""
    before = Snapshot(module, *others)
    try:
        yield before
    finally:
        before.restore()


# --- seeds -----------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int, others: int | None = None) -> Generator[None]:
    """Inside, the global generators are under a seed; afterwards they are what they were.

    They are those of torch on all devices, and Python's and NumPy's. All belong to the whole process: another thread
    that samples from them meanwhile is under the seed too. NumPy is left alone if nobody has imported it.

    Args:
        seed: of torch's generators.
        others: the seed of Python's and NumPy's generators; by default the same.
    """
    second = seed if others is None else others
    states, python = _torch_states(), random.getstate()
    restore_numpy = _seed_numpy(second)
    try:
        _seed_torch(states, seed)
        random.seed(second)
        yield
    finally:
        restore_numpy()
        random.setstate(python)
        set_rng_states(states)


def _torch_states() -> RngStates:
    """The states of the CPU's generator and of those of all devices of the accelerator."""
    states = {torch.device("cpu"): torch.get_rng_state()}
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:  # pragma: no cover
        of_kind: Any = torch.get_device_module(accelerator)
        for i in range(torch.accelerator.device_count()):
            argument = () if accelerator.type == "mps" else (i,)  # torch.mps has one device and takes no argument
            states[torch.device(accelerator.type, i)] = of_kind.get_rng_state(*argument)
    return states


def _seed_torch(states: RngStates, seed: int) -> None:
    # Not torch.manual_seed: it takes 0.1 ms without a GPU, for it stores a stack trace for CUDA's first use.
    torch.default_generator.manual_seed(seed)
    for kind in {device.type for device in states} - {"cpu"}:  # pragma: no cover
        of_kind: Any = torch.get_device_module(kind)
        getattr(of_kind, "manual_seed_all", of_kind.manual_seed)(seed)


_spare: list[Any] = []  # bit generators of NumPy that are not in use: to make one takes 67 us


def _seed_numpy(seed: int) -> Callable[[], None]:
    """Seed NumPy's global generator; returns what restores it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "random"):
        return lambda: None
    rng: Any = numpy.random
    state: Any = rng.get_state(legacy=False)
    if not hasattr(rng, "set_bit_generator"):  # pragma: no cover  (NumPy before 1.24)
        rng.seed(seed % 2**32)
        return lambda: rng.set_state(state)
    # The generator itself is put aside, and another one seeded: its 624 words are copied once, not twice (28 us).
    was = rng.get_bit_generator()
    other = _spare.pop() if _spare else rng.MT19937(0)
    rng.set_bit_generator(other)
    rng.seed(seed % 2**32)

    def restore() -> None:
        rng.set_bit_generator(was)
        if state["has_gauss"]:  # the second number of a pair of normal ones, which the exchange dropped
            rng.set_state(state)
        _spare.append(other)

    return restore


# --- attention -------------------------------------------------------------------------------------------

# When torch evaluates attention by its fused kernels, which have no derivative. Seen with torch 2.13 on the CPU, with
# nn.MultiheadAttention(batch_first=True), nn.TransformerEncoderLayer and nn.TransformerEncoder:
#
# - in training never;
# - in evaluation under torch.no_grad: always;
# - in evaluation with gradients on: if neither a parameter nor the query requires a gradient. So a law that makes its
#   inputs require gradients meets the kernels in none of these, also where all parameters are frozen. Gradients by
#   autograd are then right without any switch;
# - in torch.func.grad and jacrev: never. In torch.func.jvp and jacfwd: as above, and then jvp raises
#   NotImplementedError; here too it helps that a parameter requires a gradient;
# - under torch.func.vmap with parameters (or inputs, where the parameters are frozen) that the vmap maps: always in
#   evaluation, also if they require gradients, for a mapped tensor says that it requires none. The output has a
#   grad_fn, and backward raises "derivative for aten::_native_multi_head_attention is not implemented". A module that
#   stacks the parameters of its agents and maps attention over them cannot do without the switch, if gradients in
#   evaluation are asked for. torch warns of a missing batching rule, too.
#
# Numbers: nn.MultiheadAttention gives equal bits both ways; a layer differs by rounding (3e-7 in float32). An encoder
# with src_key_padding_mask differs at the padded places: 0 by the kernels, else what the layers compute (by 2 here).
# So two runs that are compared must be evaluated the same way: in one mode of gradients, with the same requires_grad.
#
# torch.backends.mha.set_fastpath_enabled is a switch for the whole process. But the kernels are also not used where a
# tensor may be overridden, which is the case under any torch function mode; and such a mode belongs to its thread.

_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class _PassOn(TorchFunctionMode):
    """Changes no function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def differentiable_attention(module: nn.Module) -> AbstractContextManager[Any]:
    """Inside, in this thread only, attention is evaluated in the way that has derivatives, in evaluation as well.

    It does nothing for a module without torch's attention in it. Calls of torch's functions take 10% longer in it.
    """
    found = any(isinstance(part, _ATTENTION) for part in registered_and_hidden(module))
    return _PassOn() if found else nullcontext()
