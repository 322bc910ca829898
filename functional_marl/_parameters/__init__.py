"""Parameters as values: of one agent, stacked from agents, under another sharing, in parts.

Params are a flat dict from dotted names to tensors ``[S, *leaf]``, in ``named_parameters`` order. The state
(buffers) has the same form, and every function here that takes params takes a state too.
"""

from functional_marl._parameters.agents import agent_module as agent_module
from functional_marl._parameters.agents import agent_params as agent_params
from functional_marl._parameters.agents import unstack_agents as unstack_agents
from functional_marl._parameters.merging import Merge as Merge
from functional_marl._parameters.parts import combine as combine
from functional_marl._parameters.parts import partition as partition
from functional_marl._parameters.resharing import reshare as reshare
from functional_marl._parameters.stacking import stack_agents as stack_agents

__all__ = [
    "Merge",
    "agent_module",
    "agent_params",
    "combine",
    "partition",
    "reshare",
    "stack_agents",
    "unstack_agents",
]
