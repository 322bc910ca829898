"""Drawing every slot's parameters from torch's global generator, one agent after the other, as torchrl does.

Under the same ``torch.manual_seed`` the result is bitwise that of building the agents' modules in order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl.errors import RandomnessError
from functional_marl.nn.storage import Layout, as_registered, is_lazy, put, take
from functional_marl.seeding import drawing_from
from functional_marl.tape import Tape, record

__all__ = ["draw", "materialise", "redraw", "reset"]

_WORTH_A_TAPE = 16  # slots; recording costs some ten builds


def reset(module: nn.Module) -> None:
    """Call every ``reset_parameters``, the parts before the whole, as constructors do."""
    for part in reversed(list(module.modules())):
        function = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
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


def _tape(build: Callable[[], nn.Module]) -> Tape | None:
    def drawn(seed: int) -> nn.Module:
        with drawing_from(seed):
            return build()

    try:
        return record(drawn)
    except RandomnessError:  # it seeds a generator or draws from one of its own, and may
        return None


def _blank(leaf: Tensor) -> nn.Parameter:
    """A leaf of NaN, which no reset gives; integers stay as they are."""
    floats = leaf.is_floating_point() or leaf.is_complex()
    return nn.Parameter(torch.full_like(leaf, torch.nan) if floats else leaf.detach().clone(), leaf.requires_grad)


def redraw(
    build: Callable[[], nn.Module], template: nn.Module, layout: Layout, slots: list[dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Fresh parameters for every slot: by resets, and by the factory where those fill nothing."""
    module = copy.deepcopy(template)
    drawn: list[dict[str, Tensor]] = []
    for slot in slots:
        with torch.no_grad():
            blank: dict[str, Any] = {k: _blank(slot[k]) for k in layout.params}
        put(module, layout, {**{k: slot[k].clone() for k in layout.buffers}, **blank})
        reset(module)
        fresh = {k: leaf.detach() for k, leaf in take(module, layout).items()}
        bare = [k for k in layout.params if not slot[k].is_floating_point() or bool(fresh[k].isnan().any())]
        if bare:
            built = build()
            whole = take(built, Layout.of(built))
            fresh |= {k: whole[k].detach() for k in bare if k in whole and not is_lazy(whole[k])}
        drawn.append(fresh)
    return drawn


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
