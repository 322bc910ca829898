"""How all agents are evaluated. The loop defines the meaning; every other strategy is tested against it.

A strategy is a class of :class:`Evaluator`. Its ``prepare(net, train)`` gives an evaluator, or ``Unsupported(reason)``;
the evaluator's ``evaluate(call)`` gives a result, or ``Unsupported(reason)``.
"""

from functional_marl._strategies.auto import STRATEGIES as STRATEGIES
from functional_marl._strategies.auto import NetworkEvaluator as NetworkEvaluator
from functional_marl._strategies.auto import prepare as prepare
from functional_marl._strategies.auto import supports as supports
from functional_marl._strategies.base import Call as Call
from functional_marl._strategies.base import Evaluator as Evaluator
from functional_marl._strategies.base import Result as Result

__all__ = ["STRATEGIES", "Call", "Evaluator", "NetworkEvaluator", "Result", "prepare", "supports"]
