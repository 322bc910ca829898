"""More modules, right and wrong, that a stranger wrote or met: constants of agents, statistics, graphs, lists, ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.verdict_cases_right import OneEach, claim
from tests.laws.verdict_cases_wrong import Wrong

__all__ = ["RIGHT_MORE", "WRONG_MORE"]

X = torch.zeros(4, 3, 6)


class Scaled(nn.Module):
    """A network with the scale of its observations in a buffer that nothing writes."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(6) + 0.5)
        self.net = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / self.scale)


class WithTargets(nn.Module):
    """Actors, and target actors that are called under ``no_grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.actors, self.targets = OneEach(), OneEach()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.targets(x)
        return self.actors(x), target


class BehindOneNorm(nn.Module):
    """Own heads behind one batch norm with the batch and the agents folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.heads = nn.BatchNorm1d(6), OneEach()

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.norm(x.flatten(0, -2)).view_as(x))


class OverAGraph(nn.Module):
    """Messages by an adjacency that comes as an input: ``[B, n, 6], [B, n, n] -> [B, n, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.message = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.own(x) + adjacency @ torch.tanh(self.message(x))


class WithAFlag(nn.Module):
    """A flag that is no tensor: ``forward(x, deterministic=True)``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 2)

    def forward(self, x: Tensor, deterministic: bool = False) -> Tensor:
        return self.net(x) if deterministic else torch.distributions.Normal(self.net(x), 1.0).sample()


class Typed(nn.Module):
    """A learned embedding of two types of agents, for three agents."""

    types: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("types", torch.tensor([0, 0, 1]))
        self.embedding, self.net = nn.Embedding(2, 4), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.embedding(self.types).expand(*x.shape[:-1], 4)
        return self.net(torch.cat((x, codes), -1))


class GroupsOfTwoKinds(nn.Module):
    """One network a group: ``{"walker": [B, 2, 6], "runner": [B, 1, 4]}``."""

    def __init__(self) -> None:
        super().__init__()
        self.walker, self.runner = nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"walker": self.walker(given["walker"]), "runner": self.runner(given["runner"])}


class WithLogStd(nn.Module):
    """A mean, and a log standard deviation that is a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_std = nn.Linear(6, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.net(x)
        return mean, self.log_std.expand_as(mean)


class Squeezed(nn.Module):
    """Values without their last axis, and without the batch where it has one row."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x).squeeze()


def linear() -> nn.Module:
    return nn.Linear(6, 2)


GRAPH: dict[str, Any] = {"communication": True, "example": (X, torch.ones(4, 3, 3)), "agent_dim": (-2, "pairs")}
GROUPS: dict[str, Any] = {
    "sharing": {"walker.*": [0, 0, 1], "runner.*": [1, 1, 0]},
    "groups": {"walker": 2, "runner": 1},
    "example": {"walker": torch.zeros(4, 2, 6), "runner": torch.zeros(4, 1, 4)},
}
NORM: dict[str, str] = {"norm.*": "shared", "*": "independent"}

RIGHT_MORE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "own scales": (lambda: OneEach(Scaled), claim("independent")),
    "own targets": (WithTargets, claim("independent")),
    "one norm, own heads": (BehindOneNorm, claim(NORM)),
    "one norm, own heads, nothing claimed": (BehindOneNorm, claim(None)),
    "an adjacency as input": (OverAGraph, claim("shared", **GRAPH)),
    "a flag": (WithAFlag, claim("shared", kwargs={"deterministic": True})),
    "types of agents": (Typed, claim("shared", ids=True)),
    "groups, counted": (GroupsOfTwoKinds, GROUPS),
    "a log standard deviation": (WithLogStd, claim("shared")),
}

WRONG_MORE: dict[str, Wrong] = {
    "own networks with ids, said shared": (
        OneEach,
        claim("shared", ids=True),
        {"gradient_reaches_own_slot"},
        "Whole networks are no ids.",
    ),
    "ids that are not used": (
        linear,
        claim("shared", ids=True),
        {"ids_tell_agents_apart"},
        "Equal inputs give equal outputs: nothing tells agents apart.",
    ),
    "squeezed": (
        Squeezed,
        claim("shared"),
        {"batch_is_a_loop"},
        "With one environment the batch axis is gone.",
    ),
    "one norm, said independent": (
        BehindOneNorm,
        claim("independent"),
        {"gradient_reaches_own_slot", "training_others_changes_nothing", "local_jacobian"},
        "The norm is of all agents.",
    ),
}
