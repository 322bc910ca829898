"""Agents that come together in a slot: rows ``[R, *leaf]`` merged to ``[S, *leaf]``, all slots at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from functional_marl._arguments import shown
from functional_marl._errors import SharingError, StructureError
from functional_marl._sharing import Sharing
from functional_marl._slots import index_tensor

__all__ = ["Merge", "check_merge", "merged_rows", "merged_state"]

Merge = Literal["error", "mean", "first"]


def check_merge(merge: Any) -> None:
    """Raise SharingError for a word that is none of :data:`Merge`."""
    if not isinstance(merge, str) or merge not in ("error", "mean", "first"):
        raise SharingError(f"merge: expected 'error', 'mean' or 'first', got {shown(merge)}")


def merged_rows(leaf: Tensor, source: Sequence[int], sharing: Sharing, merge: Merge, name: str) -> Tensor:
    """``[R, *leaf] -> [S, *leaf]``: agent ``i`` comes with row ``source[i]``, and agents of a slot are merged."""
    if unused := sharing.unused():
        raise SharingError(
            f"{name}: no agent is in the slots {list(unused)} of {sharing}, so nothing fills them; use its .canonical()"
        )
    if leaf.layout is not torch.strided:
        raise StructureError(f"{name}: expected a dense tensor in params, got {leaf.layout}; use its .to_dense()")
    leaf = leaf.detach()
    if sharing.is_independent:
        return leaf.index_select(0, torch.tensor(source, device=leaf.device))
    rows = [[source[agent] for agent in sharing.members(slot)] for slot in range(sharing.n_slots)]
    if merge == "mean" and any(len(set(own)) > 1 for own in rows):
        # of one row taken several times the mean is that row
        return _means(leaf, *_batches([own if len(set(own)) > 1 else own[:1] for own in rows]))
    if merge == "error":
        _check_agree(leaf, source, sharing, name)
    return leaf.index_select(0, torch.tensor([own[0] for own in rows], device=leaf.device))


_COMPARED = 1 << 20  # numbers at once


def _check_agree(leaf: Tensor, source: Sequence[int], sharing: Sharing, name: str) -> None:
    """Raise where two agents of a slot come with different rows."""
    pairs: dict[tuple[int, int], int] = {}  # a slot's first row and another -> the agent who brings that
    for slot in range(sharing.n_slots):
        agents = sharing.members(slot)
        for agent in agents[1:]:
            if source[agent] != source[agents[0]]:
                pairs.setdefault((source[agents[0]], source[agent]), agent)
    size = leaf.shape[1:].numel()
    step = max(1, _COMPARED // max(1, size))
    for start in range(0, len(pairs), step):
        some = list(pairs.items())[start : start + step]
        a, b = (
            leaf.index_select(0, torch.tensor([pair[side] for pair, _ in some], device=leaf.device)) for side in (0, 1)
        )
        same = ((a == b) | (a.isnan() & b.isnan())).reshape(len(some), size).all(1)
        try:
            agree = same.tolist()
        except RuntimeError:  # under vmap, or on the meta device
            raise SharingError(
                f'{name}: merge="error" compares the numbers of agents, which these tensors do not show; '
                'give merge="mean" or merge="first", or take the members of a population one by one'
            ) from None
        if not all(agree):
            k = agree.index(False)
            agent = some[k][1]
            agents = list(sharing.members(sharing[agent]))
            gap = float((a[k].to(torch.complex128) - b[k].to(torch.complex128)).abs().max())
            raise SharingError(
                f"{name}: agents {agents} are to share slot {sharing[agent]}, but agent {agent} differs from "
                f'agent {agents[0]} by up to {gap:.3g}; give merge="mean" or merge="first"'
            )


# --- many slots at once ----------------------------------------------------------------------------------

# Slots of equally many rows are merged together, for a loop over slots takes longer than the work: for each such
# number the rows, slot by slot, and the place of every slot in what that gives.
_Batches = tuple[tuple[tuple[int, tuple[int, ...]], ...], tuple[int, ...]]


def _batches(rows: Sequence[Sequence[int]]) -> _Batches:
    """How to merge ``rows[s]`` into slot ``s``."""
    sizes: dict[int, list[int]] = {}
    for slot, own in enumerate(rows):
        sizes.setdefault(len(own), []).append(slot)
    order = [slot for slots in sizes.values() for slot in slots]
    batches = tuple((size, tuple(row for slot in slots for row in rows[slot])) for size, slots in sizes.items())
    return batches, tuple(sorted(range(len(order)), key=order.__getitem__))


def _means(leaf: Tensor, batches: Sequence[tuple[int, tuple[int, ...]]], places: tuple[int, ...]) -> Tensor:
    """``[R, *leaf] -> [S, *leaf]``, the means of rows."""
    pieces: list[Tensor] = []
    for size, rows in batches:
        piece = leaf.index_select(0, index_tensor(rows, leaf.device))
        pieces.append(piece if size == 1 else _mean(piece.unflatten(0, (len(rows) // size, size))))
    if len(pieces) == 1:  # then slots are in order
        return pieces[0]
    return torch.cat(pieces).index_select(0, index_tensor(places, leaf.device))


def _mean(rows: Tensor) -> Tensor:
    """``[k, m, *leaf] -> [k, *leaf]``: the mean of floats; of integers (counters) the largest."""
    if not (rows.is_floating_point() or rows.is_complex()):
        return rows.amax(1)
    # Agents that agree keep their value to the bit: the mean of three equal numbers may be another.
    first = rows[:, 0]
    return torch.where((rows == first.unsqueeze(1)).all(1), first, rows.mean(1))


def _state_batches(sharing: Sharing) -> _Batches:
    members: list[list[int]] = [[] for _ in range(sharing.n_slots)]
    for agent, slot in enumerate(sharing.slots):
        members[slot].append(agent)
    return _batches([own or [sharing.n_agents + slot] for slot, own in enumerate(members)])


_kept_state_batches = lru_cache(maxsize=1024)(_state_batches)  # dynamo warns of a cache and looks through it


def merged_state(after: Tensor, before: Tensor, sharing: Sharing) -> Tensor:
    """Every agent's buffer ``[n, *leaf]`` to one a slot ``[S, *leaf]``; unused slots keep what they had."""
    if sharing.is_independent:
        return after
    if sharing.is_shared:
        return _mean(after.unsqueeze(0))
    tracing = torch.compiler.is_dynamo_compiling()
    batches, places = _state_batches(sharing) if tracing else _kept_state_batches(sharing)
    rows = after if not sharing.unused() else torch.cat((after, before))
    return _means(rows, batches, places)
