"""Strategy "loop": one agent after the other. It defines the meaning, and shares no code with the faster strategies."""

from __future__ import annotations

import contextlib
import enum
from typing import Any

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._module.write_detection import clone_counting_writes, was_written
from functional_marl._network_settings import NetworkSettings
from functional_marl._pytrees import Tree, flatten, leaf_names
from functional_marl._randomness.forbid_random_ops import ForbidRandomOps
from functional_marl._randomness.keyed_dropout import run_keyed
from functional_marl._randomness.rng_state import rng_states, set_rng_states
from functional_marl._randomness.same_samples import SameSamples
from functional_marl._strategies.base import FALLBACK_ERRORS, FINAL_ERRORS, Call, Evaluator, Result, sparse_layout

__all__ = ["LoopEvaluator", "buffers_changed", "evaluate_loop", "is_random_call", "plain"]


class LoopEvaluator(Evaluator):
    """The loop, for every network and every call."""

    name = "loop"

    @classmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> LoopEvaluator:
        """The loop needs nothing prepared."""
        return cls()

    def evaluate(self, call: Call) -> Result:
        """One agent after the other.

        Raises:
            StructureError: an operation of the module takes no sparse input.
        """
        try:
            return evaluate_loop(call)
        except FALLBACK_ERRORS as error:
            layout = sparse_layout(call)
            if layout is None or isinstance(error, FINAL_ERRORS):
                raise
            what = f"inputs: {layout} fails in the loop over agents; give x.to_dense(): {error}"
            raise StructureError(what) from error


_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.Size)


def evaluate_loop(call: Call) -> Result:
    """Agent ``i`` computes ``module(params[leaf][slot[leaf][i]], x_i)``, one after the other."""
    if call.key is None and call.net.randomness != "different" and _traced():
        try:
            return _loop(call, not_random=True)
        except RandomnessError:
            if call.net.randomness == "error":
                raise
            if not torch.compiler.is_dynamo_compiling():
                raise RandomnessError(_NOT_TRACED) from None
        _torch_compat.graph_break(_NOT_TRACED)
    return _loop(call)


def is_random_call(call: Call) -> bool:
    """Whether a call without a key samples random numbers before anything else fails."""
    try:
        _loop(call, not_random=True)
    except RandomnessError:
        return True
    except Exception:
        return False
    return False


_NOT_TRACED = (
    'randomness="same": a traced loop over agents cannot sample the same numbers for each of them from the global '
    "generator; give apply a key="
)


def _loop(call: Call, not_random: bool = False) -> Result:
    outputs: list[Tree] = []
    buffers: list[dict[str, Tensor]] = []
    alike = call.key is None and call.net.randomness == "same" and not not_random
    start = rng_states((*call.inputs.leaves, *call.params.values())) if alike else None
    own = SameSamples() if alike and not torch.compiler.is_dynamo_compiling() else None
    for agent in range(call.net.n_agents):
        if start is not None:
            set_rng_states(start)
        if own is not None:
            own.next_agent()
        try:
            with own or contextlib.nullcontext():
                output, after = _one_agent(call, agent, not_random)
        except Exception as error:
            if not torch.compiler.is_dynamo_compiling():
                error.add_note(
                    f"functional_marl: agent {agent} of {call.net.n_agents}, which sees {_seen(call, agent)}"
                )
            raise
        outputs.append(output)
        buffers.append(after)
    state = {name: torch.stack([b[name] for b in buffers]) for name in call.state} if call.mutable else {}
    return Result(_stack_outputs(outputs), state)


def _one_agent(call: Call, agent: int, not_random: bool) -> tuple[Tree, dict[str, Tensor]]:
    net = call.net
    params = {name: leaf[net.sharing[name][agent]] for name, leaf in call.params.items()}
    clone = torch.clone if call.mutable else clone_counting_writes
    before = {name: clone(leaf[net.state_sharing[name][agent]]) for name, leaf in call.state.items()}
    args, kwargs = call.inputs.of_agent(agent)
    after = dict(before)

    def run() -> Any:
        return net.module_spec.stateless.call(params, after, args, kwargs, call.train)

    if call.key is not None:
        stream = agent if net.randomness == "different" else 0
        output = run_keyed(run, call.key, stream, net.randomness == "error")
    elif not_random:
        output = run_keyed(run, torch.empty(0), 0, True)
    elif net.randomness == "error":
        with ForbidRandomOps('randomness="error" forbids it; choose "same" or "different", or train=False'):
            output = run()
    else:
        output = run()
    if not call.mutable:
        # The clones belong to this call. A write shows in a clone's version, or as another tensor in its place.
        changed = [name for name in before if after[name] is not before[name] or was_written(before[name])]
        if changed:
            raise StructureError(buffers_changed(changed))
    return output, after


def _seen(call: Call, agent: int) -> str:
    args, kwargs = call.inputs.of_agent(agent)
    leaves = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    kinds = ", ".join(f"{list(leaf.shape)} ({str(leaf.dtype).removeprefix('torch.')})" for leaf in leaves)
    whose = ", the features of all agents in one" if call.net.centralized else ""
    return f"inputs of shape {kinds}{whose}"


def _traced() -> bool:
    """Whether a tracer records the call. It records each random operation, and no restored generator state."""
    return torch.compiler.is_dynamo_compiling() or _torch_compat.in_proxy_tracer()


def buffers_changed(names: list[str]) -> str:
    """The message for a module that writes into its buffers where nothing returns the new ones."""
    return (
        f"state: the module changed its buffers {names} and apply would lose them; take the new state, "
        "y, state = apply(..., state=state, mutable=True), or call with train=False"
    )


def plain(leaf: Any) -> Any:
    """A leaf of an output that is no tensor and cannot hold one.

    Raises:
        StructureError: it may hold one; vmap would leave its own wrappers in a distribution or a dataclass.
    """
    if not isinstance(leaf, _PLAIN):
        raise StructureError(
            f"outputs: expected a tree of tensors and plain values, got a {type(leaf).__name__}; return its tensors "
            "in a tuple or dict (of a distribution the parameters)"
        )
    return leaf


def _stack_outputs(outputs: list[Tree]) -> Tree:
    """``n`` trees of leaves ``[...]`` to one of ``[n, ...]``; leaves that are no tensors must agree."""
    leaves, rebuild = zip(*[flatten(output) for output in outputs], strict=True)
    trees = not all(isinstance(output, Tensor) for output in outputs)
    if trees and any(leaf_names(o) != leaf_names(outputs[0]) for o in outputs[1:]):
        raise StructureError(f"outputs: agents return different trees: {[leaf_names(o, 'y') for o in outputs]}")
    stacked: list[Any] = []
    for column in zip(*leaves, strict=True):
        shapes = [list(leaf.shape) if isinstance(leaf, Tensor) else plain(leaf) for leaf in column]
        if any(type(shape) is not type(shapes[0]) or shape != shapes[0] for shape in shapes):
            raise StructureError(f"outputs: agents return different shapes or values: {shapes}")
        stacked.append(torch.stack(column) if isinstance(column[0], Tensor) else column[0])
    return rebuild[0](stacked)
