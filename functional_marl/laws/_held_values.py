"""How what a module holds is compared to the bit, and written back: numbers, tables, slots, generators."""

from __future__ import annotations

import random
import types
from collections import OrderedDict, deque
from contextlib import suppress
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_marl._module.held_objects import is_numpy_array

__all__ = [
    "UNSET",
    "Node",
    "Numbers",
    "bits_of",
    "generator_state",
    "refill",
    "refill_list",
    "restore_numbers",
    "same",
    "same_array",
    "same_items",
    "same_numbers",
    "set_generator_state",
    "slot_value",
    "slots_of",
]

Node = tuple[Any, str, Any] | None  # a name: that of the owner, "." or "[", attribute or key
UNSET: Any = object()
# Integers as wide as the numbers: with them -0.0 is not 0.0, and a NaN equals itself.
_BITS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.complex64: torch.int64,
}


class Numbers(NamedTuple):
    """A tensor with its storage, a copy of its numbers, its gradient and flags."""

    leaf: Tensor
    plain: Tensor | None  # an alias of its storage; None: numbers are not held
    bits: Any
    copy: Any
    address: int
    size: int  # of the storage, in bytes
    is_leaf: bool
    requires_grad: bool
    grad: Tensor | None
    node: Node
    kind: str


# --- tables and lists ------------------------------------------------------------------------------------


def same_items(table: dict[Any, Any], was: dict[Any, Any]) -> bool:
    return len(table) == len(was) and all(map(is_, table, was)) and all(map(is_, table.values(), was.values()))


def refill(table: dict[Any, Any], was: dict[Any, Any]) -> None:
    """The methods of the plain classes: a Counter's update adds."""
    base: Any = OrderedDict if isinstance(table, OrderedDict) else dict
    base.clear(table)
    for key, value in was.items():
        base.__setitem__(table, key, value)


def refill_list(container: Any, was: tuple[Any, ...]) -> None:
    base: Any = next(kind for kind in (list, set, deque) if isinstance(container, kind))
    base.clear(container)
    more: Any = base.update if base is set else base.extend
    more(container, was)


# --- slots -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def slots_of(kind: type[Any]) -> tuple[Any, ...]:
    """The descriptors of ``__slots__``, also of the classes above."""
    return tuple(
        slot
        for one in kind.__mro__
        for name, slot in vars(one).items()
        if isinstance(slot, types.MemberDescriptorType) and not name.startswith("__")
    )


def slot_value(held: Any, slot: Any) -> Any:
    try:
        return slot.__get__(held)
    except AttributeError:
        return UNSET


# --- numbers ---------------------------------------------------------------------------------------------


def bits_of(plain: Tensor) -> Tensor:
    """The same storage, read as integers."""
    kind = plain.dtype
    if kind in _BITS:
        return plain.view(_BITS[kind])
    if kind is torch.complex128:
        return torch.view_as_real(plain).view(torch.int64)
    return plain.view(torch.uint8) if kind.is_floating_point else plain  # the kinds of 8 bits


def _has_storage(tensor: Tensor) -> bool:
    """Whether all numbers can be read: fully sharded modules free the storage of tensors that keep their shapes."""
    if not tensor.numel():
        return True
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()


def _in_place(one: Numbers) -> bool:
    """Whether the tensor still is the one of before, with its place, shape and strides."""
    leaf, plain = one.leaf, one.plain
    return plain is None or (
        leaf.data_ptr() == one.address
        and leaf.stride() == plain.stride()
        and leaf.shape == plain.shape
        and leaf.dtype is plain.dtype
        and plain.data_ptr() == one.address
    )


def restore_numbers(one: Numbers) -> None:
    leaf, plain = one.leaf, one.plain
    if one.is_leaf:
        if not leaf.is_leaf:  # written in place with gradients on
            with suppress(RuntimeError):  # a view
                leaf.detach_()
        if leaf.is_leaf:
            if leaf.requires_grad != one.requires_grad:
                leaf.requires_grad_(one.requires_grad)
            if leaf.grad is not one.grad:
                leaf.grad = one.grad
    if plain is None:
        return
    if not _in_place(one):
        if not _has_storage(plain):
            plain.untyped_storage().resize_(one.size)
        leaf.data = plain
    if not torch.equal(one.bits, one.copy):
        bits, copy = one.bits, one.copy
        for axis, stride in enumerate(bits.stride()):
            if stride == 0 and bits.shape[axis] > 1:  # expanded: one number for all
                bits, copy = bits.narrow(axis, 0, 1), copy.narrow(axis, 0, 1)
        with torch.inference_mode(leaf.is_inference()):
            bits.copy_(copy)


def same_numbers(now: Tensor, one: Numbers) -> bool:
    if one.plain is None:
        return now is one.leaf
    with suppress(RuntimeError, NotImplementedError):
        alike = now.shape == one.plain.shape and now.dtype is one.plain.dtype
        return alike and _has_storage(now) and torch.equal(bits_of(now.data), one.copy)
    return False


def same_array(array: Any, was: Any) -> bool:
    if array.shape != was.shape or array.dtype != was.dtype:
        return False
    if was.dtype.hasobject:
        return all(map(is_, array.flat, was.flat))
    return array.tobytes() == was.tobytes()


def same(now: Any, was: Any, copies: dict[int, Numbers] | None = None) -> bool:
    """Whether two values are equal, to the bit. Of tensors that the snapshot holds, its copies count."""
    if now is was:
        return True
    if isinstance(now, Tensor) and isinstance(was, Tensor):
        one = (copies or {}).get(id(was))
        with suppress(RuntimeError, NotImplementedError):
            if one is not None:
                return same_numbers(now, one)
            return (
                now.shape == was.shape and now.dtype is was.dtype and torch.equal(bits_of(now.data), bits_of(was.data))
            )
        return False
    if type(now) is not type(was):
        return False
    if isinstance(now, dict):
        return now.keys() == was.keys() and all(same(now[key], was[key], copies) for key in now)
    if isinstance(now, (list, tuple, deque)):
        return len(now) == len(was) and all(same(a, b, copies) for a, b in zip(now, was, strict=True))
    if is_numpy_array(now):
        return same_array(now, was)
    if isinstance(now, float):
        return now.hex() == was.hex()
    try:
        return bool(now == was)
    except Exception:
        return False


# --- generators ------------------------------------------------------------------------------------------


def generator_state(held: Any, numpy: Any) -> Any:
    """The state of a generator; None for anything else."""
    if isinstance(held, torch.Generator):
        return held.get_state()
    if isinstance(held, random.Random):
        return None if isinstance(held, random.SystemRandom) else held.getstate()
    if numpy is not None and type(held).__module__.startswith("numpy.random"):
        if isinstance(held, numpy.random.RandomState):
            return held.get_state(legacy=False)
        return getattr(getattr(held, "bit_generator", held), "state", None)
    return None


def set_generator_state(held: Any, state: Any) -> None:
    if isinstance(held, random.Random):
        held.setstate(state)
    elif isinstance(held, torch.Generator) or hasattr(held, "set_state"):
        held.set_state(state)
    else:
        getattr(held, "bit_generator", held).state = state
