"""The leaves of a module, its parameters and buffers: names, ties, putting them in, leaving them out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl import _torch_compat
from functional_marl._errors import StructureError

__all__ = [
    "as_parameter",
    "copy_without_leaves",
    "deep_copy",
    "forget_flat_weights",
    "is_float",
    "materialise",
    "named_tensors",
    "nearest_parameters",
    "plain_tensors",
    "set_leaves",
]


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


def set_leaves(module: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
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


def deep_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
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


def copy_without_leaves(module: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """A copy without leaves: the memo of deepcopy, which ``copies`` gets, maps each of them to None."""
    tensors = [*module.parameters(), *module.buffers()]
    # torch.nn.utils.weight_norm and spectral_norm compute a plain tensor ahead of each forward
    tensors += [t for t in plain_tensors(module, hooked=True).values() if t.grad_fn is not None]
    # hooks are not copied with what they belong to: the copy has the very tables
    hooks: list[Any] = [d for part in module.modules() for k, d in part.__dict__.items() if k.endswith("_hooks")]
    memo = {} if copies is None else copies
    memo.update({**{id(t): None for t in tensors}, **{id(table): table for table in hooks}})
    return deep_copy(module, memo)


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor can require grad."""
    return tensor.is_floating_point() or tensor.is_complex()


def as_parameter(tensor: Tensor) -> nn.Parameter:
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
