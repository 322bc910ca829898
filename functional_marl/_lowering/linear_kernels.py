"""Linear layers and activations on stacked weights: the batched matrix products of the plan.

``h`` is ``[n, B, F]``, the agents in front. All layers of one call have the same slot map. So agents are sorted by
slot once a call, not once a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from functional_marl._gather_slots import gather_slots, index_tensor
from functional_marl._sharing import Sharing

__all__ = [
    "Affine",
    "chunks_of",
    "forced_chunk",
    "one",
    "product",
    "run_dense",
    "run_dense_whole",
    "run_shared",
    "traced",
]

# --- size rules ----------------------------------------------------------------------------------------
# Measured on one thread, 16 -> H -> H -> 4; a case is written as (agents, H, batch). benchmarks/ measures them again.

# From this batch size on, products are feature-major: baddbmm(b, W, h) with h [n, F, B]. Speed over batch-major
# products: forward 1.09x at 3,64,16, 1.05x at 64,64,16, 1.00x at 3,512,512. Their weight gradients are contiguous:
# forward and backward 1.28x at 64,64,32 and at 512,64,256. Small batches are slower: forward 0.3x at 64,64,1.
FEATURE_MAJOR_FROM = 16
# Activations above 16 MB are computed in chunks of agents of about 1 MB: new memory pages cost more than the products.
# Speed over torchrl's MultiAgentMLP: forward at 512,64,256 2.4x in chunks, 1.7x whole; with backward 2.5x and 1.4x.
# Small activations are slower in chunks: 64,64,32 1.4x in chunks, 1.5x whole.
CHUNK_ABOVE = 16 << 20
CHUNK = 1 << 20
# Chunks of so many bytes, however small the activations are; None: by the two sizes above. One read takes 0.03 us.
_forced_chunk: ContextVar[int | None] = ContextVar("forced_chunk", default=None)
# Slots of different sizes: up to this many agents, copying weights to every agent is fastest; else a loop over slots.
GATHER_UP_TO = 8


@contextmanager
def chunks_of(size: int) -> Generator[None]:
    """Inside, in this thread or task only, the agents are computed in chunks of ``size`` bytes, at least one a chunk.

    It changes eager calls of the plan, except those of its fast path. A trace knows no chunks.
    """
    if size < 1:
        raise ValueError(f"chunks_of: expected 1 byte or more, got {size}")
    token = _forced_chunk.set(size)
    try:
        yield
    finally:
        _forced_chunk.reset(token)


def forced_chunk() -> int | None:
    """The size that :func:`chunks_of` sets here, or None."""
    return _forced_chunk.get()


@dataclass(frozen=True)
class Affine:
    """One linear layer by the names of its leaves, their slot map, and the activations after it."""

    weight: str  # [S, out, in]
    bias: str | None  # [S, out]
    sharing: Sharing
    activations: tuple[Callable[[Tensor], Tensor], ...] = ()


# --- agents sorted by slot ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clusters:
    """Agents sorted by slot."""

    order: tuple[int, ...]  # agents, slot by slot
    back: tuple[int, ...]  # the inverse of order
    used: tuple[int, ...]  # slots that have agents
    sizes: tuple[int, ...]  # how many agents each used slot has


def _clusters(sharing: Sharing) -> _Clusters:
    members: dict[int, list[int]] = {slot: [] for slot in sorted(set(sharing.slots))}
    for agent, slot in enumerate(sharing.slots):
        members[slot].append(agent)
    order = tuple(agent for agents in members.values() for agent in agents)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return _Clusters(order, back, tuple(members), tuple(len(agents) for agents in members.values()))


_kept_clusters = lru_cache(maxsize=1024)(_clusters)  # not under dynamo: it ignores the cache and warns


# --- evaluation ----------------------------------------------------------------------------------------


def run_dense(layers: Sequence[Affine], params: Mapping[str, Tensor], h: Tensor, sharing: Sharing) -> Tensor:
    """``[n, B, F] -> [n, B, F_out]``: agent ``i`` uses the weights of slot ``sharing[i]``."""
    weights = [(params[a.weight], None if a.bias is None else params[a.bias], a.activations) for a in layers]
    if sharing.is_independent:
        return _stacked(weights, h)
    n, batch = h.shape[:2]
    groups = _clusters(sharing) if torch.compiler.is_dynamo_compiling() else _kept_clusters(sharing)
    even = len(set(groups.sizes)) == 1
    if not even and n <= GATHER_UP_TO:
        return _stacked([(gather_slots(w, sharing), _gathered(b, sharing), acts) for w, b, acts in weights], h)
    if len(groups.used) < sharing.n_slots:
        rows = index_tensor(groups.used, h.device)
        weights = [(w.index_select(0, rows), None if b is None else b.index_select(0, rows), a) for w, b, a in weights]
    in_order = groups.order == tuple(range(n))
    h = h if in_order else h.index_select(0, index_tensor(groups.order, h.device))
    if even:
        # [S * m, B, F] -> [S, m * B, F]
        slots = len(groups.used)
        h = _stacked(weights, h.reshape(slots, n // slots * batch, h.shape[2]))
        h = h.reshape(n, batch, h.shape[2])
    else:
        # unbind, not an index a slot: the backward of an index adds zeros of the full size, once a slot
        rows = [(w.unbind(0), [None] * w.shape[0] if b is None else b.unbind(0), acts) for w, b, acts in weights]
        pieces = h.split(list(groups.sizes))
        h = torch.cat([_slot([(w[s], b[s], acts) for w, b, acts in rows], piece) for s, piece in enumerate(pieces)])
    return h if in_order else h.index_select(0, index_tensor(groups.back, h.device))


def run_shared(layers: Sequence[Affine], params: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """``[..., F] -> [..., F_out]`` with layers that all agents share: leaves ``[1, *leaf]``."""
    weights = [(params[a.weight], None if a.bias is None else params[a.bias], a.activations) for a in layers]
    return one(weights, h)


def run_dense_whole(layers: Sequence[Affine], params: Mapping[str, Tensor], h: Tensor, sharing: Sharing) -> Tensor:
    """``[B, F] -> [n, B, F_out]`` for one input that all agents see: computed once a slot, then gathered."""
    first = params[layers[0].weight]
    out = _stacked(
        [(params[a.weight], None if a.bias is None else params[a.bias], a.activations) for a in layers],
        h.expand(first.shape[0], *h.shape),
    )
    return out if sharing.is_independent else gather_slots(out, sharing)


_Weights = Sequence[tuple[Tensor, Tensor | None, Sequence[Callable[[Tensor], Tensor]]]]


def _gathered(bias: Tensor | None, sharing: Sharing) -> Tensor | None:
    return None if bias is None else gather_slots(bias, sharing)


def one(weights: _Weights, h: Tensor) -> Tensor:
    """``[..., F] -> [..., F_out]`` with one network's weights ``[1, out, in]``. The output is contiguous.

    All leading axes become one axis of rows. ``F.linear`` over three axes takes 1.3 to 1.9 times as long, forward and
    backward.
    """
    lead, features = h.shape[:-1], h.shape[-1]
    rows = math.prod(lead)
    if torch.compiler.is_dynamo_compiling() or isinstance(rows, torch.SymInt) or rows >= FEATURE_MAJOR_FROM:
        h = _rows([(w.squeeze(0), b, acts) for w, b, acts in weights], h.reshape(rows, features))
    else:  # one view fewer in each layer
        h = product(weights, h.reshape(1, rows, features))
    return h.reshape(*lead, h.shape[-1])


def _rows(weights: _Weights, h: Tensor) -> Tensor:
    """``[R, F] -> [R, F_out]`` with one network's weights ``[out, in]`` and biases ``[out]`` or ``[1, out]``."""
    fused = not torch.compiler.is_dynamo_compiling()  # inductor fuses mm and add, but nothing with addmm
    for weight, bias, activations in weights:
        if bias is None:
            h = torch.mm(h, weight.t())
        else:  # the gradients of these products are contiguous
            h = torch.addmm(bias, h, weight.t()) if fused else torch.mm(h, weight.t()) + bias
        for act in activations:
            h = act(h)
    return h


