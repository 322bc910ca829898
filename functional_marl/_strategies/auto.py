"""Strategy "auto": the plan where there is one, else vmap, else the loop. And strategies that the user chooses."""

from __future__ import annotations

import torch

from functional_marl._errors import StructureError, Unsupported
from functional_marl._network_settings import NetworkSettings
from functional_marl._randomness.rng_state import RngStates, rng_states, set_rng_states
from functional_marl._strategies.base import (
    FALLBACK_ERRORS,
    FINAL_ERRORS,
    Call,
    Evaluator,
    Result,
    failure_of,
    sparse_layout,
)
from functional_marl._strategies.diagnostics import warn_of_loop
from functional_marl._strategies.loop import LoopEvaluator, evaluate_loop
from functional_marl._strategies.plan import PlanEvaluator
from functional_marl._strategies.vmap import VmapEvaluator

__all__ = ["STRATEGIES", "AutoEvaluator", "ChosenEvaluator", "NetworkEvaluator", "prepare", "supports"]


class AutoEvaluator(Evaluator):
    """The fastest strategy that can evaluate a call. If it fails, the next one."""

    name = "auto"

    def __init__(self, net: NetworkSettings, train: bool) -> None:
        self.plan = PlanEvaluator.prepare(net, train)
        self.vmap = VmapEvaluator.prepare(net, train)
        # Without a plan the module runs, and may sample random numbers in evaluation too.
        self.may_be_random = train or isinstance(self.plan, Unsupported)
        fastest = self.vmap if isinstance(self.plan, Unsupported) else self.plan
        if isinstance(fastest, Evaluator):
            self.fast_path = fastest.fast_path

    @classmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> AutoEvaluator:
        """Never unsupported: the loop evaluates every network."""
        return cls(net, train)

    def evaluate(self, call: Call) -> Result:
        """By the plan, vmap or the loop."""
        if sparse_layout(call) is not None:
            return LoopEvaluator().evaluate(call)
        tracing = torch.compiler.is_dynamo_compiling()
        # Restored before each fallback, so that a seed means the same whatever was tried.
        start: RngStates | None = None
        if self.may_be_random and call.key is None and not tracing:
            start = rng_states(call.tensors(), needed=False)
        if isinstance(self.plan, PlanEvaluator):
            result = _attempt(self.plan, call, start)
            if isinstance(result, Result):
                return result
        if isinstance(self.vmap, Unsupported):
            why = self.vmap.reason
            outputs = evaluate_loop(call)
        elif not tracing and (why := self.vmap.known_failure(call)):
            outputs = evaluate_loop(call)
        else:
            result = _attempt(self.vmap, call, start)
            if isinstance(result, Result):
                return result
            why = result.reason
            outputs = evaluate_loop(call)
            if not tracing:
                self.vmap.remember_failure(call, why)
        warn_of_loop(call.net, why)
        return outputs

    def describe(self) -> str:
        """The strategy that is tried first, and why no faster one."""
        no_plan = _reason(self.plan)
        if not no_plan:
            return "plan"
        no_vmap = _reason(self.vmap) or (self.vmap.failure if isinstance(self.vmap, VmapEvaluator) else "")
        return f"loop ({no_vmap})" if no_vmap else f"vmap (no plan: {no_plan})"


class ChosenEvaluator(Evaluator):
    """A strategy that the user chose by ``strategy=``: it evaluates the call or raises."""

    def __init__(self, name: str, evaluator: Evaluator | Unsupported) -> None:
        self.chosen, self.evaluator = name, evaluator
        if isinstance(evaluator, Evaluator):
            self.fast_path = evaluator.fast_path

    @classmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> ChosenEvaluator:
        """The strategy that the network names."""
        return cls(net.strategy, STRATEGIES[net.strategy].prepare(net, train))

    def evaluate(self, call: Call) -> Result:
        """By the chosen strategy.

        Raises:
            StructureError: it cannot evaluate the call.
        """
        result = self.evaluator if isinstance(self.evaluator, Unsupported) else self.evaluator.evaluate(call)
        if isinstance(result, Unsupported):
            raise StructureError(
                f'strategy="{self.chosen}": {result.reason}; use "auto", which uses another strategy, or "loop"'
            )
        return result

    def describe(self) -> str:
        """The name, or why the strategy cannot evaluate the network."""
        why = _reason(self.evaluator)
        return f"none ({self.chosen} is not possible: {why})" if why else self.chosen


STRATEGIES: dict[str, type[Evaluator]] = {
    "auto": AutoEvaluator,
    "loop": LoopEvaluator,
    "vmap": VmapEvaluator,
    "plan": PlanEvaluator,
}


NetworkEvaluator = AutoEvaluator | ChosenEvaluator


def supports(net: NetworkSettings, strategy: str) -> bool:
    """Whether a strategy can be prepared for a network in both modes."""
    return not any(isinstance(STRATEGIES[strategy].prepare(net, train), Unsupported) for train in (False, True))


def prepare(net: NetworkSettings, train: bool) -> NetworkEvaluator:
    """What evaluates the calls of a network in one mode."""
    return (AutoEvaluator if net.strategy == "auto" else ChosenEvaluator).prepare(net, train)


def _reason(evaluator: Evaluator | Unsupported) -> str:
    """Why a strategy can evaluate no call at this moment, or ""."""
    return evaluator.reason if isinstance(evaluator, Unsupported) else evaluator.unsupported_now()


def _attempt(evaluator: Evaluator, call: Call, start: RngStates | None) -> Result | Unsupported:
    """Evaluate; where that fails, restore the RNG states and return why.

    Raises:
        those of ``FINAL_ERRORS``; while dynamo traces, all errors.
    """
    try:
        result = evaluator.evaluate(call)
    except FALLBACK_ERRORS as error:
        if isinstance(error, FINAL_ERRORS) or torch.compiler.is_dynamo_compiling():
            raise
        result = Unsupported(failure_of(evaluator.name, error))
    if isinstance(result, Unsupported) and start is not None:
        set_rng_states(start)
    return result
