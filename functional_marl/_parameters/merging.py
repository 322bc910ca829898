"""Agents of one slot merged into it: rows ``[R, *leaf]`` to slots ``[S, *leaf]``, all slots at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from functional_marl._check_arguments import as_choice
from functional_marl._errors import SharingError, StructureError
from functional_marl._gather_slots import index_tensor
from functional_marl._sharing import Sharing

__all__ = ["Merge", "check_merge", "merged_rows", "merged_state"]

Merge = Literal["error", "mean", "first"]


def check_merge(merge: Any) -> None:
    """Raise SharingError unless ``merge`` is one of the words of :data:`Merge`."""
    as_choice(merge, "merge", get_args(Merge), error=SharingError)


def merged_rows(leaf: Tensor, source: Sequence[int], sharing: Sharing, merge: Merge, name: str) -> Tensor:
    """``[R, *leaf] -> [S, *leaf]``: agent ``i`` has row ``source[i]``, and the agents of a slot are merged.

    Raises:
        SharingError: a slot without agents; agents of a slot that differ under ``merge="error"``.
        StructureError: a sparse leaf.
    """
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
        # The mean of one row, taken several times, is that row.
        return _means(leaf, *_batches([own if len(set(own)) > 1 else own[:1] for own in rows]))
    if merge == "error":
        _check_agree(leaf, source, sharing, name)
    return leaf.index_select(0, torch.tensor([own[0] for own in rows], device=leaf.device))


_COMPARED = 1 << 20  # how many numbers are compared at once


def _check_agree(leaf: Tensor, source: Sequence[int], sharing: Sharing, name: str) -> None:
    """Raise if two agents of a slot have different rows."""
    pairs: dict[tuple[int, int], int] = {}  # (a slot's first row, another of its rows) -> an agent with the other row
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
                f'{name}: merge="error" compares the numbers of agents, and these tensors have none that can be read; '
                'give merge="mean" or merge="first", or loop over a population instead of vmap'
            ) from None
        if not all(agree):
            k = agree.index(False)
            agent = some[k][1]
            agents = list(sharing.members(sharing[agent]))
            gap = float((a[k].to(torch.complex128) - b[k].to(torch.complex128)).abs().max())
            raise SharingError(
                f"{name}: agents {agents} should share slot {sharing[agent]}, but agent {agent} differs from "
                f'agent {agents[0]} by up to {gap:.3g}; give merge="mean" or merge="first"'
            )


# --- many slots at once ----------------------------------------------------------------------------------

# Slots with the same number of rows are merged in one operation: a loop over slots would take longer than the merging.
# For each number of rows: the rows, slot after slot. And for each slot: its place in the concatenated results.
_Batches = tuple[tuple[tuple[int, tuple[int, ...]], ...], tuple[int, ...]]


def _batches(rows: Sequence[Sequence[int]]) -> _Batches:
    """The batches that merge ``rows[s]`` into slot ``s``."""
    sizes: dict[int, list[int]] = {}
    for slot, own in enumerate(rows):
        sizes.setdefault(len(own), []).append(slot)
    order = [slot for slots in sizes.values() for slot in slots]
    batches = tuple((size, tuple(row for slot in slots for row in rows[slot])) for size, slots in sizes.items())
    return batches, tuple(sorted(range(len(order)), key=order.__getitem__))


def _means(leaf: Tensor, batches: Sequence[tuple[int, tuple[int, ...]]], places: tuple[int, ...]) -> Tensor:
    """``[R, *leaf] -> [S, *leaf]``: the mean of each slot's rows."""
    pieces: list[Tensor] = []
    for size, rows in batches:
        piece = leaf.index_select(0, index_tensor(rows, leaf.device))
        pieces.append(piece if size == 1 else _mean(piece.unflatten(0, (len(rows) // size, size))))
    if len(pieces) == 1:  # one batch: its slots are in order
        return pieces[0]
    return torch.cat(pieces).index_select(0, index_tensor(places, leaf.device))


def _mean(rows: Tensor) -> Tensor:
    """``[k, m, *leaf] -> [k, *leaf]``: the mean of floats, the largest of integers (they are counters)."""
    if not (rows.is_floating_point() or rows.is_complex()):
        return rows.amax(1)
    # Agents that are equal keep their value to the bit: the computed mean of three equal numbers may differ from it.
    first = rows[:, 0]
    return torch.where((rows == first.unsqueeze(1)).all(1), first, rows.mean(1))


def _state_batches(sharing: Sharing) -> _Batches:
    members: list[list[int]] = [[] for _ in range(sharing.n_slots)]
    for agent, slot in enumerate(sharing.slots):
        members[slot].append(agent)
    return _batches([own or [sharing.n_agents + slot] for slot, own in enumerate(members)])


_cached_state_batches = lru_cache(maxsize=1024)(_state_batches)  # not in a trace: dynamo ignores a cache and warns


def merged_state(after: Tensor, before: Tensor, sharing: Sharing) -> Tensor:
    """The buffer of every agent ``[n, *leaf]`` merged to slots ``[S, *leaf]``; unused slots stay as ``before``."""
    if sharing.is_independent:
        return after
    if sharing.is_shared:
        return _mean(after.unsqueeze(0))
    tracing = torch.compiler.is_dynamo_compiling()
    batches, places = _state_batches(sharing) if tracing else _cached_state_batches(sharing)
    rows = after if not sharing.unused() else torch.cat((after, before))
    return _means(rows, batches, places)
