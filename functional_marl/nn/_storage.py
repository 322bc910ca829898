"""Where the parameters of a facade module are registered, and how a call reads the live ones.

With ``use_td_params=True`` they are a :class:`Params` under the name ``params``, and the one-agent module
``_empty_net`` holds tensors on the meta device as plain attributes. Otherwise ``_empty_net`` holds them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictParams
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl import _torch_compat

__all__ = ["Layout", "Params", "is_lazy", "nested", "put", "take"]


def is_lazy(leaf: Any) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return isinstance(leaf, (UninitializedParameter, UninitializedBuffer))


@dataclass(frozen=True)
class Layout:
    """The leaves of a one-agent module, in the order in which its submodules are walked.

    ``params`` and ``buffers`` map dotted names to ``(path of the owner, attribute)``; ``aliases`` maps the
    further names of tied leaves to their first name.
    """

    params: dict[str, tuple[tuple[str, ...], str]]
    buffers: dict[str, tuple[tuple[str, ...], str]]
    aliases: dict[str, str]
    names: tuple[str, ...]  # all, aliases too, in registration order

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module that holds its tensors."""
        places: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {"_parameters": {}, "_buffers": {}}
        first: dict[int, str] = {}
        aliases: dict[str, str] = {}
        names: list[str] = []
        for path, part in module.named_modules(remove_duplicate=False):
            for kind, found in places.items():
                for attribute, tensor in getattr(part, kind).items():
                    if tensor is None:
                        continue
                    name = f"{path}.{attribute}" if path else attribute
                    names.append(name)
                    if id(tensor) in first:
                        aliases[name] = first[id(tensor)]
                    else:
                        first[id(tensor)] = name
                        found[name] = (tuple(path.split(".")) if path else (), attribute)
        return cls(places["_parameters"], places["_buffers"], aliases, tuple(names))

    def owners(self, module: nn.Module) -> Iterator[tuple[str, str, nn.Module, str]]:
        """``(name, first name, owner, attribute)`` of every leaf in a module of this layout."""
        for name in self.names:
            path, _, attribute = name.rpartition(".")
            yield name, self.aliases.get(name, name), module.get_submodule(path), attribute


