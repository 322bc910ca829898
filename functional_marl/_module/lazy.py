"""Lazy layers, whose leaves have no shape until a first input: finding them, and giving them their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl._errors import StructureError

__all__ = ["evaluate_once", "is_lazy", "materialize"]


def is_lazy(leaf: Any) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return isinstance(leaf, (UninitializedParameter, UninitializedBuffer))


def evaluate_once(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Call a module in evaluation mode without grad; its lazy layers become ordinary ones. The modes are restored."""
    training = {part: part.training for part in module.modules()}
    with torch.no_grad():
        module.eval()(*args)
    for part, mode in training.items():
        part.training = mode


def materialize(module: nn.Module, example: tuple[Any, ...] | None) -> None:
    """Give the lazy leaves of a module their shapes, by one call on ``example``.

    Raises:
        StructureError: no example, or one that the module does not take, or that leaves lazy leaves as they are.
    """
    lazy = _lazy_names(module)
    if not lazy:
        return
    if example is None:
        raise StructureError(f"build: the lazy leaves {lazy} have no shapes yet; give example= one agent's input")
    try:
        evaluate_once(module, example)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise StructureError(f"example: the module does not take it: {error}") from error
    lazy = _lazy_names(module)
    if lazy:
        raise StructureError(f"build: the lazy leaves {lazy} got no shapes from example=: the forward leaves them out")


def _lazy_names(module: nn.Module) -> list[str]:
    return [name for name, leaf in (*module.named_parameters(), *module.named_buffers()) if is_lazy(leaf)]
