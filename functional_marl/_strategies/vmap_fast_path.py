"""The fast path of vmap: one tensor in and one out, no buffers, no key.

At 3 agents, width 64 and batch 1 the operations of the module take 60 us under vmap. The general path adds 40 us to
them, this one 14. (Each step between the operations takes 2 to 4 us. Timed alone it takes a fifth of that, because its
data are then in the processor's caches.) A call that does not fit gets None; the general path then evaluates it, or
raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._gather_slots import gather_slots
from functional_marl._module.stateless_module import LeafPlace, StatelessModule
from functional_marl._network_settings import NetworkSettings
from functional_marl._randomness.rng_state import RngStates, rng_states, same_states, set_rng_states
from functional_marl._sharing import Sharing
from functional_marl._strategies.base import FALLBACK_ERRORS, remember
from functional_marl._strategies.vmap_chunks import activation_bytes, in_chunks, widest_leaf
from functional_marl._strategies.vmap_faults import Watch
from functional_marl._strategies.vmap_map import quiet
from functional_marl._torch_compat import Primitives, any_autocast, has_global_backward_hooks

__all__ = ["VmapFastPath"]


class VmapFastPath:
    """The mapped call of a network in one mode, with all decisions taken that depend on the network alone."""

    @classmethod
    def of(cls, net: NetworkSettings, train: bool, failed: Callable[[], bool]) -> VmapFastPath | None:
        """None for a centralized network, for agent axes that are not ints, or if torch lacks what vmap calls.

        ``failed()`` says whether vmap has failed on the network.
        """
        out = net.out_agent_dim
        simple = isinstance(net.agent_dim, int) and (out is None or isinstance(out, int)) and not net.centralized
        return cls(net, train, failed) if simple and _torch_compat.primitives is not None else None

    def __init__(self, net: NetworkSettings, train: bool, failed: Callable[[], bool]) -> None:
        self.net, self.train, self.failed = net, train, failed
        self.dim, self.out_dim = cast(int, net.agent_dim), cast("int | None", net.out_agent_dim)
        self.leaves: list[tuple[str, tuple[int, ...], Sharing, str]] | None = None  # made at the first call
        # A kind of call is a shape, a dtype, and whether gradients are recorded. The kinds that were checked for
        # operations that vmap computes wrongly, and those of them that sampled nothing.
        self.watched: set[tuple[torch.Size, torch.dtype, bool]] = set()
        self.not_random: set[tuple[torch.Size, torch.dtype, bool]] = set()
        self.off = False

    def _make(self) -> None:
        """Decide how each leaf is mapped, in the order of the stateless module. This makes its first copy."""
        net = self.net
        if not net.module_spec.stateless.needs_only_params():
            self.off = True
            return
        assert _torch_compat.primitives is not None
        _torch_compat.primitives.load()
        first = {name: name for name in net.param_shapes} | net.module_spec.aliases
        leaves: list[tuple[str, tuple[int, ...], Sharing, str]] = []
        for name in net.module_spec.stateless.module(self.train).names:
            if name in first:
                sharing = net.sharing[first[name]]
                kind = "own" if sharing.is_independent else "whole" if sharing.is_shared else "gathered"
                leaves.append((first[name], net.param_shapes[first[name]], sharing, kind))
        self.names, self.count = frozenset(first), len(net.param_shapes)
        self.widest, self.shared = widest_leaf(net), net.all_shared
        self.leaves = leaves

    def __call__(self, params: Mapping[str, Any], x: Tensor) -> Tensor | None:
        """The output with the agents in its place, or None."""
        primitives = _torch_compat.primitives
        if self.off or primitives is None or torch.compiler.is_compiling() or callable(_torch_compat.dynamo_callback()):
            return None
        if _torch_compat.dispatch_modes():  # fake tensors and others that watch operations
            return None
        if self.leaves is None:
            self._make()
            if self.off:
                return None
        net, dim = self.net, self.dim
        stateless = net.module_spec.stateless.module(self.train)
        places = stateless.leaf_places(self.names)
        if self.failed() or not stateless.writes_checked or has_global_backward_hooks():
            return None
        if len(params) != self.count or any_autocast():
            return None
        if not -x.dim() <= dim < x.dim() or x.shape[dim] != net.n_agents:
            return None
        if in_chunks(activation_bytes(x, self.widest)):
            return None
        before: RngStates | None = None
        watch = False
        kind = x.shape, x.dtype, torch.is_grad_enabled()
        if kind not in self.not_random:  # 4 us, once a kind
            before = rng_states((x, *params.values()), needed=False)
            watch = kind not in self.watched
        try:
            out = self._run(primitives, stateless, places, params, x, dim % x.dim(), watch)
        except FALLBACK_ERRORS:  # the general path raises it again, or falls back
            out = None
        if before is not None:
            if out is None:
                set_rng_states(before)
                return None
            remember(self.watched, kind)
            if same_states(before, rng_states((x, *params.values()), needed=False)):
                remember(self.not_random, kind)
        return out

    def _run(
        self,
        primitives: Primitives,
        stateless: StatelessModule,
        places: list[LeafPlace],
        params: Mapping[str, Any],
        x: Tensor,
        dim: int,
        watch: bool,
    ) -> Tensor | None:
        n, add, meta = self.net.n_agents, primitives.add, x.is_meta
        with quiet:
            level = primitives.enter(n, self.net.randomness)
            stateless.in_use = True
            try:
                for (name, shape, sharing, kind), (place, attribute) in zip(self.leaves or (), places, strict=True):
                    leaf = params.get(name)
                    if not isinstance(leaf, Tensor) or leaf.shape != shape or leaf.is_meta is not meta:
                        return None
                    if kind == "own":
                        place[attribute] = add(leaf, 0, level)
                    else:
                        place[attribute] = leaf[0] if kind == "whole" else add(gather_slots(leaf, sharing), 0, level)
                # a clone, because the module may write into its input
                own = add(x.clone(), dim, level)
                if watch:
                    with Watch():
                        out = stateless.module(own)
                else:
                    out = stateless.module(own)
                if not isinstance(out, Tensor) or primitives.level(out) != level:
                    self.off = True  # from now on the general path, at once
                    return None
                to = dim if self.out_dim is None else self.out_dim
                if not -out.dim() - 1 <= to <= out.dim():
                    return None
                out = primitives.remove(out, level, n, to % (out.dim() + 1))
                return out.contiguous() if self.shared else out  # the layout of one batch with the agents in it
            finally:
                stateless.restore()
                primitives.leave()
