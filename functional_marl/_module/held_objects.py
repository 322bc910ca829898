"""What a module holds besides its leaves: plain tensors, and containers that a forward may change."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Container
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["MODULE_ATTRIBUTES", "held_objects", "is_numpy_array", "items_of", "plain_tensors", "restore_items"]

MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)  # the attributes that every module has


def plain_tensors(module: nn.Module, hooked: bool = False) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers, by dotted name.

    By default those of parts without forward pre-hooks, or with ``hooked`` those of parts with such hooks, which may
    compute them.
    """
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        if bool(part._forward_pre_hooks) == hooked
        for name, value in part.__dict__.items()
        if isinstance(value, Tensor)
    }


def held_objects(parts: list[nn.Module], copies: Container[int]) -> tuple[list[Any], list[Tensor]]:
    """The containers and plain tensors, at any depth, among the copies (by ``id``) that attributes hold.

    Containers are lists, deques, sets, dicts and arrays of NumPy; of another object, its ``__dict__``.
    """
    containers: list[Any] = []
    tensors: list[Tensor] = []
    seen = {id(part) for part in parts}
    waiting: list[Any] = [v for part in parts for k, v in part.__dict__.items() if k not in MODULE_ATTRIBUTES]
    while waiting:
        held = waiting.pop()
        if id(held) in seen or id(held) not in copies:
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            tensors.append(held)
        elif is_numpy_array(held):
            containers.append(held)
        elif isinstance(held, dict):
            containers.append(held)
            waiting += cast("dict[Any, Any]", held).values()
        elif isinstance(held, (list, tuple, set, deque)):
            if not isinstance(held, tuple):
                containers.append(held)
            waiting += cast("list[Any]", held)
        elif hasattr(held, "__dict__"):
            containers.append(held.__dict__)
            waiting += held.__dict__.values()
    return containers, tensors


def is_numpy_array(held: Any) -> bool:
    """Whether it is an array of NumPy or the like."""
    return hasattr(held, "__array_interface__") and not isinstance(held, Tensor)


def items_of(container: Any) -> tuple[Any, ...]:
    """The items of a container; of a dict, its pairs."""
    return (*container.items(),) if isinstance(container, dict) else (*container,)


def restore_items(container: Any, before: tuple[Any, ...]) -> None:
    """Give a container the items that it had before."""
    now = items_of(container)
    pairs = isinstance(container, dict)
    if len(now) == len(before) and (
        all(a is c and b is d for (a, b), (c, d) in zip(now, before, strict=True))
        if pairs
        else all(map(operator.is_, now, before))
    ):
        return
    container.clear()
    container.update(before) if isinstance(container, (dict, set)) else container.extend(before)
