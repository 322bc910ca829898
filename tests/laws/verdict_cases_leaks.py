"""Wrong modules whose agents see or hear other agents than claimed, as people write them by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.verdict_cases_forms import ARROWS, LINE, Attention, Graph, Transformer, adjacency
from tests.laws.verdict_cases_right import Value, claim, mlp
from tests.laws.verdict_cases_wrong import Through, Wrong

__all__ = ["WRONG_LEAKS"]


class Reshaped(nn.Module):
    """Stacked weights; the input is viewed as ``[n, B, F]`` where it should be transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, f = x.shape
        return torch.bmm(x.reshape(n, b, f), self.w).reshape(b, n, -1)


class StackedThenViewed(nn.Module):
    """``[n, B, A]`` viewed as ``[B, n, A]``."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = nn.ModuleList([mlp() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([actor(x[:, i]) for i, actor in enumerate(self.actors)])
        return y.view(*x.shape[:2], -1)


class OverTeam(nn.Module):
    """In training each agent's value is taken relative to its team's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y - y.mean(dim=1, keepdim=True) if self.training else y


class Neighbours(nn.Module):
    """A convolution over the axis of agents."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 2, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Forgetful(nn.Module):
    """A critic of all agents but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :-1].flatten(1)).unsqueeze(1).expand(-1, 3, -1)


class SoftMask(nn.Module):
    """Scores of agents that are not heard are zero, and softmax gives them weight."""

    adj: Tensor

    def __init__(self, adj: Tensor) -> None:
        super().__init__()
        self.register_buffer("adj", adj + torch.eye(len(adj)))
        self.w, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.w(x)
        weights = (h @ h.transpose(1, 2) * self.adj).softmax(-1)
        return self.out(torch.relu(weights @ h))


NAMES = [f"agent_{i}" for i in range(11)]


class SortedNames(nn.Module):
    """Stacks observations by sorted names, where ``agent_10`` comes ahead of ``agent_2``."""

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList([mlp() for _ in range(1 if share else 11)])

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.stack([obs[name] for name in sorted(obs)], dim=1)
        y = [self.nets[i % len(self.nets)](x[:, i]) for i in range(11)]
        return dict(zip(obs, y, strict=True))


class WrongKey(nn.Module):
    """The second agent acts on the observation of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = nn.ModuleDict({name: mlp() for name in ("a", "b", "c")})

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        read = {"a": obs["a"], "b": obs["a"], "c": obs["c"]}
        return {name: self.actors[name](x) for name, x in read.items()}


_LINE: dict[str, Any] = {"n_agents": 5, "example": torch.zeros(4, 5, 6), "communication": LINE}


def _named(names: Sequence[str]) -> dict[str, Any]:
    return {"n_agents": len(names), "agents": list(names), "example": {name: torch.zeros(4, 6) for name in names}}


WRONG_LEAKS: dict[str, Wrong] = {
    "input viewed, not transposed": (
        Reshaped,
        claim("independent"),
        {
            "local_jacobian",
            "batch_is_a_loop",
            "independent_equivariance",
            "gradient_reaches_own_slot",
            "training_others_changes_nothing",
        },
        "a view as [n, B, F] mixes agents and rows of the batch",
    ),
    "output viewed, not transposed": (
        StackedThenViewed,
        claim("independent"),
        {
            "local_jacobian",
            "batch_is_a_loop",
            "independent_equivariance",
            "gradient_reaches_own_slot",
            "training_others_changes_nothing",
        },
        "rows of the outputs belong to other agents and rows of the batch",
    ),
    "softmax over agents": (
        lambda: Through(mlp(), after=lambda y: y.softmax(dim=1)),
        claim("shared"),
        {"local_jacobian"},
        "probabilities are normalised over agents, not over actions",
    ),
    "layer norm over agents": (
        lambda: Through(mlp(), before=nn.LayerNorm([3, 6], elementwise_affine=False)),
        claim("shared"),
        {"local_jacobian"},
        "mean and variance are those of the team",
    ),
    "relative to the team in training": (
        OverTeam,
        claim("shared"),
        {"local_jacobian"},
        "in training an agent's output depends on the others' observations of the same row",
    ),
    "a convolution over agents": (
        Neighbours,
        claim("shared"),
        {"local_jacobian", "shared_equivariance", "equal_inputs_equal_outputs", "cluster_equivariance"},
        "agents see their neighbours in the order",
    ),
    "attention, claimed local": (
        Attention,
        claim("shared"),
        {"local_jacobian"},
        "agents hear each other",
    ),
    "attention with positions": (
        lambda: Transformer(positions=True),
        claim("shared", communication=True),
        {"shared_equivariance", "equal_inputs_equal_outputs", "gradient_reaches_own_slot", "cluster_equivariance"},
        "each agent has a learned position, and no ids are claimed",
    ),
    "a critic that forgets an agent": (
        Forgetful,
        claim("shared", centralized=True),
        {"centralized_sees_all"},
        "the last agent's observation is cut off",
    ),
    "critics each, claimed one": (
        lambda: Value(False),
        claim("shared", centralized=True),
        {"gradient_reaches_own_slot", "centralized_rows_are_equal"},
        "each agent has a critic of its own",
    ),
    "one hop too many": (
        lambda: Graph(adjacency(LINE), 2),
        claim("shared", **_LINE),
        {"messages_follow_the_graph"},
        "two layers carry messages over two edges, and one round is claimed",
    ),
    "arrows the other way": (
        lambda: Graph(adjacency(ARROWS).T, 1),
        claim("shared", communication=ARROWS),
        {"messages_follow_the_graph"},
        "the adjacency is transposed: agents hear those that should hear them",
    ),
    "a soft mask": (
        lambda: SoftMask(adjacency(LINE)),
        claim("shared", **_LINE),
        {"messages_follow_the_graph"},
        "a score of zero is no mask: all agents get some weight",
    ),
    "names sorted, shared": (
        lambda: SortedNames(True),
        claim("shared", **_named(NAMES)),
        {"local_jacobian", "shared_equivariance"},
        "agent_2 gets the action for the observation of agent_10",
    ),
    "names sorted, independent": (
        lambda: SortedNames(False),
        claim("independent", **_named(NAMES)),
        {"local_jacobian"},
        "agent_2 gets the action for the observation of agent_10",
    ),
    "another agent's key": (
        WrongKey,
        claim("independent", **_named(["a", "b", "c"])),
        {"local_jacobian"},
        "agent b acts on the observation of agent a",
    ),
}
