"""Skeletons: modules with every parameter and buffer set to ``None``.

A skeleton holds no storage and takes tensors by ``torch.func.functional_call``, which puts them into the
module while it runs: each thread has its own.
"""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl import _torch_compat
from functional_marl._clean_context import no_active_modes
from functional_marl._errors import StructureError
from functional_marl._torch_compat import version

__all__ = [
    "Place",
    "StatelessModule",
    "copied",
    "counted",
    "emptied",
    "fill",
    "forget_flat_weights",
    "is_float",
    "materialise",
    "named_tensors",
    "nearest_parameters",
    "parameter",
    "plain_tensors",
    "written",
]

Place = tuple[dict[str, Any], str]  # where a module keeps a tensor, and under which name


class StatelessModule:
    """One thread's skeleton in one mode. After each call it is as it was made, whatever a forward writes into it."""

    def __init__(self, empty: nn.Module, train: bool) -> None:
        self._empty, self._train = empty, train
        self.tried = False  # whether a forward has been seen to leave the parameters alone
        self.busy = False  # in a call: a forward that applies its own network needs another one
        self.make()

    def make(self) -> None:
        """Copy the module: at first, and when a plain tensor in it was written to."""
        copies: dict[int, Any] = {}
        with no_active_modes():  # what it holds would else belong to the modes of this call
            self.module = emptied(self._empty, copies).train(self._train)
        parts = list(self.module.modules())
        for part in parts:
            forget_flat_weights(part)
        own = [{k: v for k, v in part.__dict__.items() if k not in _TABLES} for part in parts]
        self._parts = list(zip(parts, own, strict=True))
        self._attributes = [
            (part.__dict__, dict(part.__dict__), {**mine, "training": part.training})
            for part, mine in zip(parts, own, strict=True)
        ]
        self._places: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (cast(Any, d), dict(d)) for part in parts for d in (part._parameters, part._buffers, part._modules)
        ]
        self._leaves: list[tuple[str, dict[str, Any], str]] = [
            (f"{path}.{attribute}".lstrip("."), cast(Any, place), attribute)
            for path, part in self.module.named_modules()
            for place in (part._parameters, part._buffers)
            for attribute in place
        ]
        self.names = [name for name, _, _ in self._leaves]
        self._held: list[Place] | None = None
        containers, self.constants = holdings(parts, {id(copy) for copy in copies.values()})
        self._containers = [(held, _contents(held)) for held in containers if not _is_array(held)]
        self._arrays = [(held, held.copy()) for held in containers if _is_array(held)]
        self._versions = [version(constant) for constant in self.constants]

    def call(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``torch.func.functional_call`` with the places found ahead: 3 us in place of 25 for six leaves.

        As there, ``tensors`` gets what the forward leaves in each place.
        """
        self.busy = True
        try:
            for name, place, attribute in self._leaves:
                if name in tensors:
                    place[attribute] = tensors[name]
            return self.module(*args, **kwargs)
        finally:
            for name, place, attribute in self._leaves:
                if name in tensors and attribute in place:
                    tensors[name] = place[attribute]
            self.restore()

    def places(self, names: Container[str]) -> list[Place]:
        """The places of those leaves, each under all its names; the same names at every call."""
        if self._held is None:
            self._held = [(place, attribute) for name, place, attribute in self._leaves if name in names]
        return self._held

    def restore(self) -> None:
        """Undo what a forward has set, on the module or any part of it, and what it has put in a container."""
        for now, before, own in self._attributes:
            if len(now) != len(before):
                now.clear()
                now.update(before)
            else:  # torch's own tables stay the same objects
                now.update(own)
        for now, before in self._places:
            if len(now) != len(before):
                now.clear()
            if before:
                now.update(before)
        for held, before in self._containers:
            _put_back(held, before)
        for array, before in self._arrays:
            array[...] = before
        if self.constants and [version(constant) for constant in self.constants] != self._versions:
            self.make()
        self.busy = False

    def lend_traced(self) -> None:
        """Put clones in the place of plain tensors for one call in a trace of dynamo."""
        for part, before in self._parts:
            for name, value in before.items():
                if isinstance(value, Tensor):
                    setattr(part, name, value.clone())

    def restore_traced(self) -> None:
        """:meth:`restore` in a trace of dynamo, in steps that it knows; leaves are put back by ``functional_call``."""
        for part, before in self._parts:
            for name in [name for name in part.__dict__ if name not in before and name not in _TABLES]:
                delattr(part, name)
            for name, value in before.items():
                if part.__dict__[name] is not value:
                    setattr(part, name, value)
        for held, before in self._containers:
            _put_back(held, before)


# --- what a module holds beside its leaves -------------------------------------------------------------


_TABLES = frozenset(nn.Module().__dict__)


def holdings(parts: list[nn.Module], copies: Container[int]) -> tuple[list[Any], list[Tensor]]:
    """The containers and plain tensors, at any depth, among the copies (by ``id``) that attributes hold.

    Containers are lists, deques, sets, dicts and arrays of NumPy; of another object, its ``__dict__``.
    """
    containers: list[Any] = []
    tensors: list[Tensor] = []
    seen = {id(part) for part in parts}
    waiting: list[Any] = [v for part in parts for k, v in part.__dict__.items() if k not in _TABLES]
    while waiting:
        held = waiting.pop()
        if id(held) in seen or id(held) not in copies:
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            tensors.append(held)
        elif _is_array(held):
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


def _is_array(held: Any) -> bool:
    return hasattr(held, "__array_interface__") and not isinstance(held, Tensor)


def _contents(held: Any) -> tuple[Any, ...]:
    return (*held.items(),) if isinstance(held, dict) else (*held,)


def _put_back(held: Any, before: tuple[Any, ...]) -> None:
    """Give a container the items that it had."""
    now = _contents(held)
    pairs = isinstance(held, dict)
    if len(now) == len(before) and (
        all(a is c and b is d for (a, b), (c, d) in zip(now, before, strict=True))
        if pairs
        else all(map(operator.is_, now, before))
    ):
        return
    held.clear()
    held.update(before) if isinstance(held, (dict, set)) else held.extend(before)


def named_tensors(module: nn.Module, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by their first dotted name, and the further names of tied ones: ``{alias: first name}``.

    ``kind`` is ``"_parameters"`` or ``"_buffers"``; the tensors are detached and share storage.
    """
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for attribute, tensor in getattr(part, kind).items():
            if tensor is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            if id(tensor) in first:
                aliases[name] = first[id(tensor)]
            else:
                first[id(tensor)] = name
                tensors[name] = tensor.detach()
    return tensors, aliases


def nearest_parameters(buffers: Iterable[str], params: Mapping[str, Tensor]) -> dict[str, str]:
    """For each buffer the first floating parameter, else the first, of the smallest part around it that has any."""
    first: dict[str, str] = {}
    for name in sorted(params, key=lambda name: not params[name].is_floating_point()):
        for part in _around(name):
            first.setdefault(part, name)
    return {buffer: next((first[part] for part in _around(buffer) if part in first), "") for buffer in buffers}


def _around(name: str) -> Iterator[str]:
    """The parts around a leaf, the smallest first; the whole is ""."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def fill(module: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Put tensors into the empty places of a skeleton, tied ones under all their names."""
    for name, tensor in (*tensors.items(), *((a, tensors[k]) for a, k in aliases.items())):
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        place = owner._parameters if attribute in owner._parameters else owner._buffers
        place[attribute] = cast(Any, tensor)
        if isinstance(owner, nn.RNNBase):
            _torch_compat.read_flat_weights(owner)


def forget_flat_weights(part: nn.Module) -> None:
    """Make a recurrent module read its weights anew: it keeps them in a list beside its parameters."""
    if isinstance(part, nn.RNNBase):
        _torch_compat.forget_flat_weights(part)


def plain_tensors(module: nn.Module, hooked: bool = False) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers, by dotted name; or those that a hook computes."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        if bool(part._forward_pre_hooks) == hooked
        for name, value in part.__dict__.items()
        if isinstance(value, Tensor)
    }


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy.

    Raises:
        StructureError: something in the module cannot be copied.
    """
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a user's attribute raises
        raise StructureError(
            f"build: {type(module).__name__} holds what cannot be copied ({error}); keep locks and files out of it; "
            "lazy buffers can only come from a factory"
        ) from error


def emptied(module: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """A copy without leaves: the memo of deepcopy, which ``copies`` gets, maps each of them to None."""
    tensors = [*module.parameters(), *module.buffers()]
    # torch.nn.utils.weight_norm and spectral_norm compute a plain tensor ahead of each forward
    tensors += [t for t in plain_tensors(module, hooked=True).values() if t.grad_fn is not None]
    # hooks are not copied with what they belong to: the copy has the very tables
    hooks: list[Any] = [d for part in module.modules() for k, d in part.__dict__.items() if k.endswith("_hooks")]
    memo = {} if copies is None else copies
    memo.update({**{id(t): None for t in tensors}, **{id(table): table for table in hooks}})
    return copied(module, memo)


def written(clone: Tensor) -> bool:
    """Whether a clone, made in this call, was written to; False for tensors that do not count their writes."""
    if torch.compiler.is_dynamo_compiling():
        return False
    clone = _torch_compat.unwrapped(clone)  # vmap counts in the tensor that it wraps only
    return not clone.is_inference() and version(clone) > 0


def counted(tensor: Tensor) -> Tensor:
    """A clone that counts its writes, in inference mode too."""
    if torch.compiler.is_dynamo_compiling():
        return tensor.clone()
    if not torch.is_inference_mode_enabled():
        with torch.enable_grad():  # torch's matmul rounds otherwise where a weight requires no grad
            return tensor.clone()
    with torch.inference_mode(False), torch.no_grad():
        clone = tensor.clone()
        return clone.clone() if written(clone) else clone  # that of an inference tensor counts its own making


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor can require grad."""
    return tensor.is_floating_point() or tensor.is_complex()


def parameter(tensor: Tensor) -> nn.Parameter:
    """A parameter that requires grad if it can."""
    return nn.Parameter(tensor, requires_grad=is_float(tensor))


def materialise(module: nn.Module, example: tuple[Any, ...] | None) -> None:
    """Give a lazy module its shapes by one call in evaluation mode."""
    lazy = _lazy_leaves(module)
    if not lazy:
        return
    if example is None:
        raise StructureError(f"build: the lazy leaves {lazy} have no shapes yet; give example= one agent's input")
    training = module.training
    with torch.no_grad():
        try:
            module.eval()(*example)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise StructureError(f"example: the module does not take it: {error}") from error
    module.train(training)
    lazy = _lazy_leaves(module)
    if lazy:
        raise StructureError(f"build: the lazy leaves {lazy} got no shapes from example=: the forward leaves them out")


def _lazy_leaves(module: nn.Module) -> list[str]:
    kinds = (UninitializedParameter, UninitializedBuffer)
    return [k for k, t in (*module.named_parameters(), *module.named_buffers()) if isinstance(t, kinds)]
