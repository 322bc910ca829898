"""``TDParams``: a ``TensorDictParams`` whose leaves ``functional_call``, FSDP2 and checkpoints reach by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictParams
from torch import Tensor, nn

from functional_marl._module.lazy import is_lazy
from functional_marl._module.leaves import LeafNames

__all__ = ["TDParams"]


class TDParams(TensorDictParams):
    """A ``TensorDictParams`` through which ``torch.func.functional_call`` reaches the parameters.

    The parameters are registered under dotted names. torch reaches ``params.0.weight`` attribute by attribute. A
    plain TensorDictParams gives a temporary copy for ``params.0``, and what is set in that copy is lost.
    """

    def __init__(self, parameters: Any = None, *, no_convert: Any = True, lock: bool = False) -> None:
        super().__init__(parameters, no_convert=no_convert, lock=lock)

    def __getattr__(self, item: str) -> Any:
        inner = self.__dict__.get("_param_td")
        if inner is not None and not item.startswith("_") and item in inner.keys():  # noqa: SIM118
            return _Branch(self, item)
        return super().__getattr__(item)

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a registered leaf, as FSDP2's shards do, in the TensorDict too."""
        before = self.__dict__.get("_parameters", {}).get(name)
        if before is None or not isinstance(value, nn.Parameter):
            super().__setattr__(name, value)
            return
        self._parameters[name] = value
        inner, path = self.__dict__["_param_td"], tuple(name.split("."))
        if inner.get(path) is before:  # else somebody has swapped the TensorDict for the moment
            inner.unlock_().set(path, value)
            inner.lock_()

    def __deepcopy__(self, memo: dict[int, Any]) -> TDParams:
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
        return TDParams(td.lock_() if inner.is_locked else td, no_convert="skip")

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False, flatten: bool = True
    ) -> Any:
        """The leaves by dotted names; lazy leaves are kept as they are, as by torch's lazy modules."""
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
        """Copy leaf by leaf and check the shapes: a TensorDict would broadcast one agent's leaf to all."""
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

    def leaves(self, names: LeafNames, known: list[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and buffers that a call is to use, by first name.

        ``TensorDict.to_module`` swaps the inner TensorDict; ``functional_call`` swaps the registered tensors.
        ``known`` has the inner TensorDict that was last seen to hold what is registered. If the inner one is now
        another, the leaves in which it differs were swapped.
        """
        params, buffers = self._parameters, self._buffers
        inner = self.__dict__["_param_td"]
        if inner is not known[0]:
            swapped = _swapped(inner, names, known, {**params, **buffers})
            if swapped:
                params, buffers = {**params, **swapped}, {**buffers, **swapped}
        if not buffers and len(params) == len(names.params):  # no ties: as they are registered, in that order
            return params, {}  # pyright: ignore
        return {k: params[k] for k in names.params}, {k: buffers[k] for k in names.buffers}  # pyright: ignore


def _swapped(inner: Any, names: LeafNames, known: list[Any], registered: dict[str, Any]) -> dict[str, Any]:
    """The leaves of another inner TensorDict that are not those known to be registered."""
    out: dict[str, Any] = {}
    for name in (*names.params, *names.buffers):
        path = tuple(name.split("."))
        leaf = inner.get(path)
        if leaf is not known[0].get(path) and leaf is not registered[name]:
            out[name] = leaf
    if not out and all(inner.get(tuple(k.split("."))) is registered[k] for k in (*names.params, *names.buffers)):
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
    """The part of :class:`TDParams` under one submodule's name, made when torch reads that attribute."""

    def __init__(self, root: TDParams, path: str) -> None:
        super().__init__()
        self.__dict__.update(root=root, path=path)
        self.__dict__["_parameters"] = _Places(root._parameters, path + ".")
        self.__dict__["_buffers"] = _Places(root._buffers, path + ".")

    def __getattr__(self, item: str) -> Any:
        root: TDParams = self.__dict__["root"]
        name = f"{self.__dict__['path']}.{item}"
        if any(leaf.startswith(name + ".") for leaf in (*root._parameters, *root._buffers)):
            return _Branch(root, name)
        return super().__getattr__(item)
