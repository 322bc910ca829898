"""Multi-agent networks as pure functions. Sharing is data: which agent owns which copy of each parameter."""

import sys
from typing import TYPE_CHECKING

from functional_marl import nets as nets
from functional_marl import random as random
from functional_marl._apply import apply as apply
from functional_marl._errors import GroupingError as GroupingError
from functional_marl._errors import RandomnessError as RandomnessError
from functional_marl._errors import SharingError as SharingError
from functional_marl._errors import StrategyWarning as StrategyWarning
from functional_marl._errors import StructureError as StructureError
from functional_marl._groups.apply_groups import apply_groups as apply_groups
from functional_marl._groups.check_group_map import check_group_map as check_group_map
from functional_marl._groups.group_data import group_agents as group_agents
from functional_marl._groups.group_data import ungroup_agents as ungroup_agents
from functional_marl._groups.group_map import GroupMap as GroupMap
from functional_marl._groups.group_map import MarlGroupMapType as MarlGroupMapType
from functional_marl._groups.group_map import by_prefix as by_prefix
from functional_marl._groups.group_map import by_spec as by_spec
from functional_marl._groups.group_map import group_map as group_map
from functional_marl._init_params import init_params as init_params
from functional_marl._init_state import init_state as init_state
from functional_marl._layout.agent_ids import with_agent_ids as with_agent_ids
from functional_marl._network import Network as Network
from functional_marl._network import network as network
from functional_marl._parameters import agent_module as agent_module
from functional_marl._parameters import agent_params as agent_params
from functional_marl._parameters import combine as combine
from functional_marl._parameters import partition as partition
from functional_marl._parameters import reshare as reshare
from functional_marl._parameters import stack_agents as stack_agents
from functional_marl._parameters import unstack_agents as unstack_agents
from functional_marl._sharing import Sharing as Sharing
from functional_marl._tabulate import tabulate as tabulate
from functional_marl._tensordict import from_tensordict as from_tensordict
from functional_marl._tensordict import to_tensordict as to_tensordict
from functional_marl.random import fold_in as fold_in
from functional_marl.random import key as key
from functional_marl.random import split as split

if TYPE_CHECKING:
    from functional_marl import laws as laws
    from functional_marl import nn as nn

__version__ = "0.1.0"

__all__ = [
    "GroupMap",
    "GroupingError",
    "MarlGroupMapType",
    "Network",
    "RandomnessError",
    "Sharing",
    "SharingError",
    "StrategyWarning",
    "StructureError",
    "agent_module",
    "agent_params",
    "apply",
    "apply_groups",
    "by_prefix",
    "by_spec",
    "check_group_map",
    "combine",
    "fold_in",
    "from_tensordict",
    "group_agents",
    "group_map",
    "init_params",
    "init_state",
    "key",
    "nets",
    "network",
    "partition",
    "random",
    "reshare",
    "split",
    "stack_agents",
    "tabulate",
    "to_tensordict",
    "ungroup_agents",
    "unstack_agents",
    "with_agent_ids",
]


def __getattr__(name: str) -> object:
    if name in ("laws", "nn"):  # the facade needs tensordict, which takes a second to import
        import importlib

        return importlib.import_module(f"functional_marl.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "hypothesis" in sys.modules:  # if it is imported later, its entry point does this
    from functional_marl_plugins.hypothesis_plugin import register as _register

    _register()
