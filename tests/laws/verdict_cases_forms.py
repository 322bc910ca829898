"""Right modules that exchange messages, keep a state, draw, or return something else than one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torchrl.modules import MultiAgentMLP  # pyright: ignore[reportMissingTypeStubs]

from tests.laws.verdict_cases_right import X, claim, mlp

__all__ = ["ARROWS", "LINE", "RIGHT_FORMS", "Attention", "Graph", "Keeps", "Transformer", "adjacency"]

# --- messages ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Agents attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.attend = nn.MultiheadAttention(8, num_heads=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).relu()
        heard, _ = self.attend(h, h, h)
        return self.out(h + heard)


class Shown(Attention):
    """Keeps the weights of the last call for a picture; no result depends on them."""

    weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).relu()
        heard, weights = self.attend(h, h, h)
        self.weights = weights.detach()
        return self.out(h + heard)


class Causal(Attention):
    """Agents hear those ahead of them in the order, as in the decoder of the multi-agent transformer."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).relu()
        later = torch.ones(3, 3, dtype=torch.bool, device=x.device).triu(1)
        heard, _ = self.attend(h, h, h, attn_mask=later)
        return self.out(h + heard)


class Transformer(nn.Module):
    """An encoder over agents, with the default dropout."""

    def __init__(self, positions: bool = False) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.positions = nn.Parameter(torch.randn(3, 8)) if positions else None
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        return self.out(self.encoder(h if self.positions is None else h + self.positions))


class Living(nn.Module):
    """Agents attend to the living ones; the dead get zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(14, 2)

    def forward(self, x: Tensor, alive: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(~alive.unsqueeze(1), -1e9)
        heard = scores.softmax(-1) @ self.v(x)
        return self.out(torch.cat([x, heard], -1)) * alive.unsqueeze(-1)


def living(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 6, generator=generator), torch.rand(4, 3, generator=generator) > 0.3


class CommNet(nn.Module):
    """Two rounds in which each agent hears the mean of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.own, self.heard = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).tanh()
        for _ in range(2):
            others = (h.sum(1, keepdim=True) - h) / (x.shape[1] - 1)
            h = torch.tanh(self.own(h) + self.heard(others))
        return self.out(h)


LINE = [[1], [0, 2], [1, 3], [2, 4], [3]]
ARROWS = [[], [0], [0, 1]]


def adjacency(heard: Sequence[Sequence[int]]) -> Tensor:
    """``[n, n]``: one where the agent of the row hears the agent of the column."""
    matrix = torch.zeros(len(heard), len(heard))
    for i, others in enumerate(heard):
        matrix[i, list(others)] = 1.0
    return matrix


