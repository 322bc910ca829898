"""Where a facade module registers the stacked leaves of its agents, and how the registered ones are read and set.

With ``use_td_params=True`` they are a ``TDParams`` under the name ``params``, and the one-agent module ``_empty_net``
holds tensors on the meta device as plain attributes. Otherwise ``_empty_net`` holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from functional_marl._errors import SharingError, StructureError
from functional_marl._module.lazy import is_lazy
from functional_marl._module.leaves import LeafNames, as_parameter, copy_without_leaves, get_leaves, set_leaves
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl.nn._initialization import materialize_slots, reset_slots
from functional_marl.nn._td_params import TDParams

__all__ = ["ParameterStore", "as_spec", "ignore_empty_net_buffers"]

Modules = dict[str, Any]  # a module's table of submodules


class ParameterStore:
    """The names, the slot maps and the place of the leaves that a facade module registers.

    The store holds no tensors. Its methods get ``modules``, the module's own table of submodules, which has
    ``_empty_net`` and perhaps ``params``: copies of the module, as ``nn.DataParallel`` makes them, have other tables.

    Args:
        names: of one agent's leaves.
        n_agents: how many agents.
        share_params: True stores leaves without slot axis, ``[*leaf]``; all else as ``[S, *leaf]``.
        in_tensordict: True: ``params`` holds the leaves. False: ``_empty_net`` holds them.
    """

    def __init__(self, names: LeafNames, n_agents: int, share_params: bool | SharingSpec, in_tensordict: bool) -> None:
        self.n_agents, self.share_params, self.in_tensordict = n_agents, share_params, in_tensordict
        self.slot_axis = share_params is not True
        self._describe(names)
        # The TensorDict inside of `params` that was last seen to hold what is registered.
        self.known: list[Any] = []

    def _describe(self, names: LeafNames) -> None:
        self.names = names
        try:
            self.sharing: dict[str, Sharing] = resolve(
                as_spec(self.share_params), self.n_agents, [*names.params, *names.buffers]
            )
        except SharingError as error:
            raise SharingError(f"share_params: {error}") from None

    @property
    def n_slots(self) -> int:
        """The most slots that a leaf has."""
        return max((s.n_slots for s in self.sharing.values()), default=1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": []}

    # --- registration ----------------------------------------------------------------------------------

    def register(self, modules: Modules, one: nn.Module, rows: Mapping[str, list[Tensor] | Tensor]) -> None:
        """Register the leaves of one agent's module, stacked from one row a slot, and the module itself."""
        leaves = {name: self._as_stored(name, like, rows[name]) for name, like in get_leaves(one, self.names).items()}
        if self.in_tensordict:
            modules["params"] = TDParams(self.as_tensordict(leaves))
        modules["_empty_net"] = one
        self.place(modules, leaves)

    def _as_stored(self, name: str, like: Tensor, rows: list[Tensor] | Tensor) -> Any:
        if is_lazy(like):
            return _registered_like(like, like)
        if not self.slot_axis:
            return like
        if isinstance(rows, list):
            rows = torch.stack([row.detach() for row in rows[: self.sharing[name].n_slots]])
        return _registered_like(like, rows)

    def place(self, modules: Modules, leaves: dict[str, Any]) -> None:
        """Let ``_empty_net`` hold the leaves, or tensors on the meta device where ``params`` holds them."""
        one = modules["_empty_net"]
        if self.in_tensordict:
            held = get_leaves(one, self.names)
            set_leaves(one, self.names, {k: _on_meta(leaf) for k, leaf in held.items()}, register=False)
        else:
            set_leaves(one, self.names, leaves)

    def as_tensordict(self, leaves: dict[str, Any]) -> Any:
        """Leaves as a locked TensorDict in registration order, tied ones under all their names."""
        tree: dict[str, Any] = {}
        for name in self.names.all:
            *path, attribute = name.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[attribute] = leaves[self.names.aliases.get(name, name)]
        size = [] if any(map(is_lazy, leaves.values())) else self._batch_size()
        return TensorDict(tree, batch_size=size).lock_()

    def _batch_size(self) -> list[int]:
        counts = {s.n_slots for s in self.sharing.values()}
        return [counts.pop()] if self.slot_axis and len(counts) == 1 else []

    def take_over_edits(self, modules: Modules, known_parts: Container[int] | None = None) -> None:
        """After an edit of ``_empty_net``: use its new leaves where it holds one agent's, else refuse them.

        A leaf of a part that is not among ``known_parts`` (by ``id``) is new too; None knows all parts.

        Raises:
            StructureError: pruning, a parametrization or a new layer on a module that holds no leaves, or
                those of several slots.
        """
        one: nn.Module = modules["_empty_net"]
        own = self.names.all
        new = [
            name
            for path, part in one.named_modules(remove_duplicate=False)
            for attribute, leaf in (*part._parameters.items(), *part._buffers.items())
            if leaf is not None
            and (
                (name := f"{path}.{attribute}".lstrip(".")) not in own
                or (known_parts is not None and id(part) not in known_parts)
            )
        ]
        lost = [name for name in own if not _holds(one, name)]
        if not new and not lost:
            return
        if self.slot_axis or self.in_tensordict:
            gone = f" and without {lost}" if lost else ""
            raise StructureError(
                f"_empty_net: expected the leaves that it was built with, got it with {new} as new ones{gone}; build a "
                "new network with this in its _build_single_net (layers can be replaced, pruned and parametrized "
                "afterwards under share_params=True with use_td_params=False only)"
            )
        self._describe(LeafNames.of(one))

    # --- reading ---------------------------------------------------------------------------------------

    def remember(self, modules: Modules) -> None:
        """Remember that what ``params`` holds now is registered."""
        if "params" in modules:
            self.known = [cast(TDParams, modules["params"]).__dict__["_param_td"]]

    def live(self, modules: Modules) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and buffers that are registered at this moment, or that somebody has swapped in."""
        params: Any = modules.get("params")
        names = self.names
        if params is not None:
            if isinstance(params, TDParams):
                return params.leaves(names, self.known)
            # a TensorDict that somebody has swapped in
            return (
                {name: params.get(tuple(name.split("."))) for name in names.params},
                {name: params.get(tuple(name.split("."))) for name in names.buffers},
            )
        root: nn.Module = modules["_empty_net"]
        return (
            {name: _leaf_at(root, path, attribute) for name, (path, attribute) in names.params.items()},
            {name: _leaf_at(root, path, attribute) for name, (path, attribute) in names.buffers.items()},
        )

    def leaves(self, modules: Modules) -> dict[str, Tensor]:
        """The live parameters and buffers in one dict."""
        params, buffers = self.live(modules)
        return {**params, **buffers}

    def row(self, leaf: Tensor, slot: int) -> Tensor:
        """One slot's part of a leaf; of a leaf with fewer slots the last."""
        return leaf[min(slot, len(leaf) - 1)] if self.slot_axis else leaf

    def one_agent(self, modules: Modules, leaves: dict[str, Tensor]) -> nn.Module:
        """A copy of ``_empty_net`` that holds the first slot's part of these leaves, and has the same hooks."""
        empty: nn.Module = modules["_empty_net"]
        one = copy_without_leaves(empty, others=get_leaves(empty, self.names).values())
        rows = {name: self.row(leaf, 0) for name, leaf in leaves.items()}
        set_leaves(one, self.names, rows | {name: as_parameter(rows[name]) for name in self.names.params})
        return one

    # --- the stateful view -----------------------------------------------------------------------------

    def stateful_net(self, modules: Modules, copy: bool) -> nn.Module:
        """``_empty_net`` or a copy of it that holds the stacked leaves themselves."""
        leaves, empty = self.leaves(modules), modules["_empty_net"]
        net = copy_without_leaves(empty, share_hooks=False) if copy else empty
        set_leaves(net, self.names, leaves)
        return net

    def copy_from(self, modules: Modules, stateful_net: nn.Module) -> None:
        """Copy the numbers of such a module into the registered leaves.

        Raises:
            RuntimeError: its leaves are not the leaves of this network; names those that differ.
        """
        given: dict[str, Any] = dict((*stateful_net.named_parameters(), *stateful_net.named_buffers()))
        own = self.leaves(modules)
        given = {k: t for k, t in given.items() if k not in self.names.aliases}
        if given.keys() != own.keys():
            raise RuntimeError(
                f"stateful_net: expected the leaves of this network; missing {sorted(own.keys() - given.keys())}, "
                f"not of this network {sorted(given.keys() - own.keys())}"
            )
        wrong = [
            f"{k}: expected {list(leaf.shape)}, got {list(given[k].shape)}"
            for k, leaf in own.items()
            if not (is_lazy(leaf) or is_lazy(given[k])) and leaf.shape != given[k].shape
        ]
        if wrong:
            raise RuntimeError("stateful_net: " + "; ".join(wrong))
        for name, leaf in own.items():
            if leaf is not given[name]:
                leaf.data.copy_(given[name].data)

    # --- new numbers, and shapes for lazy leaves ---------------------------------------------------------

    def reset(self, modules: Modules, build: Callable[[], nn.Module]) -> None:
        """Initialize every leaf again, in place. Nothing happens while lazy leaves have no shape."""
        own = self.leaves(modules)
        if any(map(is_lazy, own.values())):
            return
        # [n_slots, *leaf]: a leaf of fewer slots repeats its last
        index = torch.arange(self.n_slots)
        rows = {
            k: leaf[index.clamp(max=len(leaf) - 1)].detach() if self.slot_axis else leaf[None].detach()
            for k, leaf in own.items()
        }
        fresh = reset_slots(build, modules["_empty_net"], self.names, rows)
        with torch.no_grad():
            for name, leaf in own.items():
                leaf.copy_(fresh[name][: len(leaf)] if self.slot_axis else fresh[name][0])

    def materialize(self, modules: Modules, one_input: Tensor) -> None:
        """Give the lazy leaves shapes and numbers, in place, so that an optimizer keeps them."""
        leaves = self.leaves(modules)
        lazy = [name for name, leaf in leaves.items() if is_lazy(leaf)]

        first = {
            name: _registered_like(leaf, leaf) if is_lazy(leaf) else self.row(leaf, 0).detach().clone()
            for name, leaf in leaves.items()
        }
        try:
            slots = materialize_slots(modules["_empty_net"], self.names, first, self.n_slots, one_input)
        finally:
            self.place(modules, leaves)
        for name in lazy:
            leaf: Any = leaves[name]
            rows = [slot[name] for slot in slots]
            value = torch.stack(rows[: self.sharing[name].n_slots]) if self.slot_axis else rows[0]
            leaf.materialize(value.shape, device=leaf.device, dtype=leaf.dtype)
            with torch.no_grad():
                leaf.copy_(value)
        self.place(modules, leaves)
        if self.in_tensordict:
            td = modules["params"]._param_td.unlock_()
            td.batch_size = self._batch_size()
            td.lock_()

    def materialize_as(self, modules: Modules, state_dict: dict[str, Any], prefix: str) -> None:
        """Give lazy leaves the shapes that a checkpoint has."""
        where = prefix + ("params." if self.in_tensordict else "_empty_net.")
        for name, leaf in self.leaves(modules).items():
            value = state_dict.get(where + name)
            if is_lazy(leaf) and value is not None and not is_lazy(value):
                cast(Any, leaf).materialize(value.shape, device=leaf.device, dtype=leaf.dtype)


