"""What a module holds, at any depth: found, copied, compared and put back."""

from __future__ import annotations

import enum
import sys
import types
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from operator import is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from functional_marl._module.held_objects import MODULE_ATTRIBUTES
from functional_marl.laws._held_values import (
    UNSET,
    Node,
    Numbers,
    bits_of,
    generator_state,
    refill,
    refill_list,
    restore_numbers,
    same,
    same_array,
    same_items,
    same_numbers,
    set_generator_state,
    slot_value,
    slots_of,
)

__all__ = ["Held", "registered_and_hidden"]

# Values without contents that change. Functions and methods are not followed: what they reach may be anybody's.
_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type, torch.dtype, torch.device, torch.Size}
    | {torch.layout, torch.memory_format, types.FunctionType, types.BuiltinFunctionType, types.MethodType}
    | {types.ModuleType, property, types.MappingProxyType, type(torch.add), type(torch.ops), types.EllipsisType}
)
# Objects of these packages have contents that others change: threads, loggers, the garbage collector. A functional
# network is immutable, and what it caches may stay.
_OPAQUE = frozenset(
    {"threading", "_thread", "logging", "weakref", "_weakref", "queue", "concurrent", "multiprocessing", "asyncio"}
    | {"contextvars", "_contextvars", "io", "_io", "functional_marl", "pathlib", "re"}
)


class _Table(NamedTuple):
    """A dict, and what it had."""

    table: dict[Any, Any]
    was: dict[Any, Any]
    node: Node
    kind: str  # "attribute", "item", "parameter", "buffer", "submodule", "bookkeeping", or the name of a table of hooks


