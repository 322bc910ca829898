"""Contexts without modes: what is kept for later calls belongs to no mode of the first call."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from functional_marl import _torch_compat

__all__ = ["neutral", "ordinary_tensors"]


@contextlib.contextmanager
def neutral() -> Generator[None]:
    """Inside, no mode of torch is on: inference, autocast, ``torch.func``, fake tensors, tracers, function modes.

    A default device stays, for it says where a factory builds. Gradients are recorded.
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
def ordinary_tensors() -> Generator[None]:
    """Inside, tensors are made as outside of inference mode and of the transforms of torch.func; other modes stay.

    Those of inference mode can never be trained, and vmap refuses the draws of a factory.
    """
    with contextlib.ExitStack() as stack:
        if _torch_compat.in_transform():
            stack.enter_context(_torch_compat.outside_transforms())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield
