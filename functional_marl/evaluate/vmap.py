"""``torch.func.vmap`` over the functional call of one agent: any module that has batching rules."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from functional_marl.errors import StructureError
from functional_marl.evaluate.call import Call, Result
from functional_marl.evaluate.loop import buffers_changed, plain
from functional_marl.lowering import gather_slots
from functional_marl.modes import run_keyed
from functional_marl.sharing import Sharing
from functional_marl.skeleton import written
from functional_marl.trees import Tree, flatten

try:
    import torch._functorch.vmap as _functorch_vmap

    _primitives: Any = _functorch_vmap
    for _name in ("_add_batch_dim", "_remove_batch_dim", "lazy_load_decompositions", "vmap_increment_nesting"):
        getattr(_primitives, _name)
except (ImportError, AttributeError):  # pragma: no cover
    _primitives = None

__all__ = ["evaluate_vmap"]


def evaluate_vmap(call: Call) -> Result:
    """All agents in one mapped call.

    What agents share goes in unmapped, so that a centralized network with shared parameters is evaluated
    once and its output expanded; where a random draw tells agents apart, vmap maps from there on. The
    agents' indices are always mapped, for there must be something to map over.
    """
    net, train, mutable = call.net, call.train, call.mutable
    names, leaves, dims = list(call.params), call.inputs.leaves, call.inputs.dims
    params, param_dims = _mapped(call.params, net.sharing)
    # In training buffers change apart, so each agent needs its own.
    state, state_dims = _mapped(call.state, net.state_sharing, every=train or mutable)
    tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rebuild_output: list[Callable[[Sequence[Any]], Tree]] = []
    constants: list[Any] = []
    changed: list[str] = []

    def one_agent(agent: Tensor, *mine: Tensor) -> list[Tensor]:
        values, rest = mine[: len(names)], mine[len(names) :]
        buffers, xs = rest[: len(call.state)], rest[len(call.state) :]
        seen = list(leaves)
        for k, x in zip(tensors, xs, strict=True):
            seen[k] = x.clone()  # the module may write into its input
        args, kwargs = call.inputs.rebuild(seen)
        own = dict(zip(names, values, strict=True))
        before = {name: buffer.clone() for name, buffer in zip(call.state, buffers, strict=True)}
        after = dict(before)

        def run() -> Any:
            return net.template.call(own, after, args, kwargs, train)

        if call.key is None:
            output = run()
        else:
            stream = agent if net.randomness == "different" else 0
            output = run_keyed(run, call.key, stream, net.randomness == "error")
        if not mutable:
            changed.extend(n for n, b in before.items() if after[n] is not b or written(b))
        out_leaves, rebuild = flatten(output)
        rebuild_output.append(rebuild)
        constants.extend(None if isinstance(leaf, Tensor) else plain(leaf) for leaf in out_leaves)
        mapped = [leaf for leaf in out_leaves if isinstance(leaf, Tensor)]
        return mapped + list(after.values()) if mutable else mapped

    index = torch.arange(net.n_agents, device=_device(call))
    xs = [leaves[k] for k in tensors]
    in_dims = [0, *param_dims, *state_dims, *(dims[k] for k in tensors)]
    with _without_fallback_warning():
        results = _map(one_agent, net.n_agents, net.randomness, [index, *params, *state, *xs], in_dims)
    if changed:
        raise StructureError(buffers_changed(list(dict.fromkeys(changed))))
    ready = iter(results)
    outputs = rebuild_output[0]([next(ready) if constant is None else constant for constant in constants])
    return Result(outputs, dict(zip(call.state, ready, strict=True)) if mutable else {})


def _map(
    function: Callable[..., list[Tensor]], n: int, randomness: Any, tensors: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    """``torch.func.vmap`` of a function of tensors to a list of tensors, ``[n, ...]`` each.

    Public vmap flattens trees and checks for 129 us a call; its own primitives take 7 us. They are private,
    so that without them, and where a tracer expects the public function, that serves.
    """
    if _primitives is None or torch.compiler.is_compiling():
        return list(vmap(function, in_dims=tuple(dims), randomness=randomness)(*tensors))
    _primitives.lazy_load_decompositions()
    with _primitives.vmap_increment_nesting(n, randomness) as level:
        mapped = [
            tensor if dim is None else _primitives._add_batch_dim(tensor, dim, level)
            for tensor, dim in zip(tensors, dims, strict=True)
        ]
        return [_primitives._remove_batch_dim(out, level, n, 0) for out in function(*mapped)]


def _mapped(leaves: dict[str, Tensor], slots: Any, every: bool = False) -> tuple[list[Tensor], list[int | None]]:
    """Leaves ``[S, *leaf]`` as vmap takes them: unmapped where all agents share, else ``[n, *leaf]``."""
    values: list[Tensor] = []
    dims: list[int | None] = []
    for name, leaf in leaves.items():
        sharing: Sharing = slots[name]
        whole = sharing.is_shared and not every
        values.append(leaf[0] if whole else gather_slots(leaf, sharing))
        dims.append(None if whole else 0)
    return values, dims


def _device(call: Call) -> torch.device:
    for leaf in (*call.params.values(), *call.inputs.leaves):
        if isinstance(leaf, Tensor):
            return leaf.device
    return torch.device("cpu")


_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_lock = threading.Lock()
_under_way = [0]


@contextlib.contextmanager
def _without_fallback_warning() -> Generator[None]:
    """Leave out torch's warning at each call that an op has no batching rule.

    The flag is the process's and can only be written: it goes back to torch's default, on, when the
    last call that is under way has ended.
    """
    if torch.compiler.is_dynamo_compiling():
        yield
        return
    with _lock:
        _under_way[0] += 1
        _functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        with _lock:
            _under_way[0] -= 1
            if _under_way[0] == 0:
                _functorch._set_vmap_fallback_warning_enabled(True)
