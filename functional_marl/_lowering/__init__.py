"""From the module of one agent to steps that compute all agents at once: what the plan strategy runs.

Imports go down:

- ``plan``: a module to its plan.
- ``rules/``: one function a layer, one file a family.
- ``registry``: which rule a layer has, and how to add one.
- ``fusion``: linear layers in a row become one step. ``rows``: a layer over rows, for all agents.
- ``expected_leaves``: does a layer have the leaves that its class registers?
- ``steps``: what a rule returns; what a step takes and returns.
- ``linear_kernels``: batched products, and the size rules.
"""

from functional_marl._lowering.fusion import over_images as over_images
from functional_marl._lowering.plan import Plan as Plan
from functional_marl._lowering.plan import lower as lower
from functional_marl._lowering.registry import Context as Context
from functional_marl._lowering.registry import batching_rules as batching_rules
from functional_marl._lowering.registry import lowering_rule as lowering_rule
from functional_marl._lowering.steps import Layer as Layer
from functional_marl._lowering.steps import Run as Run
from functional_marl._lowering.steps import Step as Step

__all__ = [
    "Context",
    "Layer",
    "Plan",
    "Run",
    "Step",
    "batching_rules",
    "lower",
    "lowering_rule",
    "over_images",
]
