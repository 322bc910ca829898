"""A small table of one-agent modules, each with inputs and with the loop over agents that it must equal.

Every case calls ``fm.apply(net, params, *inputs, **extra, **flags)``, where params, inputs and extra are
pytrees of tensors. :func:`oracle` does the same by one ``functional_call`` an agent on a module that the
library has never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

import functional_marl as fm
from functional_marl.random import bernoulli

N, B = 3, 2  # agents, batch
Params = dict[str, Tensor]


class Keep(nn.Module):
    """Dropout with the mask of a key, agent and site, for the oracle."""

    def __init__(self, p: float, key: Tensor, agent: int, site: int) -> None:
        super().__init__()
        self.p, self.key, self.agent, self.site = p, key, agent, site

    def forward(self, x: Tensor) -> Tensor:
        drop = bernoulli(self.key, self.p, tuple(x.shape), self.site, self.agent)
        return torch.where(drop, 0.0, x / (1.0 - self.p))


class Attention(nn.Module):
    """Self-attention with dropout on its weights, batch first: ``[B, L, E] -> [B, L, E]``."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.25, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Any:
        y, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return (y, weights) if self.need_weights else y


class PlainAttention(nn.Module):
    """The same in plain operations, with parameters of the same names."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        own = self.attention
        qkv = F.linear(x, own.in_proj_weight, own.in_proj_bias)
        # [B, L, 3 * 4] -> three of [B, heads, L, 2]
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in qkv.chunk(3, -1))
        weights = self.keep((q @ k.mT / 2**0.5).softmax(-1))
        heads = (weights @ v).transpose(1, 2).flatten(-2)
        return F.linear(heads, own.out_proj.weight, own.out_proj.bias)


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed; one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Bare(nn.Module):
    """Parameters in the module itself: no layer, no ``reset_parameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(4))
        self.register_buffer("offset", torch.tensor(2.0))
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.scale + self.shift) * self.offset


class Several(nn.Module):
    """Two positional inputs, of which agents see one as a whole; a keyword input; a pytree of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor, goal: Tensor, *, memory: dict[str, Tensor]) -> dict[str, Any]:
        hidden = torch.tanh(self.a(x) + self.b(goal) + memory["h"])
        return {"out": (hidden.sum(-1), hidden), "memory": {"h": hidden * 0.5}}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    build: Callable[[], nn.Module]
    inputs: Sequence[tuple[int, ...]] = ((B, N, 4),)  # shapes; agents, if any, at dim 1
    settings: dict[str, Any] = field(default_factory=dict)  # of fm.network
    flags: dict[str, Any] = field(default_factory=dict)  # of fm.apply
    whole: tuple[int, ...] = ()  # the inputs that every agent sees whole
    keyed: bool = False
    stateful: bool = False
    memory: bool = False
    plain: Callable[[Tensor, int], nn.Module] | None = None  # (key, agent) -> the oracle's module


def normed(train: bool) -> Case:
    flags = {"train": True, "mutable": True} if train else {}
    build = lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    return Case(build, [(4, N, 4)], flags=flags, stateful=True)


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Conv2d(4, 2, 2, groups=2), nn.Flatten(), nn.Linear(8, 2))


def _dropping(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), first, nn.Tanh(), second, nn.Linear(6, 2))


CASES: dict[str, Case] = {
    "mlp": Case(fm.nets.mlp(4, 5, 2)),
    "convnet": Case(_convolutions, [(B, N, 2, 4, 4)], {"agent_dim": -4}),
    "batchnorm_eval": normed(False),
    "batchnorm_train": normed(True),
    "layernorm": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2))),
    "dropout": Case(
        lambda: _dropping(nn.Dropout(0.5), nn.Dropout(0.25)),
        flags={"train": True},
        keyed=True,
        plain=lambda key, agent: _dropping(Keep(0.5, key, agent, 1), Keep(0.25, key, agent, 2)),
    ),
    "attention": Case(
        Attention,
        [(B, N, 3, 4)],
        {"agent_dim": -3},
        {"train": True},
        keyed=True,
        plain=lambda key, agent: PlainAttention(Keep(0.25, key, agent, 1)),
    ),
    "grucell": Case(lambda: nn.GRUCell(4, 3), [(B, N, 4), (B, N, 3)]),
    "tied": Case(Tied),
    "bare": Case(Bare, stateful=True),
    "several": Case(Several, [(B, N, 4), (2,)], {"agent_dim": (-2, None)}, whole=(1,), memory=True),
    "centralized": Case(fm.nets.mlp(4 * N, 5, 2), settings={"centralized": True}),
}
SHARINGS = ["independent", "shared", "clusters", "per_leaf"]


@dataclass(frozen=True)
class Subject:
    """A case under a sharing, with everything that a call takes."""

    case: Case
    net: fm.Network
    params: Params
    inputs: tuple[Tensor, ...]
    extra: dict[str, Any]

    def call(self, params: Params, inputs: Sequence[Tensor], extra: dict[str, Any]) -> Any:
        return fm.apply(self.net, params, *inputs, **extra, **self.case.flags)

    def oracle(self, params: Params, inputs: Sequence[Tensor], extra: dict[str, Any]) -> Any:
        return oracle(self, params, inputs, extra)

    @property
    def args(self) -> tuple[Params, tuple[Tensor, ...], dict[str, Any]]:
        return self.params, self.inputs, self.extra


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def sharing_of(word: str, build: Callable[[], nn.Module]) -> Any:
    """The four sharings: two presets, clusters, and clusters with a first leaf that all agents share."""
    first = next(iter(dict(build().named_parameters())))
    return {"clusters": [1, 0, 1], "per_leaf": {first: "shared", "*": [1, 0, 1]}}.get(word, word)


def subject(name: str, sharing: str = "independent", dtype: torch.dtype = torch.float64, **settings: Any) -> Subject:
    case = CASES[name]
    with torch.random.fork_rng():
        slots = sharing_of(sharing, case.build)
    net = fm.network(case.build, N, sharing=slots, **{**case.settings, **settings})
    inputs = tuple(numbers(*shape, seed=k + 1, dtype=dtype) for k, shape in enumerate(case.inputs))
    return Subject(case, net, fm.init_params(net, 0, dtype=dtype), inputs, extra_of(case, net, 0, dtype))


def extra_of(case: Case, net: fm.Network, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Key, state and keyword inputs, if the case has them."""
    extra: dict[str, Any] = {"key": fm.key(seed)} if case.keyed else {}
    if case.stateful:
        state = fm.init_state(net, dtype=dtype)
        extra["state"] = {
            k: (v + 0.1 + numbers(*v.shape, seed=seed, dtype=dtype) ** 2) if v.is_floating_point() else v
            for k, v in state.items()
        }
    if case.memory:
        extra["kwargs"] = {"memory": {"h": numbers(B, N, 3, seed=seed + 9, dtype=dtype)}}
    return extra


