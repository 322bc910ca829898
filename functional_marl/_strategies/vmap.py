"""``torch.func.vmap`` over the functional call of one agent: any module that has batching rules."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from functional_marl import _torch_compat
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._lowering import gather_slots
from functional_marl._module.write_detection import clone_counting_writes, was_written
from functional_marl._network import Network
from functional_marl._pytrees import Tree, flatten
from functional_marl._randomness.keyed_dropout import run_keyed
from functional_marl._sharing import Sharing
from functional_marl._strategies.base import Call, Result
from functional_marl._strategies.batching_rules import Rules
from functional_marl._strategies.loop import buffers_changed, plain
from functional_marl._strategies.vmap_faults import Watch
from functional_marl._torch_compat import any_autocast

__all__ = [
    "FALLBACK_ERRORS",
    "FINAL_ERRORS",
    "activation_bytes",
    "evaluate_vmap",
    "in_chunks",
    "quiet",
    "widest_leaf",
]

# What torch raises where it has no batching rule, or where a module does not get what it needs.
FALLBACK_ERRORS = (RuntimeError, ValueError, NotImplementedError, IndexError)
# Of these, what is an answer and no failure of this way.
FINAL_ERRORS = (StructureError, RandomnessError, torch.OutOfMemoryError)


# Agents are mapped in chunks of about 2 MB of activations once these pass 16 MB and no gradient is recorded: a forward
# of 512 agents of width 64 at batch 256 takes 78 ms for 151 and 17 MB for 101, of 4,096 at batch 32 88 ms for 137 and
# 17 MB for 102. Below it chunks lose, and under backward they add up full-size gradients, up to 28x as slow.
CHUNK_ABOVE = 16 << 20
CHUNK = 2 << 20


def widest_leaf(net: Network) -> int:
    """The most features that a leaf ``[S, features, ...]`` gives."""
    return max((shape[1] for shape in net.param_shapes.values() if len(shape) > 1), default=1)


def activation_bytes(x: Tensor, widest: int) -> int:
    """About how much a layer's output takes for all agents: a row of the widest leaf for each row of the input."""
    return x.numel() // max(1, x.shape[-1] if x.ndim else 1) * widest * x.element_size()


def in_chunks(size: int) -> bool:
    """Whether agents with activations of so many bytes are mapped in chunks."""
    return size > CHUNK_ABOVE and not torch.is_grad_enabled()


