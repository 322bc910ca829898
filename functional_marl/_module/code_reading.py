"""What a forward may write into, as its code shows it.

Most modules cannot write into their parameters: their code contains no name of a leaf, and torch's own layers write
into buffers only, where the version of the tensor shows it. For the others the code is read once.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Container, Iterable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

__all__ = ["Code", "Writes", "read_code"]


class Writes(IntEnum):
    """What the code of a module may do to its leaves."""

    NEVER = 0
    COUNTED = 1  # in place: the version of the tensor shows it
    UNCOUNTED = 2  # also through `.data`, which no version shows


_MOST_CODE = 400  # functions; a module with more of them is treated as one that writes
_UNCOUNTED = frozenset(("data", "set_", "vector_to_parameters"))
_IN_PLACE = frozenset(("load_state_dict", "update_parameters", "out"))
# How code reaches leaves without their names.
_REACHING = frozenset(
    (
        *("parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "get_parameter", "get_buffer"),
        *("getattr", "__getattr__", "__dict__", "vars", "_parameters", "_buffers"),
    )
)


class Code(NamedTuple):
    """What the code of a module shows."""

    writes: Writes  # to its leaves; UNCOUNTED also where plain tensors that it holds are written so
    stores: bool  # whether it may set attributes, change containers or write into plain tensors


def read_code(module: nn.Module) -> Code:
    """What a forward may write into, by the names and operations in its code and in what that calls."""
    own, plain = set[str](), set[str]()
    for path, part in module.named_modules():
        own |= {attribute for place in (part._parameters, part._buffers) for attribute in place}
        plain |= {attribute for attribute, value in part.__dict__.items() if isinstance(value, Tensor)}
        if isinstance(part, (nn.ParameterList, nn.ParameterDict)):
            own.add(path.rpartition(".")[2])
    reaches = holds = in_place = uncounted = stores = False
    for count, function in enumerate(_functions(module)):
        if count > _MOST_CODE:
            return Code(Writes.UNCOUNTED, True)
        names, steps = _read(function.__code__)
        reaches |= not names.isdisjoint(own) or not names.isdisjoint(_REACHING)
        holds |= not names.isdisjoint(plain)
        uncounted |= not names.isdisjoint(_UNCOUNTED)
        in_place |= not steps.isdisjoint(_WRITING) or any(map(_writes, names))
        stores |= not steps.isdisjoint(_STORING) or not names.isdisjoint(_CHANGING)
    stores |= in_place or uncounted
    if uncounted and (reaches or holds):
        return Code(Writes.UNCOUNTED, stores)
    return Code(Writes.COUNTED if in_place and reaches else Writes.NEVER, stores)


def _writes(name: str) -> bool:
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


_AUGMENTED = "augmented assignment"
_WRITING = frozenset(("STORE_SUBSCR", "STORE_SLICE", _AUGMENTED))
_STORING = frozenset(("STORE_ATTR", "DELETE_ATTR", "DELETE_SUBSCR"))
_CHANGING = frozenset(
    (
        *("setattr", "delattr", "__setattr__", "register_buffer", "append", "appendleft", "extend", "extendleft"),
        *("insert", "add", "update", "setdefault", "pop", "popleft", "popitem", "remove", "discard", "clear", "sort"),
        *("reverse", "rotate", "move_to_end", "train", "eval"),
    )
)


@functools.lru_cache(maxsize=4096)
def _read(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names and the operations in a function and in those defined in it."""
    names, steps = set(code.co_names), set[str]()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, inner_steps = _read(constant)
            names |= inner
            steps |= inner_steps
        elif isinstance(constant, tuple):  # the names of keyword arguments, `out` among them
            names |= {word for word in cast("tuple[Any, ...]", constant) if isinstance(word, str)}
        elif isinstance(constant, str):  # for getattr and the like
            names.add(constant)
    for step in dis.get_instructions(code):
        augmented = step.opname == "BINARY_OP" and step.argrepr.endswith("=")
        steps.add(_AUGMENTED if augmented else step.opname)
    return frozenset(names), frozenset(steps)


def _functions(module: nn.Module) -> Iterator[types.FunctionType]:
    """The functions that a forward may call and that are not torch's: methods, hooks, helpers, each once."""
    parts = list(module.modules())
    methods: dict[str, list[Any]] = {}
    known = {_package(kind) for part in parts for kind in type(part).__mro__}
    for kind in {kind for part in parts for kind in type(part).__mro__ if not _foreign(kind, known)}:
        for name, value in vars(kind).items():
            methods.setdefault(name, []).append(value)
    waiting: list[Any] = [type(part).forward for part in parts]
    for part in parts:
        for value in part.__dict__.values():
            waiting += value.values() if isinstance(value, dict) else _items(value)
    seen: set[int] = set()
    while waiting:
        function = _unwrapped(waiting.pop())
        if isinstance(function, (types.FunctionType, type)) and not (_foreign(function, known) or id(function) in seen):
            seen.add(id(function))
            if isinstance(function, type):
                waiting += vars(function).values()
                continue
            yield function
            names = _read(function.__code__)[0]
            places = [function.__globals__]
            places += [vars(v) for k in names if isinstance(v := function.__globals__.get(k), types.ModuleType)]
            waiting += [found for name in names for found in methods.get(name, ())]
            waiting += [place[name] for place in places for name in names if name in place]
            waiting += [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]


def _items(value: Any) -> Iterable[Any]:
    return cast("Iterable[Any]", value) if isinstance(value, (list, tuple)) else (value,)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # empty
        return False


def _unwrapped(value: Any) -> Any:
    """The function in a method, a property or a partial; the class of an object that can be called."""
    while True:
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, (functools.partial, functools.cached_property)):
            value = cast(Any, value).func
        elif hasattr(value, "__wrapped__") and not isinstance(value, type):
            value = inspect.unwrap(value)
        elif isinstance(value, (types.FunctionType, type, nn.Module, Tensor)) or not callable(value):
            return value
        else:
            return type(value)


_SAFE = (sys.stdlib_module_names - {"__main__"}) | {"torch", "tensordict", "numpy", __name__.partition(".")[0]}


def _package(value: Any) -> str:
    return (getattr(value, "__module__", None) or "").partition(".")[0]


def _foreign(value: Any, known: Container[str] = ()) -> bool:
    """Whether a function or class belongs to torch, Python or this package, which write into no parameters.

    Or to an installed package that defines none of the module's classes (``known`` are those that do).
    """
    package = _package(value)
    if package in _SAFE or package in known:
        return package in _SAFE
    return "-packages" in (getattr(sys.modules.get(package), "__file__", None) or "")