class Held:
    """What a module and other objects hold; see :class:`functional_marl.laws._restore.Snapshot`."""

    def __init__(self, module: nn.Module, others: tuple[Any, ...]) -> None:
        self._tables: list[_Table] = []
        self._empty: list[tuple[Any, Node, str]] = []
        self._lists: list[tuple[Any, tuple[Any, ...], Node]] = []
        self._numbers: list[Numbers] = []
        self._arrays: list[tuple[Any, Any, Node]] = []
        self._generators: list[tuple[Any, Any, Node]] = []
        self._slots: list[tuple[Any, Any, tuple[Any, ...], Node]] = []
        self._lazy: set[int] = set()  # leaves without shapes, by id
        self._lazy_parts: list[tuple[nn.Module, Node]] = []
        self._seen: set[int] = set()
        self._parts: list[tuple[nn.Module, Node]] = [(module, None)]
        self._waiting: list[tuple[Any, Node]] = [(one, (None, "others[", i)) for i, one in enumerate(others)]
        self._others = others  # alive, so that no id is used twice
        self._walk()

    def _walk(self) -> None:
        numpy: Any = sys.modules.get("numpy")
        array: Any = getattr(numpy, "ndarray", ())
        seen, parts, waiting = self._seen, self._parts, self._waiting
        while parts or waiting:
            if parts:  # all that are registered before any attribute: their names are the better ones
                held, node = parts.pop()
                if id(held) not in seen:
                    seen.add(id(held))
                    self._hold_part(held, node)
                continue
            held, node = waiting.pop()
            if id(held) in seen:
                continue
            if isinstance(held, nn.Module):
                parts.append((held, node))
                continue
            seen.add(id(held))
            if isinstance(held, Tensor):
                if nn.parameter.is_lazy(held):
                    self._lazy.add(id(held))
                else:
                    self._hold_tensor(held, node, "attribute")
            elif isinstance(held, dict):
                self._hold_table(held, node, "item")
                self._wait(held.items(), node, "[")
            elif isinstance(held, (list, tuple, set, frozenset, deque)):
                if not isinstance(held, (tuple, frozenset)):
                    self._lists.append((held, (*held,), node))
                self._wait(enumerate(cast("list[Any]", held)), node, "[")
            elif isinstance(held, array):
                self._arrays.append((held, held.copy(), node))
                if held.dtype.hasobject:
                    self._wait(enumerate(held.flat), node, "[")
            else:
                self._hold_object(held, node, numpy)

    def _wait(self, pairs: Any, node: Node, sign: str) -> None:
        self._waiting += [(value, (node, sign, key)) for key, value in pairs if type(value) not in _ATOMS]

    def _hold_table(self, table: dict[Any, Any], node: Node, kind: str) -> None:
        if table:
            self._tables.append(_Table(table, table.copy() if type(table) is dict else dict(table), node, kind))
        else:
            self._empty.append((table, node, kind))

    def _hold_part(self, part: nn.Module, node: Node) -> None:
        attributes = part.__dict__
        self._tables.append(_Table(attributes, attributes.copy(), node, _kind_of(part)))
        waiting = self._waiting
        for name, value in attributes.items():
            if type(value) in _ATOMS or name == "_actual_script_module":  # the module once more
                continue
            if name not in MODULE_ATTRIBUTES or not isinstance(value, (dict, set)):
                waiting.append((value, (node, ".", name)))
            elif not value:
                self._empty.append((value, node, name))
            elif name == "_parameters":
                self._hold_leaves(cast(Any, value), node, "parameter")
            elif name == "_buffers":
                self._hold_leaves(cast(Any, value), node, "buffer")
            elif name == "_modules":
                self._hold_table(cast(Any, value), node, "submodule")
                self._parts += [
                    (one, (node, ".", key)) for key, one in cast(Any, value).items() if isinstance(one, nn.Module)
                ]
            elif isinstance(value, set):
                self._lists.append((value, (*cast("set[Any]", value),), (node, ".", name)))
            else:  # hooks, which may belong to whoever takes the snapshot: which they are, not what they hold
                self._hold_table(cast(Any, value), node, name)
        if isinstance(part, LazyModuleMixin):
            self._lazy_parts.append((part, node))
        if isinstance(part, torch.jit.ScriptModule):
            # its tables are not dicts; other attributes are out of reach
            for kind, leaves in (("parameter", part.named_parameters()), ("buffer", part.named_buffers())):
                for name, leaf in leaves:
                    if id(leaf) not in self._seen:
                        self._seen.add(id(leaf))
                        self._hold_tensor(leaf, (node, ".", name), kind)

    def _hold_leaves(self, table: dict[str, Any], node: Node, kind: str) -> None:
        self._tables.append(_Table(table, table.copy(), node, kind))
        for name, leaf in table.items():
            if leaf is None:
                continue
            if nn.parameter.is_lazy(leaf):  # it may be in several modules, and all of them change
                self._lazy.add(id(leaf))
            elif id(leaf) not in self._seen:
                self._seen.add(id(leaf))
                self._hold_tensor(leaf, (node, ".", name), kind)

    def _hold_tensor(self, leaf: Tensor, node: Node, kind: str) -> None:
        is_leaf = leaf.is_leaf
        grad = leaf.grad if is_leaf else None
        plain = bits = copy = None
        address = size = 0
        if not leaf.is_meta and leaf.layout is torch.strided:
            # quantized and nested tensors, wrapped ones of a transform that is over: nothing to read there
            with suppress(RuntimeError, NotImplementedError):
                alias = leaf.data
                address = alias.data_ptr()
                size = alias.untyped_storage().nbytes()
                if size or not alias.numel():  # else its storage is freed, and there is nothing to read
                    bits = bits_of(alias)
                    copy = bits.clone()
                    plain = alias
        self._numbers.append(
            Numbers(leaf, plain, bits, copy, address, size, is_leaf, leaf.requires_grad, grad, node, kind)
        )
        if grad is not None and id(grad) not in self._seen:
            self._seen.add(id(grad))
            self._hold_tensor(grad, node, "gradient")

    def _hold_object(self, held: Any, node: Node, numpy: Any) -> None:
        state = generator_state(held, numpy)
        if state is not None:
            self._generators.append((held, state, node))
            return
        kind: type[Any] = type(held)
        if kind.__module__.partition(".")[0] in _OPAQUE or isinstance(held, (type, enum.Enum, types.ModuleType)):
            return
        attributes: Any = getattr(held, "__dict__", None)
        if type(attributes) is dict and id(attributes) not in self._seen:
            self._seen.add(id(attributes))
            self._hold_table(cast("dict[Any, Any]", attributes), node, _kind_of(held))
            self._wait(cast("dict[str, Any]", attributes).items(), node, ".")
        slots = slots_of(kind)
        if slots:
            values = tuple(slot_value(held, slot) for slot in slots)
            self._slots.append((held, slots, values, node))
            self._wait([(slot.__name__, one) for slot, one in zip(slots, values, strict=True)], node, ".")

    # --- afterwards ---------------------------------------------------------------------------------------

    def _grown(self) -> set[int]:
        """The names (by ``id``) of modules in which lazy leaves were made since, and of what holds these modules."""
        grown: set[int] = set()
        made: list[Node] = [node for part, node in self._lazy_parts if not isinstance(part, LazyModuleMixin)]
        for table, was, node, _ in self._tables if self._lazy else ():
            for key, leaf in was.items():
                now: Any = table.get(key)
                if id(leaf) in self._lazy and not nn.parameter.is_lazy(now):
                    made.append(node)
        for node in made:
            grown.add(id(None))  # the name of the module itself
            while node is not None:
                grown.add(id(node))
                node = node[0]
        return grown

    def restore(self) -> None:
        """Put everything back."""
        grown = self._grown()
        for table, was, node, _ in self._tables:
            if not same_items(table, was):
                if not grown or id(node) not in grown:
                    refill(table, was)
                elif "training" in was:
                    table["training"] = was["training"]
        for container, node, _ in self._empty:
            if container and (not grown or id(node) not in grown):
                container.clear()
        for container, was, node in self._lists:
            now = (*container,)
            if (len(now) != len(was) or not all(map(is_, now, was))) and (not grown or id(node) not in grown):
                refill_list(container, was)
        for one in self._numbers:
            restore_numbers(one)
        for array, was, _ in self._arrays:
            if not same_array(array, was):
                with suppress(ValueError):  # a read-only one, which somebody else wrote
                    if array.shape != was.shape:
                        array.resize(was.shape, refcheck=False)
                    array[...] = was
        for generator, state, _ in self._generators:
            if not same(generator_state(generator, sys.modules.get("numpy")), state):
                set_generator_state(generator, state)
        for held, slots, values, _ in self._slots:
            for slot, value in zip(slots, values, strict=True):
                if slot_value(held, slot) is not value:
                    with suppress(AttributeError, TypeError):  # read-only, as those of functools.partial
                        slot.__delete__(held) if value is UNSET else slot.__set__(held, value)

    def changed(self) -> Iterator[str]:
        """Names of what differs now."""
        grown = self._grown()
        copies = {id(one.leaf): one for one in self._numbers}
        for table, was, node, kind in self._tables:
            if id(node) not in grown and kind != "bookkeeping":
                for key in {**was, **table}:
                    if not same(table.get(key, UNSET), was.get(key, UNSET), copies):
                        yield _table_name(node, kind, key)
        for container, node, kind in self._empty:
            if id(node) not in grown:
                for key in container:
                    yield _table_name(node, _KINDS.get(kind, kind), key)
        for container, was, node in self._lists:
            now = (*container,)
            alike = now == was if isinstance(container, set) else same(now, was, copies)
            if not alike and id(node) not in grown:
                yield f"attribute {_name(node)}"
        for one in self._numbers:
            name = _name(one.node)
            if one.leaf.requires_grad != one.requires_grad and one.is_leaf and one.kind != "gradient":
                yield f"requires_grad of {name}"
            if (one.is_leaf and one.leaf.is_leaf and (one.leaf.grad is None) != (one.grad is None)) or (
                one.grad is not None and one.leaf.is_leaf and not same(one.leaf.grad, one.grad, copies)
            ):
                yield f"gradient of {name}"
            if not same_numbers(one.leaf, one):
                yield f"gradient of {name}" if one.kind == "gradient" else f"{one.kind} {name}"
        for array, was, node in self._arrays:
            if not same_array(array, was):
                yield f"attribute {_name(node)}"
        for generator, state, node in self._generators:
            if not same(generator_state(generator, sys.modules.get("numpy")), state):
                yield f"generator {_name(node)} ({type(generator).__module__.partition('.')[0].lstrip('_')})"
        for held, slots, values, node in self._slots:
            for slot, value in zip(slots, values, strict=True):
                if not same(slot_value(held, slot), value, copies):
                    yield f"attribute {_name((node, '.', slot.__name__))}"


