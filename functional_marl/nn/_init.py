"""Drawing every slot's parameters from torch's global generator, one agent after the other, as torchrl does.

Under the same ``torch.manual_seed`` the result is bitwise that of building the agents' modules in order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._errors import RandomnessError
from functional_marl._module.replay import InitTrace, record
from functional_marl._randomness.use_generator import sampling_from_seed
from functional_marl.nn._storage import Layout, as_registered, is_lazy, put, take

__all__ = ["draw", "materialise", "redraw", "reset"]

_WORTH_A_TAPE = 16  # slots; recording costs some ten builds


def reset(module: nn.Module) -> None:
    """Call every ``reset_parameters``: the parts in their order, and before the whole, as constructors do."""
    for child in module.children():
        reset(child)
    function = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(function):
        function()


def draw(
    build: Callable[[], nn.Module], n_slots: int, again: bool
) -> tuple[nn.Module, Layout, dict[str, list[Tensor] | Tensor]]:
    """The first slot's module, its layout, and every leaf's rows, as building each slot in order gives them.

    ``again`` says that ``build`` may be called more often than there are slots: then what it does to its
    leaves is recorded, and played for the other slots in place of building them; the rows are then one tensor.
    """
    first = build()
    layout = Layout.of(first)
    leaves = take(first, layout)
    tape = _tape(build) if again and n_slots >= _WORTH_A_TAPE and not any(map(is_lazy, leaves.values())) else None
    if tape is None:
        slots = [leaves, *(take(build(), layout) for _ in range(n_slots - 1))]
        return first, layout, {name: [slot[name] for slot in slots] for name in leaves}
    with torch.no_grad():
        stacked = {name: leaf.new_empty((n_slots, *leaf.shape)) for name, leaf in leaves.items()}
        slots = zip(*(leaf.unbind(0) for leaf in stacked.values()), strict=True)
        for name, row in zip(leaves, next(slots), strict=True):
            row.copy_(leaves[name])
        for rows in slots:
            tape.play(dict(zip(leaves, rows, strict=True)), None)
    return first, layout, {**stacked}


def _tape(build: Callable[[], nn.Module]) -> InitTrace | None:
    def drawn(seed: int) -> nn.Module:
        with sampling_from_seed(seed):
            return build()

    try:
        return record(drawn)
    except RandomnessError:  # it seeds a generator or draws from one of its own, and may
        return None


def _blank(leaf: Tensor) -> Tensor:
    """A leaf of NaN, which no reset gives; integers stay as they are."""
    floats = leaf.is_floating_point() or leaf.is_complex()
    return torch.full_like(leaf, torch.nan) if floats else leaf.detach().clone()


def _registered(leaf: Tensor, is_param: bool) -> Tensor:
    floats = leaf.is_floating_point() or leaf.is_complex()
    return nn.Parameter(leaf.clone(), requires_grad=floats) if is_param else leaf.clone()


def redraw(
    build: Callable[[], nn.Module], template: nn.Module, layout: Layout, leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Fresh leaves ``{name: [S, *leaf]}``: by resets, and by the factory where those fill nothing.

    A reset sees one slot's leaves and draws for all slots at once, as torchrl's does: the same seed gives the
    same numbers there. Where it cannot be mapped, the slots are reset one after the other.
    """
    module = copy.deepcopy(template)
    blank = {k: _blank(leaf) if k in layout.params else leaf.clone() for k, leaf in leaves.items()}

    def one(slot: dict[str, Tensor]) -> dict[str, Tensor]:
        put(module, layout, slot)
        reset(module)
        return {k: leaf.detach() for k, leaf in take(module, layout).items()}

    n_slots = len(next(iter(blank.values()), ()))
    fresh = _mapped(one, blank) if n_slots > 1 else None
    if fresh is None:
        slots = [
            one({k: _registered(leaf[i], k in layout.params) for k, leaf in blank.items()}) for i in range(n_slots)
        ]
        fresh = {k: torch.stack([slot[k] for slot in slots]) for k in blank}
    bare = [k for k in layout.params if not leaves[k].is_floating_point() or bool(fresh[k].isnan().any())]
    if bare:
        for i in range(len(leaves[bare[0]])):
            built = build()
            whole = take(built, Layout.of(built))
            for k in bare:
                fresh[k][i] = leaves[k][i] if k not in whole or is_lazy(whole[k]) else whole[k].detach()
    return fresh


def _mapped(
    one: Callable[[dict[str, Tensor]], dict[str, Tensor]], blank: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The reset of all slots by ``torch.vmap``; None where that fails, or gives all slots one draw."""
    leaves = {k: leaf.clone() for k, leaf in blank.items()}
    try:
        fresh = torch.vmap(one, randomness="different")(leaves)
    except Exception:  # no batching rule, .data, a branch on numbers; what is wrong in a reset is raised by the loop
        return None
    for leaf in fresh.values():
        # numpy's numbers, say, are the same for all slots
        if bool((leaf == leaf[:1]).all()) and not bool((leaf == leaf.flatten()[:1]).all()):
            return None
    return fresh


def materialise(
    template: nn.Module, layout: Layout, rows: Callable[[str, int], Tensor], lazy: list[str], n_slots: int, x: Tensor
) -> list[dict[str, Tensor]]:
    """Give the lazy leaves of every slot their shapes and first values by one agent's input.

    The template runs once, which turns its lazy layers into ordinary ones; their numbers are the first
    slot's. Each further slot has those layers reset.
    """
    first: dict[str, Any] = {}
    for name in (*layout.params, *layout.buffers):
        leaf = rows(name, 0)
        first[name] = as_registered(leaf, leaf) if is_lazy(leaf) else leaf
    put(template, layout, first)
    training = {part: part.training for part in template.modules()}
    with torch.no_grad():
        template.eval()(x)
    for part, mode in training.items():
        part.training = mode
    slots = [{k: leaf.detach().clone() for k, leaf in take(template, layout).items() if k in lazy}]
    owners = list({id(o): o for _, f, o, _ in layout.owners(template) if f in lazy}.values())
    for _ in range(1, n_slots):
        for owner in owners:
            owner.reset_parameters()  # pyright: ignore
        slots.append({k: leaf.detach().clone() for k, leaf in take(template, layout).items() if k in lazy})
    return slots
