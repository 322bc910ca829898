"""The commonest mapped call with nothing in its way: one tensor in and one out, no buffers, no key.

At 3 agents, width 64 and batch 1 the operations of the module take 60 us under vmap, and each thing beside
them 2 to 4 us: five times what it takes in a loop of its own, where all it needs lies in the caches. The general
way adds 40 us, this one 14. It answers None to any call that it was not made for, and the general way then
answers or raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._lowering import Plan, gather_slots
from functional_marl._module.stateless_module import LeafPlace, StatelessModule
from functional_marl._network import Network
from functional_marl._randomness.rng_state import RngStates, rng_states, same_states, set_rng_states
from functional_marl._sharing import Sharing
from functional_marl._strategies.vmap import (
    FALLBACK_ERRORS,
    activation_bytes,
    in_chunks,
    quiet,
    widest_leaf,
)
from functional_marl._strategies.vmap_faults import Watch
from functional_marl._torch_compat import Primitives, any_autocast, backward_hooked

__all__ = ["apply_directly", "is_compiled"]


def is_compiled() -> bool:
    """Whether dynamo traces this call, or, after a break in the graph, the calls inside it."""
    return torch.compiler.is_dynamo_compiling() or callable(_torch_compat.dynamo_callback())


def apply_directly(net: Network, params: dict[str, Any], x: Tensor, train: bool) -> Tensor | None:
    """The output with the agents in its place, or None."""
    primitives = _torch_compat.primitives
    if primitives is None or torch.compiler.is_compiling() or callable(_torch_compat.dynamo_callback()):
        return None
    if _torch_compat.dispatch_modes():  # fake tensors and others that watch operations
        return None
    kept = net.__dict__  # as functools.cached_property keeps what a frozen value is asked for again
    if "_mapped" not in kept:
        primitives.load()
        kept["_mapped"] = (_Mapped.of(net, False), _Mapped.of(net, True))
    mapped: _Mapped | None = kept["_mapped"][train]
    return None if mapped is None else mapped(primitives, params, x)


class _Mapped:
    """A network in one of its modes."""

    @classmethod
    def of(cls, net: Network, train: bool) -> _Mapped | None:
        """None for a network that has another way, or takes more than one tensor."""
        template, out = net.module_spec, net.out_agent_dim
        way = net.strategy == "vmap" or (net.strategy == "auto" and not isinstance(net.plans[train], Plan))
        simple = isinstance(net.agent_dim, int) and (out is None or isinstance(out, int)) and not net.centralized
        return cls(net, train) if way and simple and template.stateless.needs_only_params() else None

    def __init__(self, net: Network, train: bool) -> None:
        # not the network itself, which holds this
        self.module_spec, self.train, self.n_agents, self.randomness = (
            net.module_spec,
            train,
            net.n_agents,
            net.randomness,
        )
        self.widest, self.shared = widest_leaf(net), all(sharing.is_shared for sharing in net.sharing.values())
        self.count, self.dim, self.out_dim = len(net.param_shapes), cast(int, net.agent_dim), net.out_agent_dim
        first = {name: name for name in net.param_shapes} | net.module_spec.aliases
        self.names = frozenset(first)
        self.leaves: list[tuple[str, tuple[int, ...], Sharing, str]] = []  # as they stand in the skeleton
        for name in net.module_spec.stateless.module(train).names:
            if name in first:
                sharing = net.sharing[first[name]]
                kind = "own" if sharing.is_independent else "whole" if sharing.is_shared else "gathered"
                self.leaves.append((first[name], net.param_shapes[first[name]], sharing, kind))
        # What decides under vmap what a module does: kinds that were watched, and for which nothing was drawn.
        self.watched: set[tuple[torch.Size, torch.dtype, bool]] = set()
        self.drawless: set[tuple[torch.Size, torch.dtype, bool]] = set()
        self.off = False

    def __call__(self, primitives: Primitives, params: Mapping[str, Any], x: Tensor) -> Tensor | None:
        template, dim = self.module_spec, self.dim
        skeleton = template.stateless.module(self.train)
        places = skeleton.leaf_places(self.names)
        if self.off or template.no_vmap[self.train] or not skeleton.writes_checked or backward_hooked():
            return None
        if len(params) != self.count or any_autocast():
            return None
        if not -x.dim() <= dim < x.dim() or x.shape[dim] != self.n_agents:
            return None
        if in_chunks(activation_bytes(x, self.widest)):
            return None
        before: RngStates | None = None
        watch = False
        kind = x.shape, x.dtype, torch.is_grad_enabled()
        if kind not in self.drawless:  # 4 us, once a kind
            before = rng_states((x, *params.values()), needed=False)
            watch = kind not in self.watched
        try:
            out = self._run(primitives, skeleton, places, params, x, dim % x.dim(), watch)
        except FALLBACK_ERRORS:  # the general way raises it again, or gives way
            out = None
        if before is not None:
            if out is None:
                set_rng_states(before)
                return None
            if len(self.watched) > 1000:
                self.watched.clear()
                self.drawless.clear()
            self.watched.add(kind)
            if same_states(before, rng_states((x, *params.values()), needed=False)):
                self.drawless.add(kind)
        return out

    def _run(
        self,
        primitives: Primitives,
        skeleton: StatelessModule,
        places: list[LeafPlace],
        params: Mapping[str, Any],
        x: Tensor,
        dim: int,
        watch: bool,
    ) -> Tensor | None:
        n, add, meta = self.n_agents, primitives.add, x.is_meta
        with quiet:
            level = primitives.enter(n, self.randomness)
            skeleton.in_use = True
            try:
                for (name, shape, sharing, kind), (place, attribute) in zip(self.leaves, places, strict=True):
                    leaf = params.get(name)
                    if not isinstance(leaf, Tensor) or leaf.shape != shape or leaf.is_meta is not meta:
                        return None
                    if kind == "own":
                        place[attribute] = add(leaf, 0, level)
                    else:
                        place[attribute] = leaf[0] if kind == "whole" else add(gather_slots(leaf, sharing), 0, level)
                # a clone, for the module may write into its input
                own = add(x.clone(), dim, level)
                if watch:
                    with Watch():
                        out = skeleton.module(own)
                else:
                    out = skeleton.module(own)
                if not isinstance(out, Tensor) or primitives.level(out) != level:
                    self.off = True  # from now on the general way, at once
                    return None
                to = dim if self.out_dim is None else cast(int, self.out_dim)
                if not -out.dim() - 1 <= to <= out.dim():
                    return None
                out = primitives.remove(out, level, n, to % (out.dim() + 1))
                return out.contiguous() if self.shared else out  # as if agents were rows of its batch
            finally:
                skeleton.restore()
                primitives.leave()
