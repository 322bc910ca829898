"""The loop over agents: what every network means. It shares no code with the faster ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functional_marl.errors import StructureError
from functional_marl.evaluate.call import Call, Result
from functional_marl.modes import Guard, run_keyed
from functional_marl.skeleton import written
from functional_marl.trees import Tree, flatten

__all__ = ["evaluate_loop"]


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


def _stack_outputs(outputs: list[Tree]) -> Tree:
    """``n`` trees of leaves ``[...]`` to one of ``[n, ...]``; leaves that are no tensors must agree."""
    leaves, rebuild = zip(*[flatten(output) for output in outputs], strict=True)
    stacked: list[Any] = []
    for column in zip(*leaves, strict=True):
        if isinstance(column[0], Tensor):
            stacked.append(torch.stack(column))
        elif all(leaf == column[0] for leaf in column):
            stacked.append(column[0])
        else:
            raise StructureError(f"outputs: agents return different values that are no tensors: {list(column)}")
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