def _stacked(weights: _Weights, h: Tensor) -> Tensor:
    """``[A, B, F] -> [A, B, F_out]`` with weights ``[A, out, in]``, by the size rules."""
    agents, batch = h.shape[:2]
    if torch.compiler.is_dynamo_compiling() or isinstance(batch, torch.SymInt):
        return traced(weights, h)
    width = max(weight.shape[1] for weight, _, _ in weights)
    size = batch * width * h.element_size()
    forced = _forced_chunk.get()
    if agents * size > (CHUNK_ABOVE if forced is None else 0) and agents > 1:
        chunk = max(1, (CHUNK if forced is None else forced) // size)
        # split, because its backward writes each gradient once
        rows = [(w.split(chunk), [None] * agents if b is None else b.split(chunk), acts) for w, b, acts in weights]
        pieces = h.split(chunk)
        return torch.cat([product([(w[c], b[c], acts) for w, b, acts in rows], x) for c, x in enumerate(pieces)])
    return product(weights, h)


def product(weights: _Weights, h: Tensor) -> Tensor:
    """``[A, B, F] -> [A, B, F_out]`` in one piece."""
    if h.shape[1] >= FEATURE_MAJOR_FROM:
        h = h.mT  # [A, F, B]
        for weight, bias, activations in weights:
            h = torch.bmm(weight, h) if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, h)
            for act in activations:
                h = act(h)
        return h.mT
    for weight, bias, activations in weights:
        if bias is None:
            h = torch.bmm(h, weight.mT)
        else:  # [1, out] broadcasts without a view, and a view costs 1 us
            h = torch.baddbmm(bias if bias.shape[0] == 1 else bias.unsqueeze(1), h, weight.mT)
        for act in activations:
            h = act(h)
    return h


def traced(weights: _Weights, h: Tensor) -> Tensor:
    """:func:`product` in a trace: one layout for all sizes, and no baddbmm, with which inductor fuses nothing."""
    h = h.mT
    for weight, bias, activations in weights:
        h = torch.bmm(weight, h) if bias is None else torch.bmm(weight, h) + bias.unsqueeze(2)
        for act in activations:
            h = act(h)
    return h.mT


def _slot(weights: _Weights, h: Tensor) -> Tensor:
    """``[m, B, F] -> [m, B, F_out]`` with one network's weights, feature-major where that is faster."""
    m, batch, features = h.shape
    h = h.reshape(m * batch, features)
    if m * batch < FEATURE_MAJOR_FROM or torch.compiler.is_dynamo_compiling():
        h = _rows(weights, h)
    else:
        h = h.t()  # [F, m * B]
        for weight, bias, activations in weights:
            h = torch.mm(weight, h) if bias is None else torch.addmm(bias.unsqueeze(1), weight, h)
            for act in activations:
                h = act(h)
        h = h.t()
    return h.reshape(m, batch, h.shape[-1])
