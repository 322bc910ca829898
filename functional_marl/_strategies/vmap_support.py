"""Whether vmap serves a call: what is known, and how it is found out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._init_params import default_state
from functional_marl._layout.inputs import Inputs
from functional_marl._network import Network
from functional_marl._pytrees import Tree, structure
from functional_marl._randomness.rng_state import rng_states, set_rng_states
from functional_marl._strategies.base import Call, Result
from functional_marl._strategies.loop import evaluate_loop
from functional_marl._strategies.vmap import FALLBACK_ERRORS, FINAL_ERRORS, evaluate_vmap
from functional_marl._strategies.vmap_faults import VmapFault
from functional_marl._torch_compat import any_autocast, backward_hooked, constant_result, is_static, outside_transforms

__all__ = ["evaluate_mapped", "give_up_vmap", "is_unmapped", "try_vmap"]

_MOST = 1000  # kinds of calls that are kept


def is_unmapped(call: Call) -> bool:
    """Whether vmap is known to fail on calls of this kind.

    Another kind may do: a branch on a flag, a sharing under which a weight is not mapped. A graph is traced once and
    has no way back, so there what failed at all is not tried.
    """
    template = call.net.module_spec
    if template.why_not_vmap or backward_hooked():
        return True
    if torch.compiler.is_dynamo_compiling() and template.stateless.may_write_by_data():
        return True  # vmap refuses `.data`, and a trace takes no mode that serves it
    if not template.no_vmap[call.train]:
        return False
    return torch.compiler.is_dynamo_compiling() or _kind(call) in template.unmapped


def evaluate_mapped(call: Call) -> Result:
    """vmap, and at the first call of a kind a watch for what vmap computes wrongly.

    Raises:
        VmapFault: it has met such an operation.
    """
    if torch.compiler.is_dynamo_compiling():
        return evaluate_vmap(call)
    watched, leaves = call.net.watched, call.inputs.leaves
    seen = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
    kind = (*_settings(call), torch.is_grad_enabled(), *seen)
    try:
        known = kind in watched
    except TypeError:  # symbolic sizes have no hash, and are watched at every call
        known, watched = False, set[Any]()
        kind = ()
    if known:
        return evaluate_vmap(call)
    before = rng_states((*call.params.values(), *call.inputs.leaves), needed=False) if call.key is None else {}
    try:
        result = evaluate_vmap(call, watch=True)
    except VmapFault:
        set_rng_states(before)
        raise
    if len(watched) > _MOST:
        watched.clear()
    watched.add(kind)
    return result


def give_up_vmap(call: Call, error: Exception) -> None:
    """Keep in mind that vmap failed on calls of this kind, and why."""
    template = call.net.module_spec
    why = error.fault if isinstance(error, VmapFault) else f"vmap raised {type(error).__name__}: {_short(error)}"
    template.no_vmap[call.train] = why
    template.unmapped.add(_kind(call))


def try_vmap(call: Call) -> None:
    """For dynamo, which has no way back and hides what a module asks of autograd: find out ahead whether vmap serves.

    The call is run on made up numbers of its shapes. Where sizes are dynamic, where inputs are no plain trees, or where
    the loop fails too, nothing is found out: an eager call ahead of the graph tells.
    """
    leaves = call.inputs.leaves
    specs: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            for size in leaf.shape:
                if not is_static(size):
                    return
            specs.append((tuple(leaf.shape), leaf.dtype, leaf.device))
        elif isinstance(leaf, float):  # dynamo may take it for one that changes
            specs.append(1.0)
        elif isinstance(leaf, (bool, str)) or (isinstance(leaf, int) and is_static(leaf)):
            specs.append(leaf)
        else:
            return
    tree = _described(call.inputs.rebuild(leaves), leaves)
    if tree is not None:
        kinds = tuple([(leaf.dtype, leaf.device) for leaf in call.params.values()])
        dims = tuple(call.inputs.dims)
        _try(call.net, kinds, tuple(specs), dims, tree, call.key is not None, call.train, call.mutable)


def _described(tree: Tree, leaves: list[Any]) -> tuple[str, Any, Any] | None:
    """A tree as nested tuples, which dynamo can hand to a function that it does not trace; None for other trees."""
    if isinstance(tree, Tensor):
        for k, leaf in enumerate(leaves):
            if leaf is tree:
                return ("leaf", k, None)
        return None
    if type(tree) in (tuple, list, dict):
        parts: list[Any] = []
        for part in tree.values() if type(tree) is dict else tree:
            parts.append(_described(part, leaves))
            if parts[-1] is None:
                return None
        return (type(tree).__name__, tuple(tree) if type(tree) is dict else None, tuple(parts))
    if isinstance(tree, float):
        return ("constant", 1.0, None)
    return ("constant", tree, None) if tree is None or isinstance(tree, (bool, str, int)) else None


def _built(described: tuple[str, Any, Any], leaves: Sequence[Any]) -> Tree:
    kind, value, parts = described
    if kind in ("leaf", "constant"):
        return leaves[value] if kind == "leaf" else value
    built = [_built(part, leaves) for part in parts]
    return dict(zip(value, built, strict=True)) if kind == "dict" else tuple(built) if kind == "tuple" else built


@constant_result
def _try(
    net: Network,
    kinds: tuple[tuple[torch.dtype, torch.device], ...],
    specs: tuple[Any, ...],
    dims: tuple[int | None, ...],
    tree: tuple[str, Any, Any],
    keyed: bool,
    train: bool,
    mutable: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def made_up(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.rand(shape, generator=generator).to(device=device, dtype=dtype)
        return torch.zeros(shape, dtype=dtype, device=device)

    with outside_transforms():
        params = {k: made_up(s, *kind) for (k, s), kind in zip(net.param_shapes.items(), kinds, strict=True)}
        leaves = [made_up(*spec) if isinstance(spec, tuple) else spec for spec in specs]
        inputs = Inputs(leaves, list(dims), lambda new: _built(tree, new), 0)
        key = torch.zeros(2, dtype=torch.int64) if keyed else None
        try:
            state = default_state(net, params)
        except StructureError:  # drawn at random
            return
        call = Call(net, params, state, inputs, key, train, mutable)
        if is_unmapped(call):
            return
        before = rng_states((*params.values(), *leaves), needed=False)
        try:
            evaluate_mapped(call)
        except VmapFault as fault:
            give_up_vmap(call, fault)
        except FALLBACK_ERRORS as error:
            set_rng_states(before)
            if not isinstance(error, FINAL_ERRORS) and _loops(call):
                give_up_vmap(call, error)
        finally:
            set_rng_states(before)


def _loops(call: Call) -> bool:
    try:
        evaluate_loop(call)
    except Exception:  # whatever the module raises
        return False
    return True


def _kind(call: Call) -> tuple[Any, ...]:
    """What a module can see of a call but the numbers in its tensors and their sizes: what it takes to fail again."""
    leaves = [(leaf.ndim, leaf.dtype) if isinstance(leaf, Tensor) else _constant(leaf) for leaf in call.inputs.leaves]
    slots = tuple(sharing.is_shared for sharing in call.net.sharing.values())
    return (*_settings(call), call.net.randomness, tuple(call.inputs.dims), slots, *leaves)


def _settings(call: Call) -> tuple[Any, ...]:
    """What a forward may branch on beside its inputs' leaves. In a trace there is no structure to compare."""
    traced = torch.compiler.is_dynamo_compiling()
    tree = None if traced else structure(call.inputs.rebuild(call.inputs.leaves))
    dtypes = tuple([leaf.dtype for leaf in (*call.params.values(), *call.state.values())])
    return (call.train, call.mutable, call.key is None, any_autocast(), tree, dtypes)


def _constant(leaf: Any) -> Any:
    # of numbers and strings there may be another at every call
    return leaf if leaf is None or isinstance(leaf, bool) else type(leaf)


def _short(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    return line if len(line) <= 100 else f"{line[:97]}..."
