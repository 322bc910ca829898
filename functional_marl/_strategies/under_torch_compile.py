"""Under ``torch.compile``: a trial before the graph is traced shows whether vmap can evaluate a call.

A trace cannot fall back to another strategy. And in a trace no function mode sees that a module reads
``requires_grad``. So the call is evaluated once, outside the trace, on random numbers of the same shapes. Dynamo runs
:func:`constant_result` functions while it traces and does not trace into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._errors import Unsupported
from functional_marl._layout.inputs import Inputs
from functional_marl._network_settings import NetworkSettings
from functional_marl._pytrees import Tree
from functional_marl._randomness.rng_state import rng_states, set_rng_states
from functional_marl._strategies.base import FALLBACK_ERRORS, FINAL_ERRORS, Call, Result, failure_of
from functional_marl._strategies.loop import evaluate_loop
from functional_marl._torch_compat import constant_result, is_static, outside_transforms

__all__ = ["is_compiled", "try_vmap"]


def is_compiled() -> bool:
    """Whether dynamo traces this call, or, after a break in the graph, the calls inside it."""
    return torch.compiler.is_dynamo_compiling() or callable(_torch_compat.dynamo_callback())


class _Tried(Protocol):
    def evaluate(self, call: Call) -> Result | Unsupported: ...
    def remember_failure(self, call: Call, why: str) -> None: ...


def try_vmap(evaluator: _Tried, call: Call) -> None:
    """Let the evaluator remember a failure if it fails on a call of these shapes and the loop does not.

    There is no trial where sizes are dynamic, or inputs are no plain trees. Then only an eager call before the compiled
    one finds the failure.
    """
    leaves = call.inputs.leaves
    specs: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            for size in leaf.shape:
                if not is_static(size):
                    return
            specs.append((tuple(leaf.shape), leaf.dtype, leaf.device))
        elif isinstance(leaf, float):  # dynamo may treat it as one that changes
            specs.append(1.0)
        elif isinstance(leaf, (bool, str)) or (isinstance(leaf, int) and is_static(leaf)):
            specs.append(leaf)
        else:
            return
    tree = _described(call.inputs.rebuild(leaves), leaves)
    if tree is not None:
        params = tuple([(leaf.dtype, leaf.device) for leaf in call.params.values()])
        state = tuple([(leaf.dtype, leaf.device) for leaf in call.state.values()])
        dims = tuple(call.inputs.dims)
        _try(
            evaluator, call.net, params, state, tuple(specs), dims, tree, call.key is not None, call.train, call.mutable
        )


def _described(tree: Tree, leaves: list[Any]) -> tuple[str, Any, Any] | None:
    """A tree as nested tuples, which dynamo can pass to a function that it does not trace; None for other trees."""
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


_Kinds = tuple[tuple[torch.dtype, torch.device], ...]


@constant_result
def _try(
    evaluator: _Tried,
    net: NetworkSettings,
    param_kinds: _Kinds,
    state_kinds: _Kinds,
    specs: tuple[Any, ...],
    dims: tuple[int | None, ...],
    tree: tuple[str, Any, Any],
    keyed: bool,
    train: bool,
    mutable: bool,
) -> None:
    if net.module_spec.random_buffers:
        return
    generator = torch.Generator().manual_seed(0)

    def made_up(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.rand(shape, generator=generator).to(device=device, dtype=dtype)
        return torch.zeros(shape, dtype=dtype, device=device)

    with outside_transforms():
        params = {k: made_up(s, *kind) for (k, s), kind in zip(net.param_shapes.items(), param_kinds, strict=True)}
        state = {
            k: net.initial_buffer(k, device, dtype)
            for k, (dtype, device) in zip(net.state_shapes, state_kinds, strict=True)
        }
        leaves = [made_up(*spec) if isinstance(spec, tuple) else spec for spec in specs]
        inputs = Inputs(leaves, list(dims), lambda new: _built(tree, new), 0)
        key = torch.zeros(2, dtype=torch.int64) if keyed else None
        call = Call(net, params, state, inputs, key, train, mutable)
        before = rng_states(call.tensors(), needed=False)
        why = ""
        try:
            result = evaluator.evaluate(call)
            why = result.reason if isinstance(result, Unsupported) else ""
        except FALLBACK_ERRORS as error:
            set_rng_states(before)
            if not isinstance(error, FINAL_ERRORS) and _loop_serves(call):
                why = failure_of("vmap", error)
        finally:
            set_rng_states(before)
        if why:
            evaluator.remember_failure(call, why)


def _loop_serves(call: Call) -> bool:
    try:
        evaluate_loop(call)
    except Exception:  # whatever the module raises
        return False
    return True
