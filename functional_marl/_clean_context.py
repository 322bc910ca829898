"""Leave the modes of the caller. Tensors that later calls use again must not depend on the modes of the first call."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from functional_marl import _torch_compat

__all__ = ["no_active_modes", "regular_tensors"]


@contextlib.contextmanager
def no_active_modes() -> Generator[None]:
    """Inside, no mode is active: inference, autocast, ``torch.func``, fake tensors, tracers, function modes.

    Only a default device stays: a factory builds there. Gradients are recorded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_torch_compat.outside_transforms())
        stack.enter_context(_torch_compat.no_dispatch_modes())
        stack.enter_context(_torch_compat.no_function_modes())
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def regular_tensors() -> Generator[None]:
    """Inside, neither inference mode nor a transform of ``torch.func`` is active. Other modes stay.

    A tensor made in inference mode can never be trained. Inside vmap the random operations of a factory raise.
    """
    with contextlib.ExitStack() as stack:
        if _torch_compat.in_transform():
            stack.enter_context(_torch_compat.outside_transforms())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield
