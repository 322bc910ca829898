"""The plan, run: all agents through the steps that the module was lowered to."""

from __future__ import annotations

from torch import Tensor

from functional_marl.evaluate.call import Call, Result
from functional_marl.lowering import Plan, Run, Unlowered, gather_slots

__all__ = ["evaluate_plan"]


def evaluate_plan(call: Call, plan: Plan) -> Result:
    """All agents through the steps of the plan.

    Raises:
        Unlowered: the inputs are not one tensor, or of a form that a step has no rule for.
    """
    (args, kwargs), dims = call.inputs.rebuild(call.inputs.leaves), call.inputs.dims
    if len(args) != 1 or kwargs or len(dims) != 1 or not isinstance(args[0], Tensor):
        raise Unlowered("the plan takes one tensor")
    run = Run(call.net.n_agents, call.params, call.state, call.key, call.net.randomness, call.train)
    mapped = dims[0] is not None
    out, mapped = plan(run, args[0].movedim(dims[0], 0) if dims[0] is not None else args[0], mapped)
    state = {k: gather_slots(b, call.net.state_sharing[k]).clone() for k, b in call.state.items()}
    return Result(out if mapped else out.expand(run.n_agents, *out.shape), state if call.mutable else {})