def take(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The leaves that a module holds, by first name: the very tensors, not copies."""
    return {
        first: getattr(owner, attribute) for name, first, owner, attribute in layout.owners(module) if name == first
    }


def put(module: nn.Module, layout: Layout, leaves: Mapping[str, Tensor], register: bool = True) -> None:
    """Put leaves into a module, tied ones under all their names.

    With ``register`` parameters and buffers go where ``nn.Module`` keeps them; without it they become plain
    attributes, which neither ``parameters()`` nor ``state_dict()`` sees.
    """
    recurrent: dict[int, nn.RNNBase] = {}
    for _, first, owner, attribute in layout.owners(module):
        own: dict[str, Any] = owner.__dict__
        place = own["_parameters" if first in layout.params else "_buffers"]
        if register:
            own.pop(attribute, None)
            place[attribute] = leaves[first]
        else:
            place.pop(attribute, None)
            own[attribute] = leaves[first]
        if isinstance(owner, nn.RNNBase):
            recurrent[id(owner)] = owner
    for owner in recurrent.values() if register else ():
        _torch_compat.read_flat_weights(owner)


def nested(layout: Layout, leaves: Mapping[str, Any], batch_size: list[int]) -> Any:
    """Leaves as a locked TensorDict in registration order, tied ones under all their names."""
    tree: dict[str, Any] = {}
    for name in layout.names:
        *path, attribute = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[attribute] = leaves[layout.aliases.get(name, name)]
    return TensorDict(tree, batch_size=batch_size).lock_()


class Params(TensorDictParams):
    """A ``TensorDictParams`` through which ``torch.func.functional_call`` reaches the parameters.

    The parameters are registered under dotted names. torch walks to ``params.0.weight`` by attributes; a
    plain TensorDictParams answers ``params.0`` with a temporary copy, and what is put there is lost.
    """

    def __init__(self, parameters: Any = None, *, no_convert: Any = True, lock: bool = False) -> None:
        super().__init__(parameters, no_convert=no_convert, lock=lock)

    def __getattr__(self, item: str) -> Any:
        inner = self.__dict__.get("_param_td")
        if inner is not None and not item.startswith("_") and item in inner.keys():  # noqa: SIM118
            return _Branch(self, item)
        return super().__getattr__(item)

    def __setattr__(self, name: str, value: Any) -> None:
        """What takes a registered leaf's place for good, as FSDP2's shards do, takes it in the TensorDict too."""
        before = self.__dict__.get("_parameters", {}).get(name)
        if before is None or not isinstance(value, nn.Parameter):
            super().__setattr__(name, value)
            return
        self._parameters[name] = value
        inner, path = self.__dict__["_param_td"], tuple(name.split("."))
        if inner.get(path) is before:  # else somebody's TensorDict is here for a while
            inner.unlock_().set(path, value)
            inner.lock_()

    def __deepcopy__(self, memo: dict[int, Any]) -> Params:
        leaves: dict[str, Any] = {**self._parameters, **self._buffers}
        inner: Any = self.__dict__["_param_td"]
        tree: dict[str, Any] = {}
        for name in inner.keys(True, True):
            path: tuple[str, ...] = (name,) if isinstance(name, str) else name
            branch = tree
            for part in path[:-1]:
                branch = branch.setdefault(part, {})
            branch[path[-1]] = copy.deepcopy(leaves[".".join(path)], memo)
        td = TensorDict(tree, batch_size=inner.batch_size)
        return Params(td.lock_() if inner.is_locked else td, no_convert="skip")

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False, flatten: bool = True
    ) -> Any:
        """The leaves by dotted names; those without a shape yet as they are, as torch's lazy modules do."""
        leaves: dict[str, Any] = {**self._parameters, **self._buffers}
        if not any(map(is_lazy, leaves.values())):
            # by name: tensordict 0.11 drops a destination given by position
            return super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars, flatten=flatten)
        destination = {} if destination is None else destination
        for name, leaf in leaves.items():
            destination[prefix + name] = leaf if keep_vars or is_lazy(leaf) else leaf.detach()
        return destination

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Copy leaf by leaf, shapes checked: a TensorDict would broadcast one agent's leaf to all."""
        leaves: dict[str, Any] = {**self._parameters, **self._buffers}
        for name, leaf in leaves.items():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif is_lazy(value) or is_lazy(leaf):
                if is_lazy(value) != is_lazy(leaf):
                    error_msgs.append(
                        f"{prefix}{name}: has no shape yet, here or in the checkpoint; call the module once"
                    )
            elif value.shape != leaf.shape:
                error_msgs.append(
                    f"{prefix}{name}: expected {list(leaf.shape)}, got {list(value.shape)}; "
                    "functional_marl.nn.convert_state_dict converts between sharings"
                )
            else:
                with torch.no_grad():
                    leaf.copy_(value)
        given = [k[len(prefix) :] for k in state_dict if k.startswith(prefix)]
        # tensordict 0.11 writes batch sizes and devices among the tensors
        unexpected_keys += [prefix + k for k in given if k not in leaves and not k.split(".")[-1].startswith("__")]

    def leaves(self, layout: Layout, known: list[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and buffers that a call is to use, by first name.

        ``TensorDict.to_module`` swaps the inner TensorDict, ``functional_call`` the registered tensors.
        ``known`` remembers the inner TensorDict that was last seen to hold what is registered: where the
        inner one is another by now, leaves that differ from that one's were swapped.
        """
        params, buffers = self._parameters, self._buffers
        inner = self.__dict__["_param_td"]
        if inner is not known[0]:
            swapped = _swapped(inner, layout, known, {**params, **buffers})
            if swapped:
                params, buffers = {**params, **swapped}, {**buffers, **swapped}
        if not buffers and len(params) == len(layout.params):  # no ties: as they are registered, in that order
            return params, {}  # pyright: ignore
        return {k: params[k] for k in layout.params}, {k: buffers[k] for k in layout.buffers}  # pyright: ignore


def _swapped(inner: Any, layout: Layout, known: list[Any], registered: dict[str, Any]) -> dict[str, Any]:
    """The leaves of another inner TensorDict that are not those known to be registered."""
    out: dict[str, Any] = {}
    for name in (*layout.params, *layout.buffers):
        path = tuple(name.split("."))
        leaf = inner.get(path)
        if leaf is not known[0].get(path) and leaf is not registered[name]:
            out[name] = leaf
    if not out and all(inner.get(tuple(k.split("."))) is registered[k] for k in (*layout.params, *layout.buffers)):
        known[:] = [inner]
    return out


class _Places(dict[str, Any]):
    """The tensors below a prefix; writes go to where they are registered."""

    def __init__(self, place: dict[str, Any], prefix: str) -> None:
        own = {k[len(prefix) :]: v for k, v in place.items() if k.startswith(prefix)}
        super().__init__({k: v for k, v in own.items() if "." not in k})
        self.place, self.prefix = place, prefix

    def __setitem__(self, name: str, tensor: Any) -> None:
        self.place[self.prefix + name] = tensor
        super().__setitem__(name, tensor)


class _Branch(nn.Module):
    """A submodule's worth of :class:`Params`, made when torch asks for it by name."""

    def __init__(self, root: Params, path: str) -> None:
        super().__init__()
        self.__dict__.update(root=root, path=path)
        self.__dict__["_parameters"] = _Places(root._parameters, path + ".")
        self.__dict__["_buffers"] = _Places(root._buffers, path + ".")

    def __getattr__(self, item: str) -> Any:
        root: Params = self.__dict__["root"]
        name = f"{self.__dict__['path']}.{item}"
        if any(leaf.startswith(name + ".") for leaf in (*root._parameters, *root._buffers)):
            return _Branch(root, name)
        return super().__getattr__(item)


def as_registered(leaf: Tensor, like: Any) -> Tensor:
    """A leaf as what is registered: a Parameter, lazy or not, or a buffer, like that of one agent."""
    if isinstance(like, UninitializedParameter):
        return cast(Any, UninitializedParameter)(requires_grad=like.requires_grad, device=like.device, dtype=like.dtype)
    if isinstance(like, UninitializedBuffer):
        return cast(Any, UninitializedBuffer)(requires_grad=False, device=like.device, dtype=like.dtype)
    if isinstance(like, nn.Parameter):
        return nn.Parameter(leaf, requires_grad=like.requires_grad)
    return leaf


def on_meta(leaf: Tensor) -> Tensor:
    """A tensor of the same shape that holds nothing."""
    return torch.empty(0 if is_lazy(leaf) else leaf.shape, dtype=leaf.dtype, device="meta")
