"""Arguments of the one-agent networks (sizes, classes, options for each layer), and how layers are made from them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from functional_marl._arguments import as_index, short_repr
from functional_marl._errors import StructureError

__all__ = [
    "LayerMaker",
    "Options",
    "add_layers",
    "as_features",
    "as_size",
    "as_sizes",
    "check_class",
    "check_device",
    "make_layer",
    "options_by_layer",
]

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
LayerMaker = Callable[..., Any]  # a class, or a function that returns a module or a plain function

# --- checks ------------------------------------------------------------------------------------------------


def options_by_layer(options: Options, n: int, what: str) -> Iterator[dict[str, Any]]:
    """A dict of options for each of ``n`` layers, from one dict for all, a list of dicts, or None."""
    if options is None or isinstance(options, Mapping):
        return iter([dict(copy.deepcopy(options or {})) for _ in range(n)])
    listed: list[Any] = list(options) if isinstance(options, Sequence) else [options]
    if len(listed) != n or not all(isinstance(one, Mapping) for one in listed):
        raise StructureError(f"{what}: expected a dict, or a list of {n} dicts, one a layer, got {short_repr(options)}")
    return iter([dict(copy.deepcopy(one)) for one in listed])


def check_class(make: Any, what: str) -> None:
    """Raise TypeError unless a call of it can make a layer."""
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(
            f"{what}: expected a class, as nn.ReLU, or a function that makes a layer, got {short_repr(make)}"
        )


def check_device(device: Any) -> None:
    """Raise torch's error, with the argument's name, unless torch can put tensors there."""
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise type(error)(f"device: expected one that torch has here, got {short_repr(device)}: {error}") from None


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
        raise StructureError(f"{what}: expected a list of ints, got {short_repr(value)}")
    return [as_index(one, f"{what}[{i}]", least) for i, one in enumerate(value)]  # pyright: ignore


def as_size(value: Any, what: str, least: int) -> Any:
    """An int, or a pair of ints for height and width. ``paddings`` may also be "same" or "valid"."""
    if isinstance(value, (list, tuple)) and what != "num_cells":
        return type(value)(as_sizes(value, what, least))  # pyright: ignore
    if what == "paddings" and value in ("same", "valid"):
        return value
    return as_index(value, what, least)


# --- layers --------------------------------------------------------------------------------------------------


def make_layer(make: LayerMaker, device: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer on a device: by its ``device`` argument where it has one, else by ``.to``."""
    target: Any = make.__init__ if isinstance(make, type) else make
    try:
        has_device = "device" in inspect.signature(target).parameters
    except (TypeError, ValueError):
        has_device = False
    if has_device:
        return make(*args, device=device, **kwargs)
    layer = make(*args, **kwargs)
    return layer.to(device) if isinstance(layer, nn.Module) and device is not None else layer


def add_layers(module: nn.Sequential, layers: Sequence[Any]) -> None:
    """Add layers to a module, named "0", "1", ..."""
    for i, layer in enumerate(layers):
        module.add_module(str(i), layer if isinstance(layer, nn.Module) else _FunctionLayer(layer))


class _FunctionLayer(nn.Module):
    """A layer that is a plain function."""

    def __init__(self, func: Callable[..., Any]) -> None:
        super().__init__()
        self.func = func

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"_ExecutableLayer(func={self.func})"  # torchrl's name, for the same repr
