"""How all agents are evaluated: the loop defines the meaning, the other ways are proved equal to it.

Each way is one function ``Call -> Result``.
"""

from functional_marl.evaluate.call import Call as Call
from functional_marl.evaluate.call import Result as Result
from functional_marl.evaluate.direct import apply_directly as apply_directly
from functional_marl.evaluate.loop import evaluate_loop as evaluate_loop
from functional_marl.evaluate.mapped import evaluate_mapped as evaluate_mapped
from functional_marl.evaluate.plan import evaluate_plan as evaluate_plan

__all__ = ["Call", "Result", "apply_directly", "evaluate_loop", "evaluate_mapped", "evaluate_plan"]
