"""Arguments of the one-agent networks: sizes, classes of layers, and options that are for all layers or one each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from functional_marl._arguments import as_index, shown
from functional_marl._errors import StructureError

__all__ = ["Options", "as_features", "as_size", "as_sizes", "check_class", "check_device", "each_layer"]

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def each_layer(options: Options, n: int, what: str) -> Iterator[dict[str, Any]]:
    """One dict of options a layer: none, the same for all, or a list."""
    if options is None or isinstance(options, Mapping):
        return iter([dict(copy.deepcopy(options or {})) for _ in range(n)])
    listed: list[Any] = list(options) if isinstance(options, Sequence) else [options]
    if len(listed) != n or not all(isinstance(given, Mapping) for given in listed):
        raise StructureError(f"{what}: expected a dict, or a list of {n} dicts, one a layer, got {shown(options)}")
    return iter([dict(copy.deepcopy(given)) for given in listed])


def check_class(make: Any, what: str) -> None:
    """Raise TypeError unless it makes layers when it is called."""
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(f"{what}: expected a class, as nn.ReLU, or a function that makes a layer, got {shown(make)}")


def check_device(device: Any) -> None:
    """Raise torch's error, with the argument's name, unless tensors can be put there."""
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise type(error)(f"device: expected one that torch has here, got {shown(device)}: {error}") from None


def as_features(value: Any, what: str) -> Any:
    """A number of output features, or a shape of them."""
    if value is None:
        raise ValueError(f"{what}: expected a number or a shape, got None (out_features of MLP)")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(value)(as_sizes(value, what, 0))  # pyright: ignore
    return as_index(value, what, 0)


def as_sizes(value: Any, what: str, least: int) -> list[int]:
    """A list of ints."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise StructureError(f"{what}: expected a list of ints, got {shown(value)}")
    return [as_index(one, f"{what}[{i}]", least) for i, one in enumerate(value)]  # pyright: ignore


def as_size(value: Any, what: str, least: int) -> Any:
    """An int, or one for height and one for width; ``padding`` may be a word."""
    if isinstance(value, (list, tuple)) and what != "num_cells":
        return type(value)(as_sizes(value, what, least))  # pyright: ignore
    if what == "paddings" and value in ("same", "valid"):
        return value
    return as_index(value, what, least)
