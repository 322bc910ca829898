"""How all agents are evaluated: the loop defines the meaning, the other ways are proved equal to it.

Each way is one function ``Call -> Result``.
"""

from functional_marl._strategies.base import Call as Call
from functional_marl._strategies.base import Result as Result
from functional_marl._strategies.loop import evaluate_loop as evaluate_loop
from functional_marl._strategies.plan import evaluate_plan as evaluate_plan
from functional_marl._strategies.vmap_fast_path import apply_directly as apply_directly
from functional_marl._strategies.vmap_support import evaluate_mapped as evaluate_mapped

__all__ = ["Call", "Result", "apply_directly", "evaluate_loop", "evaluate_mapped", "evaluate_plan"]
