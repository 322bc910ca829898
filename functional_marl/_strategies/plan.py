"""The plan, run: all agents through the steps that the module was lowered to."""

from __future__ import annotations

from torch import Tensor

from functional_marl._lowering import Plan, Run, Unsupported
from functional_marl._slots import gather_slots
from functional_marl._strategies.base import Call, Result
from functional_marl._torch_compat import hooked

__all__ = ["evaluate_plan"]


def evaluate_plan(call: Call, plan: Plan) -> Result:
    """All agents through the steps of the plan.

    Raises:
        Unsupported: the inputs are of a form that a step has no rule for.
    """
    n, inputs = call.net.n_agents, call.inputs
    if hooked():
        raise Unsupported("hooks for all modules are registered (torch.nn.modules.module.register_module_..._hook)")
    if not all(isinstance(leaf, Tensor) for leaf in inputs.leaves):
        raise Unsupported("the plan takes tensors")
    run = Run(n, call.params, call.state, call.key, call.net.randomness, call.train)
    if plan.cell is not None:
        args, kwargs = inputs.rebuild(
            [
                leaf.expand(n, *leaf.shape) if dim is None else leaf.movedim(dim, 0)
                for leaf, dim in zip(inputs.leaves, inputs.dims, strict=True)
            ]
        )
        try:
            outputs = plan.cell(run, *args, **kwargs)
        except TypeError as error:  # other arguments than the module takes: it says so itself
            raise Unsupported(str(error)) from None
    else:
        args, kwargs = inputs.rebuild(inputs.leaves)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise Unsupported("the plan takes one tensor")
        dim = inputs.dims[0]
        outputs, mapped = plan(run, args[0] if dim is None else args[0].movedim(dim, 0), dim is not None)
        outputs = outputs if mapped else outputs.expand(n, *outputs.shape)
    state = {k: gather_slots(b, call.net.state_sharing[k]).clone() for k, b in call.state.items()}
    return Result(outputs, state if call.mutable else {})
