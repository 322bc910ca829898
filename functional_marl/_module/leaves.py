"""The leaves of a module (parameters and buffers): names and ties, reading, setting, and copies without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from functional_marl import _torch_compat
from functional_marl._errors import StructureError
from functional_marl._module.held_objects import plain_tensors

__all__ = [
    "LeafNames",
    "all_leaves",
    "as_parameter",
    "copy_without_leaves",
    "deep_copy",
    "get_leaves",
    "is_float",
    "named_tensors",
    "nearest_parameters",
    "remove_leaves",
    "same_numbers",
    "set_leaves",
]

# --- names and ties ------------------------------------------------------------------------------------


def _walk(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """``(name, table, tensor)`` of every leaf in registration order; a tied leaf comes once for each of its names."""
    for path, part in module.named_modules(remove_duplicate=False):
        for table in ("_parameters", "_buffers"):
            for attribute, tensor in getattr(part, table).items():
                if tensor is not None:
                    yield f"{path}.{attribute}" if path else attribute, table, tensor


@dataclass(frozen=True)
class LeafNames:
    """The names of a module's leaves, in the order in which its submodules are walked.

    ``params`` and ``buffers`` map dotted names to ``(path of the owner, attribute)``; ``aliases`` maps the
    further names of tied leaves to their first name.
    """

    params: dict[str, tuple[tuple[str, ...], str]]
    buffers: dict[str, tuple[tuple[str, ...], str]]
    aliases: dict[str, str]
    all: tuple[str, ...]  # params, buffers and aliases in registration order

    @classmethod
    def of(cls, module: nn.Module) -> LeafNames:
        """The names in a module that holds its tensors."""
        places: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {"_parameters": {}, "_buffers": {}}
        first: dict[int, str] = {}
        aliases: dict[str, str] = {}
        names: list[str] = []
        for name, table, tensor in _walk(module):
            names.append(name)
            if id(tensor) in first:
                aliases[name] = first[id(tensor)]
            else:
                first[id(tensor)] = name
                *path, attribute = name.split(".")
                places[table][name] = (tuple(path), attribute)
        return cls(places["_parameters"], places["_buffers"], aliases, tuple(names))

    def owners(self, module: nn.Module) -> Iterator[tuple[str, str, nn.Module, str]]:
        """``(name, first name, owner, attribute)`` of every leaf in a module of these names."""
        for name in self.all:
            path, _, attribute = name.rpartition(".")
            yield name, self.aliases.get(name, name), module.get_submodule(path), attribute


def named_tensors(module: nn.Module, table: str) -> dict[str, Tensor]:
    """The tensors in ``"_parameters"`` or ``"_buffers"`` by name, tied ones by their first; detached, not copied."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, found, tensor in _walk(module):
        if found == table and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


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


# --- reading and setting -------------------------------------------------------------------------------


def get_leaves(module: nn.Module, names: LeafNames) -> dict[str, Tensor]:
    """The leaves that a module holds, by first name: the same tensors, not copies."""
    return {first: getattr(owner, attribute) for name, first, owner, attribute in names.owners(module) if name == first}


def set_leaves(module: nn.Module, names: LeafNames, leaves: Mapping[str, Tensor], register: bool = True) -> None:
    """Put leaves into a module, tied ones under all their names.

    With ``register`` parameters and buffers go where ``nn.Module`` keeps them. Without it they become plain
    attributes, which neither ``parameters()`` nor ``state_dict()`` sees.
    """
    recurrent: dict[int, nn.RNNBase] = {}
    for _, first, owner, attribute in names.owners(module):
        own: dict[str, Any] = owner.__dict__
        table = own["_parameters" if first in names.params else "_buffers"]
        if register:
            own.pop(attribute, None)
            table[attribute] = leaves[first]
        else:
            table.pop(attribute, None)
            own[attribute] = leaves[first]
        if isinstance(owner, nn.RNNBase):
            recurrent[id(owner)] = owner
    for owner in recurrent.values() if register else ():
        _torch_compat.read_flat_weights(owner)


# --- without leaves ------------------------------------------------------------------------------------


def remove_leaves(module: nn.Module) -> None:
    """Set every parameter and buffer of a module to ``None``."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update(dict.fromkeys(table))
        if isinstance(part, nn.RNNBase):
            _torch_compat.forget_flat_weights(part)


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


def copy_without_leaves(
    module: nn.Module, others: Iterable[Tensor] = (), memo: dict[int, Any] | None = None, share_hooks: bool = True
) -> nn.Module:
    """A deep copy with ``None`` in place of every parameter, buffer and other tensor that is named.

    With ``share_hooks`` the copy has the same tables of hooks. ``memo`` is deepcopy's, and is filled.
    """
    tensors = [*module.parameters(), *module.buffers(), *others]
    # torch.nn.utils.weight_norm, spectral_norm and pruning compute a plain tensor before each forward
    tensors += [t for t in plain_tensors(module, hooked=True).values() if t.grad_fn is not None]
    memo = {} if memo is None else memo
    memo.update({id(t): None for t in tensors})
    if share_hooks:
        tables: list[Any] = [d for part in module.modules() for k, d in part.__dict__.items() if k.endswith("_hooks")]
        memo.update({id(table): table for table in tables})
    return deep_copy(module, memo)


# --- one leaf ------------------------------------------------------------------------------------------


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor can require grad."""
    return tensor.is_floating_point() or tensor.is_complex()


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """A parameter that requires grad if it can."""
    return nn.Parameter(tensor, requires_grad=is_float(tensor))


def all_leaves(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first names, detached."""
    return {name: leaf.detach() for name, leaf in get_leaves(module, LeafNames.of(module)).items()}


def same_numbers(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors have the same shape and numbers; NaN equals NaN, and tensors without numbers are equal."""
    if a.is_meta:
        return True
    if b is None or a.shape != b.shape:
        return False
    try:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    except RuntimeError:  # fake tensors have no numbers
        return True
