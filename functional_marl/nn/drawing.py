"""Drawing every slot's parameters from torch's global generator, one agent after the other, as torchrl does.

Under the same ``torch.manual_seed`` the result is bitwise that of building the agents' modules in order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl.nn.storage import Layout, as_registered, is_lazy, put, take

__all__ = ["draw", "materialise", "redraw", "reset"]

_WORTH_TRYING = 4  # from so many slots on, resetting one module is tried in place of building many


def reset(module: nn.Module) -> None:
    """Call every ``reset_parameters``, the parts before the whole, as constructors do."""
    for part in reversed(list(module.modules())):
        function = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(function):
            function()


def draw(build: Callable[[], nn.Module], n_slots: int) -> tuple[nn.Module, Layout, list[dict[str, Tensor]]]:
    """The first slot's module, its layout, and the leaves of every slot, as building each in order gives.

    From the third slot on the module is reset in place of built anew, if the second slot shows that this
    gives the same numbers and leaves the generator in the same state.
    """
    first = build()
    layout = Layout.of(first)
    slots = [take(first, layout)]
    replay = n_slots >= _WORTH_TRYING and _on_cpu(slots[0])
    while len(slots) < n_slots:
        before = torch.get_rng_state() if replay and len(slots) == 1 else None
        if replay and before is None:
            slots.append(_by_reset(first, layout, slots[0]))
            continue
        slots.append(take(build(), layout))
        if before is not None:
            replay = _same_by_reset(first, layout, slots, before)
    return first, layout, slots


def _on_cpu(leaves: dict[str, Tensor]) -> bool:
    return all(not is_lazy(leaf) and leaf.device.type == "cpu" for leaf in leaves.values())


def _by_reset(module: nn.Module, layout: Layout, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """A slot's leaves from the module's own resets; the module keeps its tensors."""
    fresh: dict[str, Any] = {k: nn.Parameter(torch.empty_like(like[k]), like[k].requires_grad) for k in layout.params}
    fresh |= {k: like[k].clone() for k in layout.buffers}
    put(module, layout, fresh)
    try:
        reset(module)
    finally:
        put(module, layout, like)
    return fresh


def _same_by_reset(module: nn.Module, layout: Layout, slots: list[dict[str, Tensor]], before: Tensor) -> bool:
    """Whether resets give the second slot again, NaN where nothing is filled; leaves the generator as it was."""
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    try:
        with torch.no_grad():
            blank: dict[str, Any] = {k: _blank(slots[0][k]) for k in layout.params}
        put(module, layout, {**{k: b.clone() for k, b in slots[0].items()}, **blank})
        reset(module)
        again = take(module, layout)
        same = all(torch.equal(again[k], slots[1][k]) for k in again)
        return same and torch.equal(torch.get_rng_state(), after)
    except Exception:  # whatever a user's reset raises: then modules are built
        return False
    finally:
        put(module, layout, slots[0])
        torch.set_rng_state(after)


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