def as_spec(share_params: bool | SharingSpec) -> SharingSpec:
    """torchrl's ``share_params`` as a sharing."""
    if isinstance(share_params, bool):
        return "shared" if share_params else "independent"
    return share_params


def ignore_empty_net_buffers(module: Any, incompatible: Any) -> None:
    """Do not report buffers under ``_empty_net`` as unexpected: torchrl saves meta buffers of its one-agent module."""
    ends = tuple(f"_empty_net.{name}" for name in module._store.names.buffers if module.use_td_params)
    unexpected: list[str] = incompatible.unexpected_keys
    unexpected[:] = [key for key in unexpected if not (ends and key.endswith(ends))]


def _registered_like(like: Any, leaf: Tensor) -> Tensor:
    """A leaf as it is registered: a Parameter or a buffer, lazy or not, as that of one agent."""
    if isinstance(like, UninitializedParameter):
        return cast(Any, UninitializedParameter)(requires_grad=like.requires_grad, device=like.device, dtype=like.dtype)
    if isinstance(like, UninitializedBuffer):
        return cast(Any, UninitializedBuffer)(requires_grad=False, device=like.device, dtype=like.dtype)
    if isinstance(like, nn.Parameter):
        return nn.Parameter(leaf, requires_grad=like.requires_grad)
    return leaf


def _on_meta(leaf: Tensor) -> Tensor:
    """A tensor of the same shape without numbers."""
    return torch.empty(0 if is_lazy(leaf) else leaf.shape, dtype=leaf.dtype, device="meta")


def _holds(root: nn.Module, name: str) -> bool:
    """Whether a module has a tensor under a dotted name, registered or not."""
    path, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(root.get_submodule(path), attribute), Tensor)
    except AttributeError:
        return False


def _leaf_at(root: nn.Module, path: tuple[str, ...], attribute: str) -> Any:
    """A leaf of a module; ``TensorDict.to_module`` leaves plain tensors outside of ``_parameters``."""
    for part in path:
        root = root._modules[part]  # pyright: ignore
    own = root.__dict__
    leaf = own["_parameters"].get(attribute)
    if leaf is None:
        leaf = getattr(root, attribute)
        if not isinstance(leaf, Tensor):
            raise StructureError(f"_empty_net: expected a tensor as {'.'.join((*path, attribute))!r}, got {leaf!r}")
    return leaf
