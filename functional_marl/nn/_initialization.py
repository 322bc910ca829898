"""Initializing every slot's leaves with torch's global generator, one slot after the other, as torchrl does.

Under the same ``torch.manual_seed`` the result is bitwise that of building the agents' modules in order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._errors import RandomnessError
from functional_marl._module.lazy import evaluate_once, is_lazy
from functional_marl._module.leaves import LeafNames, as_parameter, get_leaves, set_leaves
from functional_marl._module.record_init import record_init
from functional_marl._module.replay_init import InitTrace
from functional_marl._module.reset import call_resets, in_construction_order, mark_unfilled, unfilled_names
from functional_marl._randomness.use_generator import sampling_from_seed

__all__ = ["init_slots_in_order", "materialize_slots", "reset_slots"]

_WORTH_A_TRACE = 16  # slots; recording takes the time of about ten builds

# --- at construction -----------------------------------------------------------------------------------


def init_slots_in_order(
    build: Callable[[], nn.Module], n_slots: int, repeatable: bool
) -> tuple[nn.Module, LeafNames, dict[str, list[Tensor] | Tensor]]:
    """The first slot's module, the names of its leaves, and every leaf's rows, as building each slot in order gives.

    With ``repeatable``, ``build`` may be called more often than there are slots. Its initialization is then recorded
    and replayed for the other slots, and a leaf's rows are one tensor.
    """
    first = build()
    names = LeafNames.of(first)
    leaves = get_leaves(first, names)
    worth_it = repeatable and n_slots >= _WORTH_A_TRACE and not any(map(is_lazy, leaves.values()))
    trace = _record(build) if worth_it else None
    if trace is None:
        slots = [leaves, *(get_leaves(build(), names) for _ in range(n_slots - 1))]
        return first, names, {name: [slot[name] for slot in slots] for name in leaves}
    with torch.no_grad():
        stacked = {name: leaf.new_empty((n_slots, *leaf.shape)) for name, leaf in leaves.items()}
        slots = zip(*(leaf.unbind(0) for leaf in stacked.values()), strict=True)
        for name, row in zip(leaves, next(slots), strict=True):
            row.copy_(leaves[name])
        for rows in slots:
            trace.replay(dict(zip(leaves, rows, strict=True)), None)
    return first, names, {**stacked}


def _record(build: Callable[[], nn.Module]) -> InitTrace | None:
    def init(seed: int) -> nn.Module:
        with sampling_from_seed(seed):
            return build()

    try:
        return record_init(init)
    except RandomnessError:  # the factory seeds a generator or uses one of its own, which is allowed here
        return None


# --- again ---------------------------------------------------------------------------------------------


def reset_slots(
    build: Callable[[], nn.Module], empty_net: nn.Module, names: LeafNames, leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """New leaves ``{name: [S, *leaf]}``: by the resets of the one-agent module, else by the factory.

    A reset sees one slot's leaves and fills all slots at once, as torchrl's does: the same seed gives the same
    numbers there. If it cannot be mapped, the slots are reset one after the other.
    """
    module = copy.deepcopy(empty_net)
    marked = {k: mark_unfilled(leaf) if k in names.params else leaf.clone() for k, leaf in leaves.items()}

    def reset(slot: dict[str, Tensor]) -> dict[str, Tensor]:
        set_leaves(module, names, slot)
        call_resets(in_construction_order(module))
        return {k: leaf.detach() for k, leaf in get_leaves(module, names).items()}

    n_slots = len(next(iter(marked.values()), ()))
    fresh = _reset_mapped(reset, marked) if n_slots > 1 else None
    if fresh is None:
        slots: list[dict[str, Tensor]] = []
        for i in range(n_slots):
            own = {k: leaf[i].clone() for k, leaf in marked.items()}
            slots.append(reset({**own, **{k: as_parameter(own[k]) for k in names.params}}))
        fresh = {k: torch.stack([slot[k] for slot in slots]) for k in marked}
    unfilled = set(unfilled_names({k: fresh[k] for k in names.params}))
    by_factory = [k for k in names.params if k in unfilled or not leaves[k].is_floating_point()]
    if by_factory:
        for i in range(len(leaves[by_factory[0]])):
            built = build()
            whole = get_leaves(built, LeafNames.of(built))
            for k in by_factory:
                fresh[k][i] = leaves[k][i] if k not in whole or is_lazy(whole[k]) else whole[k].detach()
    return fresh


def _reset_mapped(
    reset: Callable[[dict[str, Tensor]], dict[str, Tensor]], marked: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The reset of all slots by ``torch.vmap``; None if that fails, or gives all slots the same random numbers."""
    leaves = {k: leaf.clone() for k, leaf in marked.items()}
    try:
        fresh = torch.vmap(reset, randomness="different")(leaves)
    except Exception:  # no batching rule, .data, a branch on numbers; the loop raises what is wrong in the reset itself
        return None
    for leaf in fresh.values():
        # random numbers from NumPy, for example, are the same for all slots
        if bool((leaf == leaf[:1]).all()) and not bool((leaf == leaf.flatten()[:1]).all()):
            return None
    return fresh


# --- at the first call of a lazy module ------------------------------------------------------------------


def materialize_slots(
    empty_net: nn.Module, names: LeafNames, first: dict[str, Any], n_slots: int, one_input: Tensor
) -> list[dict[str, Tensor]]:
    """Give the lazy leaves of every slot their shapes and first values, from one agent's input.

    The module is called once with the leaves ``first``, which turns its lazy layers into ordinary ones. The numbers
    that it then has are the first slot's. For each further slot those layers are reset.
    """
    lazy = [name for name, leaf in first.items() if is_lazy(leaf)]
    set_leaves(empty_net, names, first)
    evaluate_once(empty_net, (one_input,))
    owners = list({id(owner): owner for _, name, owner, _ in names.owners(empty_net) if name in lazy}.values())
    slots: list[dict[str, Tensor]] = []
    for slot in range(n_slots):
        if slot:
            for owner in owners:
                owner.reset_parameters()  # pyright: ignore
        slots.append({k: leaf.detach().clone() for k, leaf in get_leaves(empty_net, names).items() if k in lazy})
    return slots
