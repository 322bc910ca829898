"""Wrong modules whose agents share something else than claimed, as people write them by mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.verdict_cases_right import Heads, Normalised, OneEach, Roles, claim, mlp

__all__ = ["WRONG_SHARING", "Through", "Wrong"]

Wrong = tuple[Callable[[], nn.Module], dict[str, Any], set[str], str]


class Through(nn.Module):
    """A network with something in front of it and behind it."""

    def __init__(
        self, net: nn.Module, *, before: nn.Module | None = None, after: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.before, self.net, self.after = before or nn.Identity(), net, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(self.before(x))
        return y if self.after is None else self.after(y)


# --- who shares what --------------------------------------------------------------------------------------


class OneNorm(nn.Module):
    """Networks of their own behind one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.each = nn.BatchNorm1d(6, affine=False), OneEach()

    def forward(self, x: Tensor) -> Tensor:
        return self.each(self.norm(x.flatten(0, 1)).view_as(x))


class Repeated(nn.Module):
    """``[net] * n``: one network under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = nn.ModuleList([mlp()] * 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([actor(x[:, i]) for i, actor in enumerate(self.actors)], dim=1)


class Deepcopied(nn.Module):
    """Copies of one network, made at the start."""

    def __init__(self) -> None:
        super().__init__()
        net = mlp()
        self.actors = nn.ModuleList([copy.deepcopy(net) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([actor(x[:, i]) for i, actor in enumerate(self.actors)], dim=1)


class OtherInTraining(nn.Module):
    """Training takes the network of agent 0 for agent 2."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = nn.ModuleList([mlp() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        order = [0, 1, 0] if self.training else [0, 1, 2]
        return torch.stack([self.actors[k](x[:, i]) for i, k in enumerate(order)], dim=1)


class OwnBias(nn.Module):
    """A shared network and a bias for each agent, zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.bias = mlp(), nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.bias


class QuietIds(nn.Module):
    """Appends the index of the agent."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(7)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(3, dtype=x.dtype).view(1, 3, 1).expand(len(x), -1, -1)
        return self.net(torch.cat([x, index / 3], dim=-1))


class OffByOne(nn.Module):
    """Two groups of networks, and the division that is one off: 0, 1, 1 instead of 0, 0, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList([mlp(), mlp()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.nets[(i + 1) // 2](x[:, i]) for i in range(3)], dim=1)


class OthersFrozen(nn.Module):
    """Only agent 0 learns: the others were put under no_grad to save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            others = self.net(x[:, 1:])
        return torch.cat([self.net(x[:, :1]), others], dim=1)


def clipped(y: Tensor) -> Tensor:
    """The gradient of the team clipped to one norm."""
    if y.requires_grad:
        y.register_hook(lambda g: g * (0.1 / g.norm()).clamp(max=1.0))
    return y


class SameMask(nn.Module):
    """``Dropout1d`` over ``[B, F, n]`` drops a feature of all agents at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(6, 32), nn.Dropout1d(0.5), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.first(x).transpose(1, 2)).transpose(1, 2)
        return self.out(h)


WRONG_SHARING: dict[str, Wrong] = {
    "one batch norm before networks of their own": (
        OneNorm,
        claim("independent"),
        {"training_others_changes_nothing", "local_jacobian"},
        "all agents' data go into one mean and variance, which every agent's evaluation uses",
    ),
    "one running normaliser before networks of their own": (
        lambda: Normalised(OneEach()),
        claim("independent"),
        {"training_others_changes_nothing", "local_jacobian"},
        "the running mean is of all agents' observations",
    ),
    "one network three times": (
        Repeated,
        claim("independent"),
        {"gradient_reaches_own_slot", "slots_differ", "training_others_changes_nothing"},
        "the list holds one network under three names",
    ),
    "deepcopies": (
        Deepcopied,
        claim("shared"),
        {"gradient_reaches_own_slot", "tied_agents_stay_tied"},
        "agents start alike and are trained apart",
    ),
    "another network in training": (
        OtherInTraining,
        claim("independent"),
        {
            "independent_equivariance",
            "gradient_reaches_own_slot",
            "training_others_changes_nothing",
            "equal_inputs_equal_outputs",
        },
        "in training agent 2 uses, and trains, the network of agent 0; its own learns nothing",
    ),
    "a bias of their own": (
        OwnBias,
        claim("shared"),
        {"gradient_reaches_own_slot", "tied_agents_stay_tied"},
        "each agent trains a bias that the others do not have",
    ),
    "ids not said": (
        QuietIds,
        claim("shared"),
        {"shared_equivariance", "equal_inputs_equal_outputs", "cluster_equivariance", "agents_are_networks"},
        "the index of the agent is an input, so that equal observations give different outputs",
    ),
    "clusters one off": (
        OffByOne,
        claim([0, 0, 1]),
        {"gradient_reaches_own_slot", "equal_inputs_equal_outputs", "cluster_equivariance", "tied_agents_stay_tied"},
        "agent 1 is in the group of agent 2",
    ),
    "a trunk, claimed each": (
        Heads,
        claim("independent"),
        {"gradient_reaches_own_slot", "independent_equivariance", "training_others_changes_nothing"},
        "all agents train the trunk",
    ),
    "roles, claimed each": (
        Roles,
        claim("independent"),
        {"independent_equivariance", "gradient_reaches_own_slot", "training_others_changes_nothing"},
        "the two scouts have one network",
    ),
    "others without gradient": (
        OthersFrozen,
        claim("shared"),
        {"gradient_reaches_own_slot"},
        "the losses of agents 1 and 2 train nothing",
    ),
    "the gradient of the team clipped": (
        lambda: Through(OneEach(), after=clipped),
        claim("independent"),
        {"slot_gradient_is_the_sum"},
        "an agent's gradient depends on the other agents' losses",
    ),
    "one mask for all": (
        SameMask,
        claim("shared", randomness="different"),
        {"randomness_has_one_meaning"},
        "a feature is dropped for all agents at once",
    ),
}
