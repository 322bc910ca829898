"""Right modules without messages, as people write them: networks, critics, ids, norms, dicts, draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RIGHT_LOCAL", "Heads", "Normalised", "OneEach", "Roles", "Value", "X", "claim", "mlp"]

X = torch.zeros(4, 3, 6)


def claim(sharing: Any = None, **more: Any) -> dict[str, Any]:
    return {"n_agents": 3, "sharing": sharing, "example": X, **more}


def mlp(inputs: int = 6, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


# --- networks ---------------------------------------------------------------------------------------------


class Actor(nn.Module):
    """MAPPO's actor: norm of the features, two orthogonal layers, a small last one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.fc1, self.fc2, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        for layer in (self.fc1, self.fc2, self.out):
            nn.init.orthogonal_(layer.weight, 0.01 if layer is self.out else 2**0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc2(F.relu(self.fc1(self.norm(x))))))


class OneEach(nn.Module):
    """A list of networks, one an agent."""

    def __init__(self, build: Callable[[], nn.Module] = mlp) -> None:
        super().__init__()
        self.actors = nn.ModuleList([build() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([actor(obs) for actor, obs in zip(self.actors, x.unbind(1), strict=True)], 1)


class Roles(nn.Module):
    """One network a role."""

    def __init__(self, roles: Sequence[str] = ("scout", "scout", "tank")) -> None:
        super().__init__()
        self.roles = list(roles)
        self.nets = nn.ModuleDict({role: mlp() for role in sorted(set(roles))})

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.nets[role](x[:, i]) for i, role in enumerate(self.roles)], dim=1)


class Heads(nn.Module):
    """One trunk, one head an agent."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.ELU())
        self.heads = nn.ModuleList([nn.Linear(8, 2) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return torch.stack([head(h[:, i]) for i, head in enumerate(self.heads)], dim=1)


class Batched(nn.Module):
    """Independent networks as one batched product over stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(3, 6, 8) * 0.4)
        self.b1 = nn.Parameter(torch.zeros(3, 1, 8))
        self.w2 = nn.Parameter(torch.randn(3, 8, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.baddbmm(self.b1, x.transpose(0, 1), self.w1).relu()
        return torch.bmm(h, self.w2).transpose(0, 1)


class Convolution(nn.Module):
    """Images of all agents as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        return self.conv(x.reshape(b * n, *x.shape[2:])).reshape(b, n, -1)


class Cells(nn.Module):
    """Agents that see the number of their cell."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(10, 6), mlp()

    def forward(self, cell: Tensor) -> Tensor:
        return self.net(self.embed(cell))


class Experts(nn.Module):
    """A mixture of experts with a gate; agents share all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList([mlp() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        found = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (found * weights.unsqueeze(-2)).sum(-1)


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


class Novelty(nn.Module):
    """Random network distillation: the target is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor, self.target = mlp(6, 4), mlp(6, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target(x)
        return (self.predictor(x) - target).pow(2).mean(-1, keepdim=True)


# --- critics ----------------------------------------------------------------------------------------------


class Value(nn.Module):
    """A value of the joint observation for each agent."""

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList([mlp(18, 1) for _ in range(1 if share else 3)])

    def forward(self, x: Tensor) -> Tensor:
        joint = x.flatten(1)
        values = [net(joint) for net in self.nets]
        return torch.stack(values * (3 // len(values)), dim=1)


class DeepSets(nn.Module):
    """A critic that pools the agents."""

    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = mlp(6, 8), mlp(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        value = self.rho(self.phi(x).mean(dim=1))
        return value.unsqueeze(1).expand(-1, x.shape[1], -1)


class Mixer(nn.Module):
    """QMIX: a monotone mixture of the agents' values, with weights from the state."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Linear(5, 3 * 4), nn.Linear(5, 4)
        self.w2, self.b2 = nn.Linear(5, 4), mlp(5, 1)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        w1 = self.w1(state).abs().view(-1, 3, 4)
        h = F.elu(torch.bmm(q.unsqueeze(1), w1).squeeze(1) + self.b1(state))
        return (h * self.w2(state).abs()).sum(-1, keepdim=True) + self.b2(state)


# --- ids --------------------------------------------------------------------------------------------------


class OneHot(nn.Module):
    """A shared network that appends one-hot ids itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6 + 3)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.eye(3, dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)
        return self.net(torch.cat([x, ids], dim=-1))


class KeepsIds(nn.Module):
    """The same; ids are made once for a size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6 + 3)
        self.ids: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ids is None or len(self.ids) != len(x):
            self.ids = torch.eye(3, device=x.device).repeat(len(x), 1, 1)
        return self.net(torch.cat([x, self.ids], dim=-1))


class Embedded(nn.Module):
    """A shared network with learned embeddings of the agents."""

    def __init__(self, add: bool) -> None:
        super().__init__()
        self.add = add
        self.embed = nn.Embedding(3, 8 if add else 4)
        self.first, self.net = nn.Linear(6, 8), mlp(8 if add else 12)

    def forward(self, x: Tensor) -> Tensor:
        ids = self.embed(torch.arange(3, device=x.device)).expand(x.shape[0], -1, -1)
        h = self.first(x).relu()
        return self.net(h + ids if self.add else torch.cat([h, ids], dim=-1))


class Hyper(nn.Module):
    """A network that makes each agent's weights from its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.weight, self.bias = nn.Linear(4, 6 * 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight(self.embed.weight).view(3, 6, 2)
        return torch.einsum("bni,nio->bno", x, w) + self.bias(self.embed.weight)


# --- norms ------------------------------------------------------------------------------------------------


class Folded(nn.Module):
    """A shared network with a batch norm that takes agents as rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Normalised(nn.Module):
    """Observations by the running mean and variance of all agents, then one network."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.register_buffer("count", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                rows = x.reshape(-1, 6)
                self.count += len(rows)
                step = len(rows) / self.count
                self.mean += (rows.mean(0) - self.mean) * step
                self.var += ((rows - self.mean).pow(2).mean(0) - self.var) * step
        return self.net((x - self.mean) / (self.var + 1e-5).sqrt())


def norm_each() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(2))


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2))


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))


