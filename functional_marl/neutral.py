"""A context without modes: what is kept for later calls is made in it, and belongs to no mode of the first call."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import overrides
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

__all__ = ["neutral"]

_functions: Any = overrides
_dispatch: Any = _python_dispatch


@contextlib.contextmanager
def neutral() -> Generator[None]:
    """Inside, no mode of torch is on: inference, autocast, ``torch.func``, fake tensors, tracers, function modes.

    A default device stays, for it says where a factory builds. Gradients are recorded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_dispatch._disable_current_modes())
        stack.enter_context(_no_function_modes())
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _no_function_modes() -> Generator[None]:
    """Take all function modes off but the innermost default device."""
    modes = [_functions._pop_mode() for _ in range(_functions._len_torch_function_stack())]
    device = next((mode for mode in modes if isinstance(mode, DeviceContext)), None)
    if device is not None:
        _functions._push_mode(device)
    try:
        yield
    finally:
        if device is not None:
            _functions._pop_mode()
        for mode in reversed(modes):
            _functions._push_mode(mode)
