"""Hooks on all modules at once, as profilers and flop counters set them: no plan calls a module that could run them."""

from __future__ import annotations

from torch.nn.modules import module

__all__ = ["BACKWARD", "BACKWARD_PRE", "POST", "PRE", "hooked"]

PRE = module._global_forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
POST = module._global_forward_hooks  # pyright: ignore[reportPrivateUsage]
BACKWARD_PRE = module._global_backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
BACKWARD = module._global_backward_hooks  # pyright: ignore[reportPrivateUsage]


def hooked() -> bool:
    """Whether torch holds hooks for all modules, of ``nn.modules.module.register_module_forward_hook`` and others."""
    return bool(PRE or POST or BACKWARD_PRE or BACKWARD)
