"""Skeletons: modules with every parameter and buffer set to ``None``.

A skeleton holds no storage and takes tensors by ``torch.func.functional_call``, which puts them into the
module while it runs: each thread has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl import _torch_compat
from functional_marl.errors import StructureError

__all__ = [
    "Place",
    "Skeleton",
    "copied",
    "emptied",
    "fill",
    "forget_flat_weights",
    "is_float",
    "materialise",
    "named_tensors",
    "parameter",
    "plain_tensors",
    "skeleton_pair",
    "written",
]

Place = tuple[dict[str, Any], str]  # where a module keeps a tensor, and under which name


class Skeleton:
    """A skeleton in use by one thread: it stays as it was built, whatever a forward writes into it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tried = False  # whether a forward has been seen to leave the parameters alone
        parts = list(module.modules())
        self._attributes = [(part.__dict__, dict(part.__dict__)) for part in parts]
        self._places: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (cast(Any, d), dict(d)) for part in parts for d in (part._parameters, part._buffers, part._modules)
        ]
        self._leaves: list[tuple[str, dict[str, Any], str]] = [
            (f"{path}.{attribute}".lstrip("."), cast(Any, place), attribute)
            for path, part in module.named_modules()
            for place in (part._parameters, part._buffers)
            for attribute in place
        ]
        self.names = [name for name, _, _ in self._leaves]
        self._held: list[Place] | None = None

    def call(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``torch.func.functional_call`` with the places found ahead: 3 us in place of 25 for six leaves.

        As there, ``tensors`` gets what the forward leaves in each place, and the places what they held
        before: a forward may call its own network.
        """
        held = [place.get(attribute) for _, place, attribute in self._leaves]
        for name, place, attribute in self._leaves:
            if name in tensors:
                place[attribute] = tensors[name]
        try:
            return self.module(*args, **kwargs)
        finally:
            for (name, place, attribute), before in zip(self._leaves, held, strict=True):
                if name in tensors and attribute in place:
                    tensors[name] = place[attribute]
                place[attribute] = before

    def places(self, names: Container[str]) -> list[Place]:
        """The places of those leaves, each under all its names; the same names at every call."""
        if self._held is None:
            self._held = [(place, attribute) for name, place, attribute in self._leaves if name in names]
        return self._held

    def restore(self) -> None:
        """Undo what a forward has set, on the module or any part of it."""
        for now, before in self._attributes:
            if len(now) != len(before):
                now.clear()
            now.update(before)
        for now, before in self._places:  # functional_call has put back what stood there
            if len(now) != len(before):
                now.clear()
                now.update(before)


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


def emptied(module: nn.Module) -> nn.Module:
    """A copy without tensors: the memo of deepcopy maps each of them to None."""
    tensors = [*module.parameters(), *module.buffers()]
    # torch.nn.utils.weight_norm and spectral_norm compute a plain tensor ahead of each forward
    tensors += [t for t in plain_tensors(module, hooked=True).values() if t.grad_fn is not None]
    # hooks are not copied with what they belong to: the copy has the very tables
    hooks: list[Any] = [d for part in module.modules() for k, d in part.__dict__.items() if k.endswith("_hooks")]
    return copied(module, {**{id(t): None for t in tensors}, **{id(table): table for table in hooks}})


def skeleton_pair(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Copies without tensors, indexed by ``train``: one for evaluation, one for training."""
    pair = (emptied(module).eval(), emptied(module).train())
    for part in (*pair[0].modules(), *pair[1].modules()):
        forget_flat_weights(part)
    return pair


def written(clone: Tensor) -> bool:
    """Whether a clone, made in this call, was written to; False for tensors that do not count their writes."""
    if torch.compiler.is_dynamo_compiling():
        return False
    clone = _torch_compat.unwrapped(clone)  # vmap counts in the tensor that it wraps only
    return not clone.is_inference() and _torch_compat.version(clone) > 0


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