def registered_and_hidden(module: nn.Module) -> list[nn.Module]:
    """The module and all modules in it, also those in lists, dicts and other plain attributes."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        held = waiting.pop()
        if id(held) in seen or type(held) in _ATOMS or isinstance(held, Tensor):
            continue
        seen.add(id(held))
        if isinstance(held, nn.Module):
            found.append(held)
            waiting += held.children()
            waiting += [one for name, one in held.__dict__.items() if name not in MODULE_ATTRIBUTES]
        elif isinstance(held, dict):
            waiting += cast("dict[Any, Any]", held).values()
        elif isinstance(held, (list, tuple, set, frozenset, deque)):
            waiting += cast("list[Any]", held)
    return found


def _kind_of(held: Any) -> str:
    """What the attributes of an object are; TensorDicts note in theirs which context is open."""
    return "bookkeeping" if type(held).__module__.startswith("tensordict") else "attribute"


# --- names -----------------------------------------------------------------------------------------------

_KINDS = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "submodule"}


def _name(node: Node) -> str:
    if node is None:
        return ""
    owner, sign, key = node
    if sign == "others[":
        return f"others[{key}]"
    return f"{_name(owner)}[{key!r}]" if sign == "[" else f"{_name(owner)}.{key}".lstrip(".")


def _table_name(node: Node, kind: str, key: Any) -> str:
    if kind == "item":
        return f"attribute {_name((node, '[', key))}"
    if kind.startswith("_"):
        return f"hooks {_name((node, '.', kind))}"
    return f"{kind} {_name((node, '.', key))}"
