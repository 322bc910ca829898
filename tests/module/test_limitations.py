"""Modules that cannot be the module of one agent."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
import functional_marl.nn as fnn
from functional_marl.nn import MultiAgentMLP
from tests.builders import N
from tests.nn.facade_cases import OURS, stored, subclass


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit itself is on its way out
        scripted = torch.jit.script(nn.Linear(4, 2))
    with pytest.raises(fm.StructureError, match="TorchScript"):
        fm.network(lambda: scripted, N)


class Squad(nn.Module):
    """One agent that is a team of three: the parameters of the team are its own."""

    def __init__(self, team: Any) -> None:
        super().__init__()
        self.net, params, _ = team.functional()
        self.names = list(params)
        self.leaves = nn.ParameterList(params.values())

    def forward(self, x: Tensor) -> Tensor:
        return fm.apply(self.net, dict(zip(self.names, self.leaves, strict=True)), x)


@pytest.mark.parametrize("td", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_a_team_is_no_agent_but_its_functional_form_is(share: bool, td: bool) -> None:
    def team() -> Any:
        return fnn.MultiAgentMLP(4, 2, 3, centralized=False, share_params=share, depth=1, use_td_params=td)

    for build, where in ((team, "the module"), (lambda: nn.Sequential(nn.Tanh(), team()), "1")):
        for given in (build, build()):
            with pytest.raises(fm.StructureError, match=rf"build: {where} \(MultiAgentMLP\) is a network of several"):
                fm.network(given, 2)
    for strategy in ("auto", "vmap", "loop"):
        net = fm.network(lambda: Squad(team()), 2, agent_dim=0, strategy=strategy)
        params, x = fm.init_params(net, 0), torch.randn(2, 5, 3, 4)
        wanted = [fm.agent_module(net, params, i)(x[i]) for i in range(2)]
        torch.testing.assert_close(fm.apply(net, params, x), torch.stack(wanted).detach())


@stored
@pytest.mark.parametrize("share", [True, False, [0, 0, 1]], ids=str)
def test_a_team_as_the_module_of_one_agent_is_refused(td: bool, share: Any) -> None:
    def build() -> nn.Module:
        return nn.Sequential(MultiAgentMLP(6, 2, 3, centralized=False, share_params=share, use_td_params=td, depth=1))

    for give in (build, build()):
        with pytest.raises(fm.StructureError, match=r"cannot be the module of one agent.*share_params=\[0, 0, 0, 1"):
            fm.network(give, n_agents=2, agent_dim=1)
    with pytest.raises(fm.StructureError, match=r"_build_single_net: .*cannot be the module of one agent"):
        subclass(OURS, build)(share)
    copy.deepcopy(build())