class Graph(nn.Module):
    """A graph network on a fixed graph: own features and the mean of the neighbours', a few layers."""

    adj: Tensor

    def __init__(self, adj: Tensor, layers: int) -> None:
        super().__init__()
        self.register_buffer("adj", adj / adj.sum(1, keepdim=True).clamp(min=1.0))
        self.encode, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList([nn.Linear(16, 8) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).tanh()
        for layer in self.layers:
            h = layer(torch.cat([h, self.adj @ h], -1)).tanh()
        return self.out(h)


class GAT(nn.Module):
    """Attention along the edges of a graph, and to oneself."""

    closed: Tensor

    def __init__(self, adj: Tensor) -> None:
        super().__init__()
        self.register_buffer("closed", adj.bool() | torch.eye(len(adj), dtype=torch.bool))
        self.w, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.hears, self.heard = nn.Linear(8, 1, bias=False), nn.Linear(8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.w(x)
        scores = nn.functional.leaky_relu(self.hears(h) + self.heard(h).transpose(1, 2), 0.2)
        weights = scores.masked_fill(~self.closed, float("-inf")).softmax(-1)
        return self.out(nn.functional.elu(weights @ h))


# --- dicts of agents --------------------------------------------------------------------------------------

AGENTS = ["agent_0", "agent_1", "agent_2"]


class ByName(nn.Module):
    """``{agent: obs} -> {agent: action}`` with a network each."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.actors = nn.ModuleDict({agent: mlp(size) for agent, size in sizes.items()})

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {agent: self.actors[agent](o) for agent, o in obs.items()}


class BySortedName(ByName):
    """The same; the dict that comes back is in the order of the names."""

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {agent: self.actors[agent](obs[agent]) for agent in sorted(obs)}


class ByNameShared(nn.Module):
    """``{agent: obs} -> {agent: action}`` through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        y = self.net(torch.stack(list(obs.values()), dim=0))
        return dict(zip(obs, y.unbind(0), strict=True))


# --- what is returned -------------------------------------------------------------------------------------


class Discrete(nn.Module):
    """A policy that returns a distribution over actions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5)

    def forward(self, x: Tensor) -> Categorical:
        return Categorical(logits=self.net(x))


class Continuous(nn.Module):
    """A policy that returns a normal distribution over vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_std = mlp(), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Distribution:
        mean = self.net(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


class ActorCritic(nn.Module):
    """``(logits, value)``: the value is one number for the team."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(6, 5), mlp(18, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x.flatten(1))


class ToTensorDict(nn.Module):
    """``loc`` and ``scale`` in a TensorDict, and a value of the team."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.critic = mlp(6, 4), mlp(18, 1)

    def forward(self, x: Tensor) -> TensorDict:
        loc, scale = self.net(x).chunk(2, -1)
        value = self.critic(x.flatten(1))
        return TensorDict({"loc": loc, "scale": scale.exp(), "value": value}, batch_size=x.shape[:1])


def torchrl_actor() -> nn.Module:
    net: Any = MultiAgentMLP(6, 2, 3, centralized=False, share_params=False, depth=1, num_cells=8)
    return TensorDictModule(net, in_keys=[("agents", "observation")], out_keys=[("agents", "logits")])


class Available(nn.Module):
    """Logits that are ``-inf`` where the action is not available."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5)

    def forward(self, x: Tensor, available: Tensor) -> Tensor:
        return self.net(x).masked_fill(~available, float("-inf"))


def available(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    mask = torch.rand(4, 3, 5, generator=generator) > 0.4
    mask[..., 0] = True  # to do nothing is always possible
    return torch.randn(4, 3, 6, generator=generator), mask


# --- memory and draws -------------------------------------------------------------------------------------


class GRUPolicy(nn.Module):
    """``(x, h) -> (y, h')``."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.gru, self.out = nn.Linear(6, 8), nn.GRUCell(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        b, n, _ = x.shape
        new = self.gru(self.encode(x).relu().view(b * n, -1), h.reshape(b * n, -1)).view(b, n, -1)
        return self.out(new), new


class Sequences(nn.Module):
    """``[B, T, n, 6] -> [B, T, n, 2]``: a sequence an agent."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, f = x.shape
        y, _ = self.gru(x.transpose(1, 2).reshape(b * n, t, f))
        return self.out(y).view(b, n, t, -1).transpose(1, 2)


class Keeps(nn.Module):
    """A recurrent policy that keeps its hidden state between calls."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.gru, self.out = nn.GRUCell(6, 8), nn.Linear(8, 2)
        self.detach = detach
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.h is None or len(self.h) != len(rows):
            self.h = torch.zeros(len(rows), 8, dtype=x.dtype, device=x.device)
        h = self.gru(rows, self.h)
        self.h = h.detach() if self.detach else h
        return self.out(h).view(*x.shape[:-1], -1)


class Draws(nn.Module):
    """A policy that draws its actions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = mlp(6, 5), how

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.how == "multinomial":
            return torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(*x.shape[:2], 1)
        dist = Categorical(logits=logits) if self.how == "categorical" else Normal(logits, 0.1)
        return dist.sample() if self.how == "categorical" else dist.rsample()


_SHAPES = {"scout": 6, "tank": 3, "healer": 4}
_DICT = {agent: torch.zeros(4, 6) for agent in AGENTS}
_TD = TensorDict({"agents": {"observation": X}}, batch_size=[4])

RIGHT_FORMS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "attention": (Attention, claim("shared", communication=True)),
    "transformer": (Transformer, claim("shared", communication=True)),
    "attention to the living": (
        Living,
        claim("shared", communication=True, example=living, agent_dim=(-2, -1)),
    ),
    "attention that is shown": (Shown, claim("shared", communication=True)),
    "causal attention": (Causal, claim("shared", communication=ARROWS)),
    "commnet": (CommNet, claim("shared", communication=True)),
    "graph network, one layer": (
        lambda: Graph(adjacency([[1], [0, 2], [1]]), 1),
        claim("shared", communication=[[1], [0, 2], [1]]),
    ),
    "graph network, two layers": (
        lambda: Graph(adjacency(LINE), 2),
        claim("shared", n_agents=5, example=torch.zeros(4, 5, 6), communication=LINE, rounds=2),
    ),
    "graph network, arrows": (lambda: Graph(adjacency(ARROWS), 1), claim("shared", communication=ARROWS)),
    "gat": (
        lambda: GAT(adjacency(LINE)),
        claim("shared", n_agents=5, example=torch.zeros(4, 5, 6), communication=LINE),
    ),
    "a dict of agents": (
        lambda: ByName(dict.fromkeys(AGENTS, 6)),
        claim("independent", agents=AGENTS, example=_DICT),
    ),
    "a dict of agents, other shapes": (
        lambda: ByName(_SHAPES),
        claim("independent", agents=list(_SHAPES), example={a: torch.zeros(4, f) for a, f in _SHAPES.items()}),
    ),
    "a dict of agents in another order": (
        lambda: BySortedName(dict.fromkeys(["red", "blue", "green"], 6)),
        claim("independent", agents=["red", "blue", "green"], example=dict.fromkeys(("green", "red", "blue"), X[:, 0])),
    ),
    "a dict of agents, shared": (ByNameShared, claim("shared", agents=AGENTS, example=_DICT)),
    "categorical": (Discrete, claim("shared", select="logits")),
    "normal": (Continuous, claim("shared", select="base_dist.loc")),
    "logits and a value": (ActorCritic, claim("shared", select="0")),
    "a tensordict": (ToTensorDict, claim("shared", select="loc")),
    "torchrl's actor": (torchrl_actor, claim("independent", example=_TD)),
    "available actions": (Available, claim("shared", example=available)),
    "gru with its state": (GRUPolicy, claim("shared", example=(X, torch.zeros(4, 3, 8)))),
    "gru over sequences": (Sequences, claim("shared", example=torch.zeros(4, 5, 3, 6))),
    "gru that keeps its state": (lambda: Keeps(True), claim("shared", memory=True)),
    "gru that keeps its graph": (lambda: Keeps(False), claim("shared", memory=True)),
    "draws by multinomial": (lambda: Draws("multinomial"), claim("shared", samples=True)),
    "draws by a distribution": (lambda: Draws("categorical"), claim("shared", samples=True)),
    "draws with gradients": (lambda: Draws("normal"), claim("shared", samples=True)),
}
