"""``convert_state_dict``: checkpoints of torchrl's classes and ours, between storages and sharings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from functional_marl._errors import StructureError
from functional_marl._module.lazy import is_lazy
from functional_marl._parameters import Merge, stack_agents
from functional_marl._parameters.merging import check_merge
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl.nn._base import MultiAgentNetBase
from functional_marl.nn._parameter_store import as_spec

__all__ = ["convert_state_dict"]


def convert_state_dict(
    state_dict: Mapping[str, Any],
    module: MultiAgentNetBase,
    *,
    sharing: bool | SharingSpec | None = None,
    merge: Merge = "error",
    prefix: str = "",
) -> dict[str, Any]:
    """A checkpoint of another storage mode or sharing, as ``module.load_state_dict`` takes it.

    Args:
        state_dict: of torchrl's class or of ours, with keys ``params.0.weight`` or ``_empty_net.0.weight``.
        module: the module that is to load the result; it is not changed. Its slots without agents keep their
            numbers, unless the checkpoint is of the same sharing.
        sharing: the sharing that the checkpoint was made under. By default the shapes decide: no slot axis or
            one slot is shared, as many slots as agents is independent.
        merge: agents that get one slot must agree (``"error"``), or are merged: ``"mean"`` or ``"first"``.
        prefix: the module's name inside a larger one (``"module."``); other keys stay as they are.

    Raises:
        StructureError: keys or shapes that do not fit, all of them named. SharingError: agents of a slot
            that differ under ``merge="error"``.

    >>> from functional_marl.nn import MultiAgentMLP
    >>> shared = MultiAgentMLP(4, 2, 3, centralized=False, share_params=True, depth=0)
    >>> own = MultiAgentMLP(4, 2, 3, centralized=False, share_params=False, depth=0, use_td_params=False)
    >>> own.load_state_dict(convert_state_dict(shared.state_dict(), own))
    <All keys matched successfully>
    """
    if not isinstance(state_dict, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"state_dict: expected a checkpoint, a dict, got {type(state_dict).__name__}")
    if wrong := [k for k in state_dict if not isinstance(k, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"state_dict: expected names as keys, got {wrong[:8]}")
    if not isinstance(module, MultiAgentNetBase):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(_not_ours(module))
    check_merge(merge)
    if not isinstance(prefix, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"prefix: expected a string as 'module.', got {prefix!r}")
    if not module.initialized:
        raise StructureError("module: its lazy leaves have no shapes yet; call it once, or give its input features")
    rows, old = _read(state_dict, module, sharing, prefix)
    store = module._store
    names, slots, current = store.names, store.sharing, store.leaves(module._modules)
    new: dict[str, Tensor] = {}
    for name, leaf in rows.items():
        target = slots[name]
        if target == old[name]:
            new[name] = leaf.detach().clone()
            continue
        agents = [{name: leaf[slot]} for slot in old[name]]
        merged = stack_agents(agents, sharing=target.canonical(), merge=merge)[name]
        new[name] = merged
        if target.n_slots != len(merged):  # the used slots in the order of their first agents
            new[name] = current[name].detach().to(merged, copy=True)
            new[name][list(dict.fromkeys(target))] = merged
    root = prefix + ("params." if module.use_td_params else "_empty_net.")
    leaves = {k: new[names.aliases.get(k, k)] for k in names.all}
    others = {k: v for k, v in state_dict.items() if not k.startswith((prefix + "params.", prefix + "_empty_net."))}
    return {**others, **{root + k: leaf if store.slot_axis else leaf[0] for k, leaf in leaves.items()}}


def _read(
    state_dict: Mapping[str, Any], module: MultiAgentNetBase, sharing: bool | SharingSpec | None, prefix: str
) -> tuple[dict[str, Tensor], dict[str, Sharing]]:
    """The checkpoint's leaves ``{name: [S, *leaf]}`` and their slot maps."""
    store = module._store
    names = store.names
    ours = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    roots = [root for root in ("params.", "_empty_net.") if any(k.startswith(root) for k in ours)]
    if not roots:
        raise StructureError(
            f"state_dict: expected keys {prefix}params.* or {prefix}_empty_net.*, got {list(state_dict)[:8]}; "
            "prefix= is the module's name inside a larger one, as 'module.0.'"
        )
    where = prefix + roots[0]
    # tensordict 0.11 writes batch sizes and devices among the tensors
    given = {k[len(roots[0]) :]: v for k, v in ours.items() if k.startswith(roots[0]) and isinstance(v, Tensor)}
    leaves = store.leaves(module._modules)
    shapes = {k: tuple(leaf.shape[1:] if store.slot_axis else leaf.shape) for k, leaf in leaves.items()}
    first = [k for k in names.all if k not in names.aliases]
    lines = [f"{where}{k}: missing, expected a leaf {list(shapes[k])}" for k in first if k not in given]
    lines += [f"{where}{k}: not a leaf of this network" for k in given if k not in names.all]
    lines += [f"{where}{k}: has no shape yet" for k, leaf in given.items() if is_lazy(leaf)]
    source = None if sharing is None else resolve(as_spec(sharing), module.n_agents, first)
    old: dict[str, Sharing] = {}
    rows: dict[str, Tensor] = {}
    for name in (k for k in first if k in given and not is_lazy(given[k])):
        value, shape = given[name], shapes[name]
        rows[name] = value[None] if tuple(value.shape) == shape else value
        count = len(rows[name]) if rows[name].ndim else 0
        known = Sharing.shared(module.n_agents) if count == 1 else Sharing.independent(module.n_agents)
        old[name] = known if source is None else source[name]
        if tuple(rows[name].shape[1:]) != shape or count != old[name].n_slots:
            lines.append(
                f"{where}{name}: expected {list(shape)} or [slots, *{list(shape)}] with {old[name].n_slots} slots, "
                f"got {list(value.shape)}; give sharing= for another sharing"
            )
    if lines:
        raise StructureError("state_dict does not fit the module\n" + "\n".join(lines))
    return rows, old


def _not_ours(module: Any) -> str:
    inside = [
        (name, part)
        for name, part in (module.named_modules() if isinstance(module, nn.Module) else ())
        if isinstance(part, MultiAgentNetBase)
    ]
    found = f"; it holds one: give that, and prefix={inside[0][0] + '.'!r}" if inside else ""
    return f"module: expected a module of functional_marl.nn, got {type(module).__name__}{found}"
