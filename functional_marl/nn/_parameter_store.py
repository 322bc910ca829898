"""The registration half of the facade: what is stored where, drawn, loaded and handed out.

:class:`Registered` knows nothing of how agents are evaluated; ``base.py`` adds the call.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._arguments import shown
from functional_marl._errors import SharingError, StructureError
from functional_marl._module.held_objects import plain_tensors
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl.nn import _init as drawing
from functional_marl.nn import _storage as storage
from functional_marl.nn._edit_tracker import Watch
from functional_marl.nn._storage import Layout, Params, is_lazy, put

__all__ = ["HOOKS", "Registered"]

HOOKS = tuple(k for k in nn.Module().__dict__ if k.endswith("_hooks") and "state_dict" not in k)


class Registered(nn.Module):
    """A module that registers the stacked leaves of a one-agent module, in one of two places."""

    of_several_agents = True  # so that no other network takes it for the module of one agent

    n_agents: int
    share_params: bool | SharingSpec
    agent_dim: int
    centralized: bool
    use_td_params: bool
    initialized: bool
    _layout: Layout
    _sharing: dict[str, Sharing]
    _known: list[Any]
    _empty_net: nn.Module
    _watch: Watch

    def _build_one(self) -> nn.Module:
        raise NotImplementedError

    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def _prepare(self) -> None:
        raise NotImplementedError

    # --- registration ----------------------------------------------------------------------------------

    def _slot_maps(self) -> dict[str, Sharing]:
        names = [*self._layout.params, *self._layout.buffers]
        spec: Any = self.share_params
        if isinstance(spec, bool):
            spec = "shared" if spec else "independent"
        try:
            return resolve(spec, self.n_agents, names)
        except SharingError as error:
            raise SharingError(f"share_params: {error}") from None

    def _stored(self, name: str, like: Tensor, rows: list[Tensor] | Tensor) -> Any:
        """The leaf as it is registered, from that of one agent and one row a slot."""
        if is_lazy(like):
            return storage.as_registered(like, like)
        if self.share_params is True:
            return like
        if isinstance(rows, list):
            rows = torch.stack([row.detach() for row in rows[: self._sharing[name].n_slots]])
        return storage.as_registered(rows, like)

    def _register(self, one: nn.Module, leaves: dict[str, Any]) -> None:
        if self.use_td_params:
            size = [] if any(map(is_lazy, leaves.values())) else self._batch_size()
            self.params = Params(storage.nested(self._layout, leaves, size))
        self._empty_net = one
        self._place(leaves)
        self.register_load_state_dict_post_hook(_forget_template_buffers)

    def _place(self, leaves: dict[str, Any]) -> None:
        """Let the template hold the leaves, or tensors on the meta device where ``params`` has them."""
        held = storage.take(self._empty_net, self._layout)
        if self.use_td_params:
            put(self._empty_net, self._layout, {k: storage.on_meta(leaf) for k, leaf in held.items()}, False)
        else:
            put(self._empty_net, self._layout, leaves)

    def _batch_size(self) -> list[int]:
        counts = {s.n_slots for s in self._sharing.values()}
        return [counts.pop()] if self.share_params is not True and len(counts) == 1 else []

    @property
    def params(self) -> Any:
        """All leaves: a ``TensorDictParams``, or a TensorDict of what the template holds now."""
        modules: dict[str, Any] = self.__dict__["_modules"]
        if "params" in modules:
            return modules["params"]
        leaves = self._leaves()
        return storage.nested(self._layout, leaves, self._batch_size() if self.initialized else [])

    @params.setter
    def params(self, value: Any) -> None:
        self.__dict__["_modules"]["params"] = value

    # --- reading ---------------------------------------------------------------------------------------

    def _live(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and buffers that are registered, or swapped in, at this moment."""
        modules = self.__dict__["_modules"]
        params: Any = modules.get("params")
        if params is not None:
            if not isinstance(params, Params):
                return _from_tensordict(params, self._layout)
            return params.leaves(self._layout, self._known)
        root: nn.Module = modules["_empty_net"]
        layout = self._layout
        return (
            {name: _at(root, path, attribute) for name, (path, attribute) in layout.params.items()},
            {name: _at(root, path, attribute) for name, (path, attribute) in layout.buffers.items()},
        )

    def _leaves(self) -> dict[str, Tensor]:
        params, buffers = self._live()
        return {**params, **buffers}

    def _one_agent(self, leaves: dict[str, Tensor], slot: int = 0) -> nn.Module:
        """A copy of the template that holds one slot's leaves; hooks are shared with the template."""
        hooks = [part.__dict__[name] for part in self._empty_net.modules() for name in HOOKS]
        held = (
            *self._empty_net.parameters(),
            *self._empty_net.buffers(),
            *storage.take(self._empty_net, self._layout).values(),
        )
        computed = plain_tensors(self._empty_net, hooked=True).values()  # by pruning, say, ahead of each forward
        lost: dict[int, Any] = {id(t): None for t in (*held, *computed)}
        one = copy.deepcopy(self._empty_net, {**lost, **{id(hook): hook for hook in hooks}})
        rows: dict[str, Any] = {}
        for name, leaf in leaves.items():
            row = leaf if self.share_params is True else leaf[min(slot, len(leaf) - 1)]
            rows[name] = nn.Parameter(row, row.is_floating_point()) if name in self._layout.params else row
        put(one, self._layout, rows)
        return one

    def _check_template(self) -> None:
        """After an edit of the template: take over its leaves where it holds one agent's, else refuse new ones.

        Raises:
            StructureError: pruning, a parametrization or a new layer on a template that holds no leaves, or
                those of several slots.
        """
        own = self._layout.names
        new = [
            name
            for path, part in self._empty_net.named_modules(remove_duplicate=False)
            for attribute, leaf in (*part._parameters.items(), *part._buffers.items())
            if leaf is not None
            and ((name := f"{path}.{attribute}".lstrip(".")) not in own or id(part) not in self._watch.known)
        ]
        lost = [name for name in own if not _holds(self._empty_net, name)]
        if not new and not lost:
            return
        if self.share_params is not True or self.use_td_params:
            gone = f" and without {lost}" if lost else ""
            raise StructureError(
                f"_empty_net: expected the leaves that it was built with, got it with {new} as new ones{gone}; build a "
                "new network with this in its _build_single_net (layers can be replaced, pruned and parametrized "
                "afterwards under share_params=True with use_td_params=False only)"
            )
        self._layout = Layout.of(self._empty_net)
        self._sharing = self._slot_maps()

    # --- the stateful view -----------------------------------------------------------------------------

    def get_stateful_net(self, copy: bool = True) -> nn.Module:
        """The one-agent module holding the stacked parameters, for ``torch.nn.init``.

        Its tensors are the parameters themselves: what is changed in place has reached this module. It
        cannot be called where parameters are stacked.

        Args:
            copy: give a copy of the template, and not the template itself.

        >>> from functional_marl.nn import MultiAgentMLP
        >>> mlp = MultiAgentMLP(4, 2, 3, centralized=False, share_params=False, depth=0)
        >>> _ = torch.nn.init.zeros_(mlp.get_stateful_net()[0].weight)
        >>> bool((mlp.params["0", "weight"] == 0).all())
        True
        """
        params, buffers = self._live()
        net = _copied(self._empty_net) if copy else self._empty_net
        put(net, self._layout, {**params, **buffers})
        return net

    def from_stateful_net(self, stateful_net: nn.Module) -> None:
        """Take over the numbers of a module from :meth:`get_stateful_net` that were changed out of place.

        Raises:
            RuntimeError: its leaves are not the leaves of this network; names those that differ.
        """
        if not isinstance(stateful_net, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"stateful_net: expected a module from get_stateful_net, got {shown(stateful_net)}")
        given: dict[str, Any] = dict((*stateful_net.named_parameters(), *stateful_net.named_buffers()))
        params, buffers = self._live()
        own = {**params, **buffers}
        given = {k: t for k, t in given.items() if k not in self._layout.aliases}
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

    def reset_parameters(self) -> None:
        """Draw every parameter anew, by ``reset_parameters`` or else by the factory; buffers as those resets do.

        Under the same ``torch.manual_seed`` the numbers are those of torchrl's ``reset_parameters``. Nothing
        happens while lazy leaves have no shape.
        """
        params, buffers = self._live()
        if any(map(is_lazy, params.values())):
            return
        own = {**params, **buffers}
        n_slots = max((s.n_slots for s in self._sharing.values()), default=1)
        rows = {k: self._rows_of(leaf, n_slots).detach() for k, leaf in own.items()}
        fresh = drawing.redraw(self._build_one, self._empty_net, self._layout, rows)
        with torch.no_grad():
            for name, leaf in own.items():
                leaf.copy_(fresh[name][0] if self.share_params is True else fresh[name][: len(leaf)])

    def _rows_of(self, leaf: Tensor, n_slots: int) -> Tensor:
        """A leaf as ``[n_slots, *leaf]``; one of fewer slots has its last row again and again."""
        if self.share_params is True:
            return leaf[None]
        return leaf[torch.arange(n_slots).clamp(max=len(leaf) - 1)]

    # --- lazy leaves and checkpoints -------------------------------------------------------------------

    def _materialise(self, x: Tensor) -> None:
        """Give the lazy leaves shapes and numbers, in place, so that an optimizer keeps them."""
        params, buffers = self._live()
        leaves = {**params, **buffers}
        lazy = [name for name, leaf in leaves.items() if is_lazy(leaf)]
        seen = self._pre_forward_check(x)
        one_input = (seen if self.centralized else seen.select(self.agent_dim % x.ndim, 0)).detach()
        shared = self.share_params is True
        n_slots = max(s.n_slots for s in self._sharing.values())

        def row(name: str, slot: int) -> Tensor:
            leaf = leaves[name]
            return leaf if is_lazy(leaf) else (leaf if shared else leaf[min(slot, len(leaf) - 1)]).detach().clone()

        try:
            slots = drawing.materialise(self._empty_net, self._layout, row, lazy, n_slots, one_input)
        finally:
            self._place(leaves)
        for name in lazy:
            leaf: Any = leaves[name]
            rows = [slot[name] for slot in slots]
            value = rows[0] if shared else torch.stack(rows[: self._sharing[name].n_slots])
            leaf.materialize(value.shape, device=leaf.device, dtype=leaf.dtype)
            with torch.no_grad():
                leaf.copy_(value)
        self.initialized = True
        self._place(leaves)
        if self.use_td_params:
            td = self.params._param_td.unlock_()
            td.batch_size = self._batch_size()
            td.lock_()
        self._prepare()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if not self.initialized:
            self._materialise_as(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _materialise_as(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give lazy leaves the shapes that a checkpoint has."""
        params, buffers = self._live()
        where = prefix + ("params." if self.use_td_params else "_empty_net.")
        for name, leaf in {**params, **buffers}.items():
            value = state_dict.get(where + name)
            if is_lazy(leaf) and value is not None and not is_lazy(value):
                cast(Any, leaf).materialize(value.shape, device=leaf.device, dtype=leaf.dtype)


def _forget_template_buffers(module: Any, incompatible: Any) -> None:
    """Not unexpected in a checkpoint: torchrl saves meta buffers of its template, batch norms ask for a counter."""
    ends = tuple(f"_empty_net.{name}" for name in module._layout.buffers if module.use_td_params)
    unexpected: list[str] = incompatible.unexpected_keys
    unexpected[:] = [key for key in unexpected if not (ends and key.endswith(ends))]


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy without the parameters and buffers that the module holds."""
    computed = plain_tensors(module, hooked=True).values()
    lost: dict[int, Any] = {id(t): None for t in (*module.parameters(), *module.buffers(), *computed)}
    return copy.deepcopy(module, lost)


def _holds(root: nn.Module, name: str) -> bool:
    """Whether a module has a tensor under a dotted name, registered or not."""
    path, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(root.get_submodule(path), attribute), Tensor)
    except AttributeError:
        return False


def _at(root: nn.Module, path: tuple[str, ...], attribute: str) -> Any:
    """A leaf of the template; ``TensorDict.to_module`` leaves plain tensors outside of ``_parameters``."""
    for part in path:
        root = root._modules[part]  # pyright: ignore
    own = root.__dict__
    leaf = own["_parameters"].get(attribute)
    if leaf is None:
        leaf = getattr(root, attribute)
        if not isinstance(leaf, Tensor):
            raise StructureError(f"_empty_net: expected a tensor as {'.'.join((*path, attribute))!r}, got {leaf!r}")
    return leaf


def _from_tensordict(td: Any, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The leaves of a TensorDict that somebody put in the place of the parameters."""
    return (
        {name: td.get(tuple(name.split("."))) for name in layout.params},
        {name: td.get(tuple(name.split("."))) for name in layout.buffers},
    )
