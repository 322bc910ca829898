"""Strategy "plan": all agents through the batched steps that the module was lowered to."""

from __future__ import annotations

from torch import Tensor

from functional_marl._errors import Unsupported
from functional_marl._gather_slots import gather_slots
from functional_marl._lowering import Plan, Run, lower
from functional_marl._network_settings import NetworkSettings
from functional_marl._strategies.base import Call, Evaluator, Result, sparse_reason
from functional_marl._strategies.plan_fast_path import PlanFastPath
from functional_marl._torch_compat import has_global_hooks

__all__ = ["PlanEvaluator"]


class PlanEvaluator(Evaluator):
    """The plan of a module made of known layers."""

    name = "plan"

    def __init__(self, net: NetworkSettings, plan: Plan) -> None:
        self.plan = plan
        fast = PlanFastPath.of(net, plan)
        if fast is not None:
            self.fast_path = fast

    @classmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> PlanEvaluator | Unsupported:
        """Lower the module; a part without a rule is the reason why there is no plan."""
        slots = {**net.sharing, **net.state_sharing}
        try:
            return cls(net, lower(net.module_spec, slots, net.n_agents, train))
        except Unsupported as why:
            return why

    def evaluate(self, call: Call) -> Result | Unsupported:
        """All agents through the steps; unsupported where a step has no rule for inputs of this form."""
        why = sparse_reason(call) or self.unsupported_now()
        if why:
            return Unsupported(why)
        if not all(isinstance(leaf, Tensor) for leaf in call.inputs.leaves):
            return Unsupported("the plan takes tensors")
        try:
            outputs = self._several(call) if self.plan.cell is not None else self._one(call)
        except Unsupported as why:
            return why
        if not call.mutable:
            return Result(outputs, {})
        sharing = call.net.state_sharing
        return Result(outputs, {name: gather_slots(b, sharing[name]).clone() for name, b in call.state.items()})

    def unsupported_now(self) -> str:
        """Whether hooks for all modules are registered: the plan calls no module."""
        hooks = "hooks for all modules are registered (torch.nn.modules.module.register_module_..._hook)"
        return hooks if has_global_hooks() else ""

    def _several(self, call: Call) -> object:
        """A whole network of several inputs and outputs, each input ``[n, ...]``."""
        n, inputs = call.net.n_agents, call.inputs
        args, kwargs = inputs.rebuild(
            [
                leaf.expand(n, *leaf.shape) if dim is None else leaf.movedim(dim, 0)
                for leaf, dim in zip(inputs.leaves, inputs.dims, strict=True)
            ]
        )
        assert self.plan.cell is not None
        try:
            return self.plan.cell(_run(call), *args, **kwargs)
        except TypeError as error:  # other arguments than the module takes: its own error is the clearer one
            raise Unsupported(str(error)) from None

    def _one(self, call: Call) -> Tensor:
        """The steps, from one input ``[n, ...]`` or one that all agents see whole."""
        args, kwargs = call.inputs.rebuild(call.inputs.leaves)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise Unsupported("the plan takes one tensor")
        dim = call.inputs.dims[0]
        h, mapped = self.plan(_run(call), args[0] if dim is None else args[0].movedim(dim, 0), dim is not None)
        return h if mapped else h.expand(call.net.n_agents, *h.shape)


def _run(call: Call) -> Run:
    return Run(call.net.n_agents, call.params, call.state, call.key, call.net.randomness, call.train)
