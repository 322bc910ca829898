"""From the module of one agent to batched steps: what the plan strategy runs.

Imports go down: ``plan`` (straight-line modules to steps) -> ``ordinary`` (is a layer as its class makes it) ->
``attention``, ``cells``, ``layers`` (one rule a layer) -> ``steps`` (what a step gets and gives) -> ``dense`` (runs
of linear layers, the size rules). ``direct`` is the commonest plan with all decisions taken ahead.
"""

from functional_marl._lowering.dense import gather_slots as gather_slots
from functional_marl._lowering.dense import index_tensor as index_tensor
from functional_marl._lowering.plan import Images as Images
from functional_marl._lowering.plan import Plan as Plan
from functional_marl._lowering.plan import lower as lower
from functional_marl._lowering.plan import register_container as register_container
from functional_marl._lowering.plan import register_rewrite as register_rewrite
from functional_marl._lowering.steps import Run as Run

__all__ = [
    "Images",
    "Plan",
    "Run",
    "gather_slots",
    "index_tensor",
    "lower",
    "register_container",
    "register_rewrite",
]
