"""One mapped call: ``torch.func.vmap`` over the call of one agent's module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._gather_slots import gather_slots
from functional_marl._module.write_detection import clone_counting_writes, was_written
from functional_marl._pytrees import Tree, flatten
from functional_marl._randomness.keyed_dropout import run_keyed
from functional_marl._sharing import Sharing
from functional_marl._strategies.base import Call, Result
from functional_marl._strategies.loop import buffers_changed, plain
from functional_marl._strategies.vmap_batching_rules import UseBatchingRules
from functional_marl._strategies.vmap_chunks import activation_bytes, agents_at_once, widest_leaf
from functional_marl._strategies.vmap_faults import Watch
from functional_marl._strategies.vmap_map import map_agents
from functional_marl._torch_compat import any_autocast

__all__ = ["evaluate_vmap"]


def evaluate_vmap(call: Call, watch: bool = False) -> Result:
    """All agents in one mapped call.

    Leaves that all agents share are not mapped. So a centralized network with shared parameters is evaluated once and
    its output expanded. A random operation that differs by agent is mapped from there on.

    Raises:
        VmapFault: with ``watch``, for what vmap computes wrongly.
    """
    net, key, train, mutable, inputs = call.net, call.key, call.train, call.mutable, call.inputs
    if torch.compiler.is_dynamo_compiling():
        net.module_spec.stateless.trace_constants(train)
    tensors, dims = _mapped(call.params, net.sharing)
    first_buffer = len(tensors)
    if call.state:  # training changes each agent's buffers differently, so that each agent needs its own
        state, state_dims = _mapped(call.state, net.state_sharing, every=train or mutable)
        tensors += [buffer.clone() if mutable else clone_counting_writes(buffer) for buffer in state]
        dims += state_dims
    first_input = len(tensors)
    places = [k for k, leaf in enumerate(inputs.leaves) if isinstance(leaf, Tensor)]
    tensors += [inputs.leaves[k].clone() for k in places]  # the module may write into its input
    dims += [inputs.dims[k] for k in places]
    unruled = net.module_spec.stateless.needs_batching_rules() or any_autocast()
    own_streams = key is not None and net.randomness == "different"
    if own_streams:
        tensors.append(torch.arange(net.n_agents, device=_device(call)))
        dims.append(0)
    rebuild_output: list[Callable[[Sequence[Any]], Tree]] = []
    constants: list[Any] = []
    changed: list[str] = []

    def one_agent(*mine: Tensor) -> list[Tensor]:
        leaves = list(inputs.leaves)
        for k, x in zip(places, mine[first_input : first_input + len(places)], strict=True):
            leaves[k] = x
        args, kwargs = inputs.rebuild(leaves)
        own = dict(zip(call.params, mine[:first_buffer], strict=True))
        before = dict(zip(call.state, mine[first_buffer:first_input], strict=True))
        after = dict(before)

        def run() -> Any:
            with Watch() if watch else contextlib.nullcontext():
                return net.module_spec.stateless.call(own, after, args, kwargs, train)

        with UseBatchingRules() if unruled else contextlib.nullcontext():
            stream = mine[-1] if own_streams else 0
            output = run() if key is None else run_keyed(run, key, stream, net.randomness == "error")
        if not mutable:
            changed.extend(name for name, buffer in before.items() if after[name] is not buffer or was_written(buffer))
        if isinstance(output, Tensor):  # saves 2 us of trees
            return [output, *after.values()] if mutable else [output]
        out_leaves, rebuild = flatten(output)
        rebuild_output.append(rebuild)
        constants[:] = (None if isinstance(leaf, Tensor) else plain(leaf) for leaf in out_leaves)
        mapped = [leaf for leaf in out_leaves if isinstance(leaf, Tensor)]
        return mapped + list(after.values()) if mutable else mapped

    results = map_agents(one_agent, net.n_agents, _chunk(call), net.randomness, tensors, dims)
    if changed:
        raise StructureError(buffers_changed(list(dict.fromkeys(changed))))
    if not rebuild_output:
        return Result(results[0], dict(zip(call.state, results[1:], strict=True)) if mutable else {})
    remaining = iter(results)
    outputs = rebuild_output[0]([next(remaining) if constant is None else constant for constant in constants])
    return Result(outputs, dict(zip(call.state, remaining, strict=True)) if mutable else {})


def _mapped(
    leaves: Mapping[str, Tensor], slots: Mapping[str, Sharing], every: bool = False
) -> tuple[list[Tensor], list[int | None]]:
    """Leaves ``[S, *leaf]`` as vmap takes them: ``[*leaf]`` and no axis where all agents share, else ``[n, *leaf]``."""
    values: list[Tensor] = []
    dims: list[int | None] = []
    for name, leaf in leaves.items():
        whole = slots[name].is_shared and not every
        values.append(leaf[0] if whole else gather_slots(leaf, slots[name]))
        dims.append(None if whole else 0)
    return values, dims


def _chunk(call: Call) -> int:
    """How many agents to map at a time."""
    n = call.net.n_agents
    inputs = [leaf for leaf in call.inputs.leaves if isinstance(leaf, Tensor)]
    if call.train or call.mutable or call.net.randomness == "same" or not inputs or torch.compiler.is_compiling():
        return n  # "same": each chunk would sample other numbers
    return agents_at_once(n, max(activation_bytes(x, widest_leaf(call.net)) for x in inputs))


def _device(call: Call) -> torch.device:
    for leaf in (*call.params.values(), *call.inputs.leaves):
        if isinstance(leaf, Tensor):
            return leaf.device
    return torch.device("cpu")
