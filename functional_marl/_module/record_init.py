"""Recording a factory: its random operations, and those that depend on them, as an :class:`InitTrace`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from functional_marl._module.leaves import all_leaves
from functional_marl._module.replay_init import InitTrace, RecordedOp, Several, in_plain_context
from functional_marl._randomness.random_ops import is_random_op
from functional_marl._torch_compat import LocalMode, schema, storage_id

__all__ = ["record_init"]

_Place = tuple[Any, ...]  # a tensor's place in memory: storage, offset, shape, strides, dtype


class _Done(NamedTuple):
    """An operation that has run, and the storages that it has read and written."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: bool
    out: tuple[Tensor, ...]
    read: frozenset[int]
    wrote: frozenset[int]


class _Recorder(LocalMode):
    """Keeps every operation. Its tensors stay alive, so that no memory is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[_Done] = []
        self.unsupported = False  # whether something happened that a trace cannot hold

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and keep it."""
        kwargs = kwargs or {}
        random = is_random_op(func, args, kwargs)
        result = func(*args, **kwargs)
        where = next((k for k, value in enumerate(args) if isinstance(value, torch.Generator)), len(args))
        kwargs = {**kwargs, **{a.name: v for a, v in zip(schema(func).arguments[where:], args[where:], strict=False)}}
        args = args[:where]  # a generator is always given by name
        tensors = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (tuple, list)) else []
        out = tuple(value for value in tensors if isinstance(value, Tensor))
        read = frozenset(map(storage_id, _tensors(args)))
        into = [a for a, s in zip(args, schema(func).arguments, strict=False) if s.alias_info and s.alias_info.is_write]
        wrote = frozenset(map(storage_id, (*out, *_tensors(into))))
        # Python may branch on a number, or on a shape that depends on numbers. And a trace has no form for results
        # that are no tensors or for tensors given by keyword.
        self.unsupported |= _is_data_dependent(func, args) or schema(func).name in _RESHAPING
        self.unsupported |= len(out) != len(tensors) or any(True for _ in _tensors(tuple(kwargs.values())))
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(...): fresh numbers at each call
            func = torch.ops.aten.clone.default
        self.log.append(_Done(func, args, kwargs, random, out, read, wrote))
        return result


class _Reader(TorchFunctionMode):
    """Sees Python read numbers from a tensor without an operation."""

    read = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function and check its name."""
        self.read |= getattr(func, "__name__", "") in _READING
        return func(*args, **(kwargs or {}))


_READING = frozenset(("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"))
_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _is_data_dependent(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether numbers decide the shape of a result, or a value of Python: an index of bools does, of integers not."""
    if func is torch.ops.aten.index.Tensor:
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
    return bool(_DATA_DEPENDENT & set(func.tags))


_RESHAPING = ("aten::set_", "aten::resize_", "aten::resize_as_")


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _place(tensor: Tensor) -> _Place:
    return storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def record_init(init: Callable[[int], nn.Module]) -> InitTrace | None:
    """The trace of a factory; None if operations alone do not determine its leaves.

    ``init`` builds a module as a function of a seed alone, with random numbers from a generator of that seed.
    """
    if not in_plain_context():
        return None
    with _Recorder() as recorder, _Reader() as reader:
        module = init(0)
    leaves = all_leaves(module)
    if recorder.unsupported or reader.read or any(not _plain(leaf) for leaf in leaves.values()):
        return None
    trace = _trace(recorder.log, leaves)
    return trace if trace is not None and trace.reproduces(init(1), 1) else None


def _trace(log: list[_Done], leaves: Mapping[str, Tensor]) -> InitTrace | None:
    random = _random_storages(log)
    empty = {_place(leaf): name for name, leaf in leaves.items() if storage_id(leaf) in random}
    values: list[Tensor | None] = []
    places: dict[_Place, int] = {}
    rows: list[tuple[str, int]] = []

    def new(tensor: Tensor, value: Tensor | None) -> int:
        values.append(value)
        places[_place(tensor)] = len(values) - 1
        return len(values) - 1

    def at(value: Any) -> int | None:
        if value is None:
            return None
        return places[_place(value)] if _place(value) in places else new(value, value.detach())

    steps: list[RecordedOp] = []
    for done in log:
        if not (done.random or (done.read | done.wrote) & random):
            continue
        if done.operation in _EMPTY and _place(done.out[0]) in empty:
            rows.append((empty.pop(_place(done.out[0])), new(done.out[0], None)))
            continue
        if any(storage_id(t) in random and _place(t) not in places for t in _tensors(done.args)):
            return None  # a tensor that no recorded operation has made
        in_place = schema(done.operation).is_mutable
        if not in_place and all(_place(out) in places for out in done.out):
            continue  # detach: the same memory
        inputs = tuple(
            (place, at(value) if isinstance(value, Tensor) else Several(map(at, value)))
            for place, value in enumerate(done.args)
            if isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(True for _ in _tensors(value)))
        )
        args = tuple(None if any(place == k for k, _ in inputs) else value for place, value in enumerate(done.args))
        kwargs = {key: value for key, value in done.kwargs.items() if key != "generator"}
        outputs = () if in_place else tuple(new(out, None) for out in done.out)
        # The method of the same name takes 1.4 us less than the operation: 14 instead of 19 ms for 512 agents' MLPs.
        method = getattr(Tensor, schema(done.operation).name.removeprefix("aten::"), None) if in_place else None
        steps.append(RecordedOp(method or done.operation, args, inputs, kwargs, done.random, outputs))
    whole = {name for name, _ in rows}
    others = [name for name, leaf in leaves.items() if storage_id(leaf) in random and name not in whole]
    if any(_place(leaves[name]) not in places for name in others):
        return None
    copies = [(name, places[_place(leaves[name])]) for name in others]
    constants = {name: leaf.detach().clone() for name, leaf in leaves.items() if storage_id(leaf) not in random}
    return InitTrace(tuple(steps), tuple(values), tuple(rows), tuple(copies), constants, torch.get_default_dtype())


_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default)


def _random_storages(log: list[_Done]) -> set[int]:
    """The storages that hold, at some time, random numbers or what depends on them."""
    random: set[int] = set()
    before = -1
    while len(random) != before:
        before = len(random)
        for done in log:
            if done.random or done.read & random:
                random |= done.wrote
    return random


def _plain(leaf: Tensor) -> bool:
    """Whether a leaf is a whole storage on the CPU and nothing special."""
    return (
        leaf.device.type == "cpu"
        and type(leaf) in (Tensor, nn.Parameter)
        and leaf.is_contiguous()
        and leaf.numel() * leaf.element_size() == leaf.untyped_storage().nbytes()
    )
