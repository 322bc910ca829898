"""Checks of ints, flags, shapes, dtypes and devices. Each error names the argument and the fix.

An int is whatever ``operator.index`` accepts, such as an ``np.int64`` from ``env.action_space(a).n``; a bool is no int.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from functional_marl._errors import StructureError

__all__ = [
    "as_choice",
    "as_device",
    "as_flag",
    "as_floating",
    "as_index",
    "as_mapping",
    "as_shape",
    "is_bool",
    "is_list",
    "short_repr",
]

_MOST = 1 << 63  # larger than any size; without a bound a wrong number would take all memory


def short_repr(value: Any) -> str:
    """A value on one short line, for an error: its repr, or the shape of a tensor or array.

    >>> short_repr(torch.zeros(2, 3)), short_repr("a")
    ('a Tensor of shape [2, 3]', "'a'")
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {type(value).__name__} of shape {list(shape)}"  # pyright: ignore[reportUnknownArgumentType]
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_index(
    value: Any, what: str, least: int | None = None, *, error: type[ValueError] = StructureError, hint: str = ""
) -> int:
    """An int, from anything that ``operator.index`` accepts, except a bool.

    Args:
        value: the argument.
        what: its name.
        least: the smallest int that is allowed.
        error: the type of the error.
        hint: the end of the message, with its own ``"; "``.

    Raises:
        error: no int, or one outside the range.

    >>> as_index(3, "n_agents", 1)
    3
    >>> as_index(True, "n_agents", 1)
    Traceback (most recent call last):
        ...
    functional_marl.StructureError: n_agents: expected a positive int, got True
    """
    if type(value) is int and (least is None or least <= value < _MOST):
        return value
    if isinstance(value, torch.SymInt):  # a size in a trace: a conversion to int would fix it
        return value  # pyright: ignore[reportReturnType]
    number = None if is_bool(value) else _index(value)
    if number is None or (least is not None and not least <= number < _MOST):
        kind = {None: "an int", 1: "a positive int"}.get(least, f"an int of {least} or more")
        raise error(f"{what}: expected {kind}, got {short_repr(value)}{hint}")
    return number


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor on the meta device
        return None


def is_bool(value: Any) -> bool:
    """Whether it is a bool of Python, numpy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def is_list(value: Any) -> bool:
    """Whether its items have an order: a list, tuple, array or iterator; no string, set or mapping.

    >>> is_list([1]), is_list("1"), is_list({1})
    (True, False, False)
    """
    unordered = isinstance(value, str | bytes | Mapping | set | frozenset)
    return isinstance(value, Iterable) and not unordered and getattr(value, "shape", (1,)) != ()


def as_flag(value: Any, what: str) -> bool:
    """True or False, also from 0, 1 and numpy's bools; a string raises, which Python would take for True.

    >>> as_flag(1, "train")
    True
    """
    if value is True or value is False:
        return value
    if (isinstance(value, int) and value in (0, 1)) or (is_bool(value) and not getattr(value, "shape", ())):
        return bool(value)
    raise StructureError(f"{what}: expected True or False, got {short_repr(value)}")


def as_choice(value: Any, what: str, choices: Sequence[str], error: type[ValueError] = StructureError) -> Any:
    """One of some words.

    Raises:
        StructureError, or ``error``: another value.

    >>> as_choice("same", "randomness", ("same", "different"))
    'same'
    """
    if not isinstance(value, str) or value not in choices:
        raise error(f"{what}: expected one of {', '.join(map(repr, choices))}, got {short_repr(value)}")
    return value


def as_shape(value: Any, what: str) -> tuple[int, ...]:
    """A shape: a list or tuple of sizes, 0 or more.

    >>> as_shape([2, 3], "shape")
    (2, 3)
    """
    if not is_list(value):
        _not_a_shape(value, what)
    try:
        return tuple(as_index(size, what, 0) for size in value)
    except (StructureError, TypeError, RuntimeError):
        _not_a_shape(value, what)


def _not_a_shape(value: Any, what: str) -> NoReturn:
    raise StructureError(f"{what}: expected a tuple of sizes, ints of 0 or more, got {short_repr(value)}")


def as_mapping(value: Any, what: str, kind: str) -> Mapping[Any, Any]:
    """The mapping itself, checked to be one.

    >>> as_mapping({"a": 1}, "patterns", "from pattern to label")
    {'a': 1}
    """
    if not isinstance(value, Mapping):
        raise StructureError(f"{what}: expected a dict {kind}, got {short_repr(value)}")
    return value  # pyright: ignore[reportUnknownVariableType]


def as_floating(dtype: Any, what: str = "dtype") -> torch.dtype | None:
    """A floating dtype, or None.

    >>> as_floating(torch.float16)
    torch.float16
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StructureError(
            f"{what}: expected a floating dtype such as torch.float32, got {short_repr(dtype)}; "
            "only floating leaves are cast"
        )
    return dtype


def as_device(device: Any, what: str = "device") -> torch.device | None:
    """A device that tensors can be put on, or None.

    >>> as_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return None
    try:
        if isinstance(device, bool):
            raise TypeError("a bool is no device")
        found = torch.device(device)
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise StructureError(
            f"{what}: expected a device that torch has here, such as 'cpu', got {short_repr(device)}: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from None
    return found
