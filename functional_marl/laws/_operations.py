"""The operations that the laws are about; a mutant replaces one by a wrong one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from functional_marl._apply import apply
from functional_marl._groups.group_data import group_agents, ungroup_agents
from functional_marl._groups.group_map import group_map
from functional_marl._init_params import init_params
from functional_marl._init_state import init_state
from functional_marl._layout.agent_ids import with_agent_ids
from functional_marl._network import Network, network
from functional_marl._parameters import (
    agent_module,
    agent_params,
    combine,
    partition,
    reshare,
    stack_agents,
    unstack_agents,
)
from functional_marl._sharing import resolve
from functional_marl.random import fold_in, split
from functional_marl.random import key as make_key

__all__ = ["LIBRARY", "Operations"]

Op = Callable[..., Any]


def _copied(net: Network) -> Network:
    return pickle.loads(pickle.dumps(net))


# The facade needs tensordict, which takes a second to import: imported where it is used.


def _facade(kind: str, n_agents: int, lazy: bool, **words: Any) -> nn.Module:
    from functional_marl import nn as fmnn

    if kind == "mlp":
        return fmnn.MultiAgentMLP(None if lazy else 4, 2, n_agents, **words)
    return fmnn.MultiAgentConvNet(n_agents, in_features=None if lazy else 2, **words)


def _critic(groups: Sequence[tuple[int, int]], detached: Sequence[int], share_params: bool) -> nn.Module:
    from functional_marl import nn as fmnn

    specs = {
        f"g{k}": fmnn.CrossCriticGroupSpec(features, n, (f"g{k}", "seen"), (f"g{k}", "value"))
        for k, (n, features) in enumerate(groups)
    }
    how: dict[str, Any] = {"d_model": 5, "trunk_depth": 1, "trunk_cells": 6}
    return fmnn.CrossGroupCritic(specs, **how, share_params=share_params, detach_groups=[f"g{k}" for k in detached])


def _convert_state_dict(*args: Any, **how: Any) -> dict[str, Any]:
    from functional_marl import nn as fmnn

    return fmnn.convert_state_dict(*args, **how)


def _from_functional(*args: Any, **how: Any) -> nn.Module:
    from functional_marl import nn as fmnn

    return fmnn.from_functional(*args, **how)


@dataclass(frozen=True)
class Operations:
    """The public functions that laws call on our own networks. A mutant has a wrong one in the place of one."""

    network: Op = network
    apply: Op = apply
    init_params: Op = init_params
    init_state: Op = init_state
    stack_agents: Op = stack_agents
    unstack_agents: Op = unstack_agents
    agent_params: Op = agent_params
    agent_module: Op = agent_module
    reshare: Op = reshare
    partition: Op = partition
    combine: Op = combine
    resolve: Op = resolve
    key: Op = make_key
    split: Op = split
    fold_in: Op = fold_in
    with_agent_ids: Op = with_agent_ids
    group_map: Op = group_map
    group_agents: Op = group_agents
    ungroup_agents: Op = ungroup_agents
    copied: Op = _copied  # through pickle
    facade: Op = _facade
    critic: Op = _critic
    convert_state_dict: Op = _convert_state_dict
    from_functional: Op = _from_functional
    optimizer: Op = torch.optim.Adam


LIBRARY = Operations()
