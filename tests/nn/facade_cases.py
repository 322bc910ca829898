"""Both libraries, and the common cases of tests of the facade."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchrl.envs.utils as rl_utils  # pyright: ignore[reportMissingTypeStubs]
import torchrl.modules as rl  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torchrl.modules.models import cross_group_critic as rl_critic  # pyright: ignore[reportMissingTypeStubs]
from torchrl.modules.models.multiagent import MultiAgentNetBase  # pyright: ignore[reportMissingTypeStubs]

import functional_marl.nn as fmnn

OURS: Any = fmnn
TORCHRL: Any = SimpleNamespace(
    MLP=rl.MLP,
    ConvNet=rl.ConvNet,
    MultiAgentMLP=rl.MultiAgentMLP,
    MultiAgentConvNet=rl.MultiAgentConvNet,
    MultiAgentNetBase=MultiAgentNetBase,
    VDNMixer=rl.VDNMixer,
    QMixer=rl.QMixer,
    CrossGroupCritic=rl_critic.CrossGroupCritic,
    CrossCriticGroupSpec=rl_critic.CrossCriticGroupSpec,
    MarlGroupMapType=rl_utils.MarlGroupMapType,
    check_marl_grouping=rl_utils.check_marl_grouping,
)
both = pytest.mark.parametrize("lib", [TORCHRL, OURS], ids=["torchrl", "ours"])
stored = pytest.mark.parametrize("td", [True, False], ids=["td_params", "template"])
shared = pytest.mark.parametrize("share", [True, False], ids=["shared", "independent"])
joint = pytest.mark.parametrize("centralized", [True, False], ids=["joint", "local"])


def mlp(lib: Any, **options: Any) -> Any:
    """A small MLP of three agents, initialized under a fixed seed."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"centralized": False, "share_params": False, "depth": 2, "num_cells": 8}
    return lib.MultiAgentMLP(6, 2, 3, **{**given, **options})


def cnn(lib: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {"centralized": False, "share_params": False, "in_features": 2, "num_cells": [4, 3]}
    return lib.MultiAgentConvNet(3, **{**given, "kernel_sizes": 3, **options})


class Plain(nn.Module):
    """Two linear layers with one weight, and a parameter that no reset fills."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.bare = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.bare


def subclass(lib: Any, build: Callable[[], nn.Module] = Plain) -> Any:
    """A subclass as torchrl's users write them: own attributes before ``super().__init__``."""

    class Net(lib.MultiAgentNetBase):
        def __init__(self, share: Any, agent_dim: int = -2, centralized: bool = False, **kwargs: Any) -> None:
            self.seen = 0
            super().__init__(
                n_agents=3, centralized=centralized, share_params=share, agent_dim=agent_dim, device=None, **kwargs
            )

        def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
            return build()

        def _pre_forward_check(self, inputs: Tensor) -> Tensor:
            if inputs.shape[self.agent_dim] != self.n_agents:
                raise ValueError(f"expected {self.n_agents} agents, got {inputs.shape}")
            self.seen += 1
            return inputs.flatten(self.agent_dim, self.agent_dim + 1) if self.centralized else inputs

    torch.manual_seed(0)
    return Net
