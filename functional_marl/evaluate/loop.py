"""The loop over agents: what every network means. It shares no code with the faster ways."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from functional_marl.errors import StructureError
from functional_marl.evaluate.call import Call, Result
from functional_marl.modes import Guard, run_keyed
from functional_marl.skeleton import written
from functional_marl.trees import Tree, flatten, leaf_names

__all__ = ["buffers_changed", "evaluate_loop", "plain"]

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.Size)


def evaluate_loop(call: Call) -> Result:
    """Agent ``i`` computes ``module(params[leaf][slot[leaf][i]], x_i)``, one after the other."""
    outputs: list[Tree] = []
    buffers: list[dict[str, Tensor]] = []
    start = _rng_states(call) if call.key is None and call.net.randomness == "same" else None
    for agent in range(call.net.n_agents):
        if start is not None:
            _restore(start)
        try:
            output, after = _one_agent(call, agent)
        except Exception as error:
            if not torch.compiler.is_dynamo_compiling():
                error.add_note(f"functional_marl: while evaluating agent {agent} of {call.net.n_agents}")
            raise
        outputs.append(output)
        buffers.append(after)
    state = {name: torch.stack([b[name] for b in buffers]) for name in call.state} if call.mutable else {}
    return Result(_stack_outputs(outputs), state)


def _one_agent(call: Call, agent: int) -> tuple[Tree, dict[str, Tensor]]:
    net = call.net
    params = {name: leaf[net.sharing[name][agent]] for name, leaf in call.params.items()}
    before = {name: leaf[net.state_sharing[name][agent]].clone() for name, leaf in call.state.items()}
    args, kwargs = call.inputs.of_agent(agent)
    after = dict(before)

    def run() -> Any:
        return net.template.call(params, after, args, kwargs, call.train)

    if call.key is not None:
        stream = agent if net.randomness == "different" else 0
        output = run_keyed(run, call.key, stream, net.randomness == "error")
    elif net.randomness == "error" and not torch.compiler.is_dynamo_compiling():
        with Guard('randomness="error" forbids it; choose "same" or "different", or train=False'):
            output = run()
    else:
        output = run()
    if not call.mutable:
        # The clones are this call's own: a write shows in the version of the tensor, or as another tensor.
        changed = [name for name in before if after[name] is not before[name] or written(before[name])]
        if changed:
            raise StructureError(buffers_changed(changed))
    return output, after


def buffers_changed(names: list[str]) -> str:
    """The message for a module that writes into its buffers where nobody takes the new ones."""
    return (
        f"state: the module changed its buffers {names} and apply would lose them; take the new state, "
        "y, state = apply(..., state=state, mutable=True), or call with train=False"
    )


def plain(leaf: Any) -> Any:
    """A leaf of an output that is no tensor, if it is one that cannot hold a tensor either.

    Raises:
        StructureError: it may; of a distribution or a dataclass vmap would give what it maps inside.
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
    if not isinstance(outputs[0], Tensor) and any(leaf_names(o) != leaf_names(outputs[0]) for o in outputs[1:]):
        raise StructureError(f"outputs: agents return different trees: {[leaf_names(o, 'y') for o in outputs]}")
    stacked: list[Any] = []
    for column in zip(*leaves, strict=True):
        shapes = [list(leaf.shape) if isinstance(leaf, Tensor) else plain(leaf) for leaf in column]
        if any(type(shape) is not type(shapes[0]) or shape != shapes[0] for shape in shapes):
            raise StructureError(f"outputs: agents return different shapes or values: {shapes}")
        stacked.append(torch.stack(column) if isinstance(column[0], Tensor) else column[0])
    return rebuild[0](stacked)


def _rng_states(call: Call) -> dict[torch.device, Tensor]:
    """The states of the global generators that the module may draw from."""
    devices = {leaf.device for leaf in call.inputs.leaves if isinstance(leaf, Tensor)} | {torch.device("cpu")}
    states = {torch.device("cpu"): torch.get_rng_state()}
    return states | {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}


def _restore(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
