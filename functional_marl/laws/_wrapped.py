"""Modules that call another module with inputs and outputs in another form, and are that module in all else."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Wrapped"]


class Wrapped(nn.Module):
    """A module with the attributes of another one, which its ``forward`` calls.

    The two are one set of attributes: parameters and buffers under their own names, training flag, hooks and memory are
    those of the module itself.

    Attributes:
        inner: the module.
    """

    __slots__ = ("inner",)
    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        # No nn.Module.__init__, so that neither has a state of its own.
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "__dict__", inner.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # methods such as reset_parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)  # hooks are those of the module: they run once, on its own inputs