class Noisy(nn.Module):
    """A noisy layer: one draw of its weights a call in training, for all agents."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.full((2, 6), 0.5))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mu + self.sigma * torch.randn_like(self.mu) if self.training else self.mu
        return F.linear(x, weight, self.bias)


RIGHT_LOCAL: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mappo actor": (Actor, claim("shared")),
    "one network each": (OneEach, claim("independent", single=mlp)),
    "roles": (Roles, claim([0, 0, 1])),
    "trunk and list of heads": (Heads, claim({"trunk.*": "shared", "heads.*": "independent"})),
    "stacked weights": (Batched, claim("independent")),
    "images": (Convolution, claim("shared", example=torch.zeros(4, 3, 2, 5, 5), agent_dim=1)),
    "cells": (Cells, claim("shared", example=torch.arange(12).reshape(4, 3) % 10, agent_dim=-1)),
    "mixture of experts": (Experts, claim("shared")),
    "tied weights": (Tied, claim("shared")),
    "a target that is not trained": (Novelty, claim("shared")),
    "one critic of all": (lambda: Value(True), claim("shared", centralized=True)),
    "a critic each": (lambda: Value(False), claim("independent", centralized=True)),
    "deep sets": (DeepSets, claim("shared", centralized=True)),
    "qmix mixer": (
        Mixer,
        claim(
            centralized=True, example=(torch.zeros(4, 3), torch.zeros(4, 5)), agent_dim=(-1, None), out_agent_dim=None
        ),
    ),
    "one-hot ids": (OneHot, claim("shared", ids=True)),
    "one-hot ids, made once": (KeepsIds, claim("shared", ids=True)),
    "embedding added": (lambda: Embedded(True), claim("shared", ids=True)),
    "embedding appended": (lambda: Embedded(False), claim("shared", ids=True)),
    "hypernetwork": (Hyper, claim("shared", ids=True)),
    "batch norm over all agents": (Folded, claim("shared")),
    "batch norm each": (lambda: OneEach(norm_each), claim("independent")),
    "running normaliser": (lambda: Normalised(mlp()), claim("shared")),
    "lazy layers": (lazy, claim("shared")),
    "lazy layers each": (lambda: OneEach(lazy), claim("independent")),
    "spectral norm": (spectral, claim("shared")),
    "dropout": (dropout_mlp, claim("shared", randomness="different")),
    "dropout each": (lambda: OneEach(dropout_mlp), claim("independent", randomness="different")),
    "noisy layer": (Noisy, claim("shared", randomness="same")),
}
