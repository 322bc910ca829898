"""Modules that share as claimed, and modules that do not, for the tests of ``functional_marl.laws.check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchrl.modules as rl  # pyright: ignore[reportMissingTypeStubs]
from tensordict import TensorDict
from torch import Tensor, nn

import functional_marl.nn as fmnn

X = torch.zeros(4, 3, 6)


def one() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


class Listed(nn.Module):
    """A list with one network per slot, called for one agent after the other: ``[B, n, 6] -> [B, n, 2]``."""

    def __init__(self, slots: Sequence[int] = (0, 1, 2), build: Callable[[], nn.Module] = one) -> None:
        super().__init__()
        self.nets = nn.ModuleList(build() for _ in range(max(slots) + 1))
        self.slots = slots

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.nets[slot](x[..., i, :]) for i, slot in enumerate(self.slots)], -2)


class Stacked(nn.Module):
    """A shared trunk and stacked heads: ``[B, n, 6] -> [B, n, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 5)
        self.heads = nn.Parameter(torch.randn(3, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...nh,nho->...no", torch.tanh(self.trunk(x)), self.heads)


class Critic(nn.Module):
    """Sees all agents; one network, or one per agent: ``[B, n, 6] -> [B, n, 1]``."""

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Linear(18, 1) for _ in range(1 if share else 3))

    def forward(self, x: Tensor) -> Tensor:
        joint = x.flatten(-2)
        return torch.stack([self.nets[i % len(self.nets)](joint) for i in range(3)], -2)


class Recurrent(nn.Module):
    """A cell whose state is an input and an output: ``[B, n, 6], [B, n, 4] -> [B, n, 4], [B, n, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        new = self.cell(x.flatten(0, -2), h.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return new, new


class Dicts(nn.Module):
    """Agents' observations and a state that all see: ``{"obs": [B, n, 6], "state": [B, 3]} -> {"q": [B, n, 2]}``."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.know = nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"q": self.see(given["obs"]) + self.know(given["state"])[..., None, :]}


class InTensorDict(nn.Module):
    """Writes its output into its input TensorDict."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, td: TensorDict) -> TensorDict:
        return td.set(("agents", "action"), self.net(td["agents", "obs"]))


class Groups(nn.Module):
    """Two groups, each with a network: ``{"walker": [B, 2, 6], "runner": [B, 3, 4]}``."""

    def __init__(self, crossed: bool = False) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({"walker": nn.Linear(6, 2), "runner": nn.Linear(4, 2)})
        self.crossed = crossed

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {group: self.nets[group](x) for group, x in given.items()}
        if self.crossed:
            out["walker"] = out["walker"] + out["runner"].mean(-2, keepdim=True)
        return out


GROUPS: dict[str, Any] = {
    "n_agents": 5,
    "groups": {"walker": 2, "runner": 3},
    "example": {"walker": torch.zeros(4, 2, 6), "runner": torch.zeros(4, 3, 4)},
}


class Dropped(nn.Module):
    """A dropout whose mask agents share, or do not: ``[B, n, 6] -> [B, n, 32]``."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.layer, self.same = nn.Linear(6, 32), same

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        mask = torch.ones_like(y[..., :1, :] if self.same else y)
        return y * nn.functional.dropout(mask, 0.5, self.training)


class Around(nn.Module):
    """A network with changed inputs or outputs: a wrong module in one line."""

    def __init__(self, net: nn.Module, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.act = net, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.net, x)


class Copies(nn.Module):
    """Copies with equal initial values, not one network: as ``share_params_with`` of BenchMARL makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        for net in self.nets:
            net.load_state_dict(self.nets[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x[..., i, :]) for i, net in enumerate(self.nets)], -2)


def torchrl_mlp(lib: Any = rl, **how: Any) -> nn.Module:
    return lib.MultiAgentMLP(
        6, 2, 3, **{"centralized": False, "share_params": False, "depth": 1, "num_cells": 8, **how}
    )


def ours(**how: Any) -> nn.Module:
    return torchrl_mlp(fmnn, **how)


def claim(sharing: Any = None, centralized: bool = False, **how: Any) -> dict[str, Any]:
    return {"n_agents": 3, "sharing": sharing, "centralized": centralized or None, "example": X, **how}


_H = (X, torch.zeros(4, 3, 4))
_TD = TensorDict({"agents": {"obs": X}}, batch_size=[4])
_D = {"obs": X, "state": torch.zeros(4, 3)}

# Right: name -> (builds the module, the claim about it).
SOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "shared linear": (lambda: nn.Linear(6, 2), claim("shared")),
    "shared relu": (one, claim("shared")),
    "a list": (Listed, claim("independent", single=one)),
    "a list, agents in front": (
        lambda: Around(Listed(), lambda net, x: net(x.movedim(0, -2)).movedim(-2, 0)),
        claim("independent", agent_dim=0, example=X.movedim(1, 0)),
    ),
    "clusters": (lambda: Listed((0, 1, 0)), claim([0, 1, 0], single=one)),
    "clusters under other names": (lambda: Listed((1, 0, 1)), claim([0, 1, 0])),
    "trunk and heads": (Stacked, claim({"trunk.*": "shared", "heads": "independent"})),
    "nothing claimed": (Stacked, claim()),
    "one critic": (lambda: Critic(True), claim("shared", True)),
    "critics": (lambda: Critic(False), claim("independent", True)),
    "hidden state": (Recurrent, claim("shared", example=_H)),
    "a dict": (Dicts, claim("shared", example=_D, agent_dim={"obs": -2, "state": None})),
    "a TensorDict": (lambda: InTensorDict(Listed()), claim("independent", example=_TD)),
    "groups": (Groups, {**GROUPS, "sharing": {"*walker*": [0, 0, 1, 1, 1], "*": [0, 0, 1, 1, 1]}}),
    "groups, nothing claimed": (Groups, GROUPS),
    "dropout, same": (lambda: Dropped(True), claim("shared", randomness="same")),
    "dropout, different": (lambda: Dropped(False), claim("shared", randomness="different")),
    "batch norm": (
        lambda: Listed(build=lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))),
        claim("independent"),
    ),
    "zero head": (lambda: Around(one(), lambda net, x: 0 * net(x)), claim("shared")),
    "one agent": (one, {"n_agents": 1, "sharing": "shared", "example": X[:, :1]}),
    "no batch": (Listed, claim("independent", example=X[0])),
    "torchrl": (torchrl_mlp, claim()),
    "torchrl shared": (lambda: torchrl_mlp(share_params=True), claim("shared")),
    "torchrl critic": (lambda: torchrl_mlp(centralized=True), claim("independent", True)),
    "torchrl shared critic": (lambda: torchrl_mlp(centralized=True, share_params=True), claim()),
    "torchrl conv": (
        lambda: rl.MultiAgentConvNet(3, False, False, in_features=2, num_cells=[3], kernel_sizes=3),
        claim(example=torch.zeros(2, 3, 2, 5, 5)),
    ),
    "ours": (ours, claim("independent")),
    "ours, clusters": (lambda: ours(share_params=[0, 0, 1]), claim()),
    "ours, dropout": (lambda: ours(share_params=True, dropout=0.5, vmap_randomness="same"), claim()),
    "ours, critic": (lambda: ours(share_params=True, centralized=True), claim()),
}

SWAP = [1, 0, 2]


def _leak(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) + 0.01 * x.sum(-2, keepdim=True)[..., :2]


def _quiet_leak(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        other = x.roll(1, -2)[..., :2]
    return net(x) + other


def _unit(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient / gradient.norm())
    return y


# Wrong: name -> (builds the module, the claim about it, the law that must be violated).
WRONG: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "swapped outputs": (lambda: Around(one(), lambda net, x: net(x)[..., SWAP, :]), claim("shared"), "local_jacobian"),
    "a leak": (lambda: Around(one(), _leak), claim("shared"), "local_jacobian"),
    "a leak without gradient": (lambda: Around(Listed(), _quiet_leak), claim("independent"), "local_jacobian"),
    "leak between groups": (lambda: Groups(True), {**GROUPS, "sharing": [0, 0, 1, 1, 1]}, "gradient_reaches_own_slot"),
    "a place of its own": (
        lambda: Around(one(), lambda net, x: net(x) * torch.arange(1.0, 4.0)[:, None]),
        claim("shared"),
        "shared_equivariance",
    ),
    "shared, claimed independent": (one, claim("independent"), "gradient_reaches_own_slot"),
    "independent, claimed shared": (Listed, claim("shared"), "gradient_reaches_own_slot"),
    "clusters, claimed others": (lambda: Listed((0, 0, 1)), claim([0, 1, 1]), "gradient_reaches_own_slot"),
    "clusters, claimed others, by value": (lambda: Listed((0, 0, 1)), claim([0, 1, 1]), "equal_inputs_equal_outputs"),
    "copies": (Copies, claim("shared"), "tied_agents_stay_tied"),
    "alike": (lambda: Copies(), claim("independent"), "slots_differ"),
    "one mask": (lambda: Dropped(True), claim("shared", randomness="different"), "randomness_has_one_meaning"),
    "many masks": (lambda: Dropped(False), claim("shared", randomness="same"), "randomness_has_one_meaning"),
    "masks without error": (lambda: Dropped(False), claim("shared", randomness="error"), "randomness_has_one_meaning"),
    "a detached agent": (
        lambda: Around(Listed(), lambda net, x: torch.cat([net(x)[..., :2, :], net(x)[..., 2:, :].detach()], -2)),
        claim("independent"),
        "gradient_reaches_own_slot",
    ),
    "a critic that sees one": (lambda: Listed(), claim("independent", True), "centralized_sees_all"),
    "a critic with a place": (
        lambda: Around(Critic(True), lambda net, x: net(x) + torch.arange(3.0)[:, None]),
        claim("shared", True),
        "centralized_rows_are_equal",
    ),
    "rows of the batch": (
        lambda: Around(one(), lambda net, x: net(x) + net(x).mean(0)),
        claim("shared"),
        "batch_is_a_loop",
    ),
    "two gradients": (
        lambda: Around(Listed(), lambda net, x: net(x) + net(x.roll(1, -2)).roll(-1, -2)),
        claim("independent"),
        "gradient_reaches_own_slot",
    ),
    "gradients of one size": (
        lambda: Around(one(), lambda net, x: _unit(net(x))),
        claim("shared"),
        "slot_gradient_is_the_sum",
    ),
    "another activation": (
        Listed,
        claim("independent", single=lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))),
        "agents_are_networks",
    ),
    "another precision": (lambda: Around(one(), lambda net, x: net(x).float()), claim("shared"), "kinds_are_kept"),
    "own dice": (
        lambda: Around(one(), lambda net, x: net(x) + torch.rand(1, generator=DICE)),
        claim("shared"),
        "results_follow_the_seed",
    ),
    "torchrl, wrong claim": (lambda: torchrl_mlp(share_params=True), claim("independent"), "gradient_reaches_own_slot"),
    "torchrl, lazy dropout": (
        lambda: rl.MultiAgentMLP(None, 2, 3, centralized=False, share_params=False, num_cells=[16], dropout=0.5),
        claim(),
        "randomness_has_one_meaning",
    ),
}
DICE = torch.Generator().manual_seed(0)
