"""Messages for users: why "auto" uses the loop, and why ``torch.func.vmap`` around ``apply`` fails."""

from __future__ import annotations

import contextlib
import inspect
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from functional_marl._errors import RandomnessError, StrategyWarning, StructureError
from functional_marl._module.module_spec import ModuleSpec
from functional_marl._network_settings import NetworkSettings
from functional_marl._strategies.base import Call
from functional_marl._strategies.loop import evaluate_loop, is_random_call
from functional_marl._torch_compat import constant_result, randomness_of_maps

__all__ = ["clearer_error", "warn_of_loop"]

_INSTEAD = {nn.GRU: "fm.nets.gru", nn.LSTM: "fm.nets.lstm", nn.LSTMCell: "fm.nets.lstm"}
_RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu", "lstm_cell")


def _instead(net: NetworkSettings) -> str:
    """Our networks that vmap and the plan can evaluate, in place of recurrent layers that they cannot."""
    found = {
        f"{ours} in place of nn.{kind.__name__}": None
        for _, part in net.module_spec.named_modules()
        for kind, ours in _INSTEAD.items()
        if isinstance(part, kind)
    }
    return " and ".join(found)


_warned: weakref.WeakSet[ModuleSpec] = weakref.WeakSet()  # the modules that users were warned of


@constant_result  # dynamo runs this while it traces
def warn_of_loop(net: NetworkSettings, why: str) -> None:
    """Warn that "auto" uses the loop: once for each module, at the line outside of this package that made the call."""
    if net.module_spec in _warned or net.n_agents == 1:
        return
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("functional_marl.", "torch.")):
        frame, level = frame.f_back, level + 1
    ours = _instead(net)
    warnings.warn(
        f"{net.n_agents} agents are evaluated one after the other: {why}; {f'use {ours}, or ' if ours else ''}"
        'set strategy="loop" if this is intended',
        StrategyWarning,
        stacklevel=level,
    )
    _warned.add(net.module_spec)


def clearer_error(call: Call, error: RuntimeError) -> Exception | None:
    """A clearer error for a failure inside a map over populations that the user put around apply, if there is one."""
    if torch.compiler.is_dynamo_compiling() or isinstance(error, RandomnessError):
        return None
    kinds = randomness_of_maps()
    if not kinds:
        return None
    if call.key is None and "error" in kinds and is_random_call(call):
        return RandomnessError(
            "the module samples from torch's global generator inside torch.func.vmap; map over keys too: "
            "torch.func.vmap(lambda params, key: fm.apply(net, params, x, key=key, ...))(params, fm.split(key, P)), "
            'or give torch.func.vmap randomness="different"'
        )
    with _Failing() as failing, contextlib.suppress(Exception):
        evaluate_loop(call)
    ours = _instead(call.net)
    if failing.name in _RECURRENT:
        instead = f"use {ours}, or map" if ours else "map"
        return StructureError(
            f"torch.func.vmap has no batching rule for {failing.name}, so that a population cannot be mapped through "
            f"this network; {instead} over the population by a loop of Python"
        )
    return None


class _Failing(TorchFunctionMode):
    """Keeps the name of the function that raised."""

    name = ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.name = self.name or getattr(func, "__name__", "")
            raise