def oracle(s: Subject, params: Params, inputs: Sequence[Tensor], extra: dict[str, Any]) -> Any:
    """One agent after the other; outputs are stacked at dim 1, shared buffers are reduced."""
    outputs: list[Any] = []
    buffers: list[Params] = []
    for agent in range(N):
        with torch.random.fork_rng():
            module = s.case.plain(extra["key"], agent) if s.case.plain else s.case.build()
        module.train(s.case.flags.get("train", False))
        own = {k: params[k][slots[agent]] for k, slots in s.net.sharing.items()}
        kept = {k: v[s.net.state_sharing[k][agent]].clone() for k, v in extra.get("state", {}).items()}
        args = [x if k in s.case.whole else x.select(1, agent) for k, x in enumerate(inputs)]
        if s.net.centralized:
            args[0] = inputs[0].flatten(1, 2)
        kwargs = tree_map(lambda t, agent=agent: t.select(1, agent), extra.get("kwargs", {}))
        outputs.append(functional_call(module, {**own, **kept}, tuple(args), kwargs))
        buffers.append(kept)
    whole = tree_map(lambda *leaves: torch.stack(leaves, 1) if isinstance(leaves[0], Tensor) else leaves[0], *outputs)
    if not s.case.flags.get("mutable"):
        return whole
    return whole, {k: _reduced([b[k] for b in buffers], slots) for k, slots in s.net.state_sharing.items()}


def _reduced(agents: Sequence[Tensor], slots: fm.Sharing) -> Tensor:
    rows = [torch.stack([agents[i] for i in slots.members(s)]) for s in range(slots.n_slots)]
    return torch.stack([r.mean(0) if r.is_floating_point() else r.amax(0) for r in rows])


def same(found: Any, wanted: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def weighed(tree: Any) -> Tensor:
    """A sum of all outputs, each with its own weight."""
    total = torch.zeros((), dtype=torch.float64)
    for k, leaf in enumerate(floats(tree)):
        weights = torch.cos(torch.arange(leaf.numel(), dtype=torch.float64) + k).view(leaf.shape)
        total = total + (weights * leaf * (1 + leaf)).sum()
    return total


def per_agent(tree: Any) -> Tensor:
    """The same for each agent alone: ``[n]``, of outputs ``[B, n, ...]``."""
    outputs = floats(tree[0] if isinstance(tree, tuple) else tree)
    weight = lambda t: torch.cos(torch.arange(t[:, 0].numel(), dtype=t.dtype)).view(t[:, :1].shape)
    return torch.stack([(weight(t) * t * (1 + t)).movedim(1, 0).flatten(1).sum(1) for t in outputs]).sum(0)


every_case = [(name, sharing) for name in CASES for sharing in SHARINGS]