def _chunk(call: Call) -> int:
    """How many agents to map at a time."""
    n = call.net.n_agents
    inputs = [leaf for leaf in call.inputs.leaves if isinstance(leaf, Tensor)]
    if call.train or call.mutable or call.net.randomness == "same" or not inputs or torch.compiler.is_compiling():
        return n  # "same": chunks would draw apart
    size = max(activation_bytes(x, widest_leaf(call.net)) for x in inputs)
    return min(n, max(1, CHUNK * n // size)) if in_chunks(size) else n


def evaluate_vmap(call: Call, watch: bool = False) -> Result:
    """All agents in one mapped call.

    What agents share goes in unmapped, so that a centralized network with shared parameters is evaluated
    once and its output expanded; where a random draw tells agents apart, vmap maps from there on.

    Raises:
        VmapFault: with ``watch``, for what vmap computes wrongly.
    """
    net, key, train, mutable, inputs = call.net, call.key, call.train, call.mutable, call.inputs
    if torch.compiler.is_dynamo_compiling():
        net.module_spec.stateless.trace_constants(train)
    tensors, dims = _mapped(call.params, net.sharing)
    first_buffer = len(tensors)
    if call.state:  # in training buffers change apart, so each agent needs its own
        state, state_dims = _mapped(call.state, net.state_sharing, every=train or mutable)
        tensors += [buffer.clone() if mutable else clone_counting_writes(buffer) for buffer in state]
        dims += state_dims
    first_input = len(tensors)
    places = [k for k, leaf in enumerate(inputs.leaves) if isinstance(leaf, Tensor)]
    tensors += [inputs.leaves[k].clone() for k in places]  # the module may write into its input
    dims += [inputs.dims[k] for k in places]
    unruled = net.module_spec.stateless.needs_batching_rules() or any_autocast()
    apart = key is not None and net.randomness == "different"
    if apart:
        tensors.append(torch.arange(net.n_agents, device=_device(call)))
        dims.append(0)
    rebuild_output: list[Callable[[Sequence[Any]], Tree]] = []
    constants: list[Any] = []
    changed: list[str] = []

    def one_agent(*mine: Tensor) -> list[Tensor]:
        seen = list(inputs.leaves)
        for k, x in zip(places, mine[first_input : first_input + len(places)], strict=True):
            seen[k] = x
        args, kwargs = inputs.rebuild(seen)
        own = dict(zip(call.params, mine[:first_buffer], strict=True))
        before = dict(zip(call.state, mine[first_buffer:first_input], strict=True))
        after = dict(before)

        def run() -> Any:
            with Watch() if watch else contextlib.nullcontext():
                return net.module_spec.stateless.call(own, after, args, kwargs, train)

        with Rules() if unruled else contextlib.nullcontext():
            output = run() if key is None else run_keyed(run, key, mine[-1] if apart else 0, net.randomness == "error")
        if not mutable:
            changed.extend(name for name, buffer in before.items() if after[name] is not buffer or was_written(buffer))
        if isinstance(output, Tensor):  # spares 2 us of trees
            return [output, *after.values()] if mutable else [output]
        out_leaves, rebuild = flatten(output)
        rebuild_output.append(rebuild)
        constants[:] = (None if isinstance(leaf, Tensor) else plain(leaf) for leaf in out_leaves)
        mapped = [leaf for leaf in out_leaves if isinstance(leaf, Tensor)]
        return mapped + list(after.values()) if mutable else mapped

    results = _map_chunks(one_agent, net.n_agents, _chunk(call), net.randomness, tensors, dims)
    if changed:
        raise StructureError(buffers_changed(list(dict.fromkeys(changed))))
    if not rebuild_output:
        return Result(results[0], dict(zip(call.state, results[1:], strict=True)) if mutable else {})
    ready = iter(results)
    outputs = rebuild_output[0]([next(ready) if constant is None else constant for constant in constants])
    return Result(outputs, dict(zip(call.state, ready, strict=True)) if mutable else {})


class _Quiet:
    """Leaves out torch's warning at each call of an op that has no batching rule.

    torch has one flag for the whole process, and it can only be written: it goes back to torch's default,
    on, when the last call that is under way has ended.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way = 0

    def __enter__(self) -> None:
        with self.lock:
            self.under_way += 1
            _torch_compat.warn_of_fallback(False)

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.under_way -= 1
            if self.under_way == 0:
                _torch_compat.warn_of_fallback(True)


quiet = _Quiet()


def _map_chunks(
    function: Callable[..., list[Tensor]],
    n: int,
    chunk: int,
    randomness: Any,
    tensors: list[Tensor],
    dims: list[int | None],
) -> list[Tensor]:
    """:func:`_map`, of so many agents at a time; what all share is evaluated once and expanded all the same."""
    if chunk == n or all(dim is None for dim in dims):
        return _map(function, n, randomness, tensors, dims)
    pieces: list[list[Tensor]] = []
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        own = [t if d is None else t.narrow(d, start, size) for t, d in zip(tensors, dims, strict=True)]
        pieces.append(_map(function, size, randomness, own, dims))
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def _map(
    function: Callable[..., list[Tensor]], n: int, randomness: Any, tensors: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    """``torch.func.vmap`` of a function of tensors to a list of tensors, ``[n, ...]`` each, without its warning."""
    if torch.compiler.is_dynamo_compiling():
        return _traceable(function, n, randomness, tensors, dims)
    with quiet:
        primitives = _torch_compat.primitives
        if primitives is None or torch.compiler.is_compiling():
            return _traceable(function, n, randomness, tensors, dims)
        # Public vmap flattens trees and checks for 129 us a call; what it calls itself takes 5 us.
        primitives.load()
        add, remove = primitives.add, primitives.remove
        level = primitives.enter(n, randomness)
        try:
            outputs = function(*[t if d is None else add(t, d, level) for t, d in zip(tensors, dims, strict=True)])
            return [remove(output, level, n, 0) for output in outputs]
        finally:
            primitives.leave()


def _traceable(
    function: Callable[..., list[Tensor]], n: int, randomness: Any, tensors: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    """The same by the public function, as tracers expect it.

    Everything is mapped at axis 0, for torch.export loses the others where an input is an output; and
    something is mapped in any case, for public vmap insists.
    """
    front = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    index = torch.arange(n, device=front[0].device if front else None)
    in_dims = (*(None if d is None else 0 for d in dims), 0)
    return list(vmap(lambda *mine: function(*mine[:-1]), in_dims=in_dims, randomness=randomness)(*front, index))


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
