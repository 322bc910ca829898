"""Sharing found by gradients: slot maps for stacked leaves, lists of modules, shared ones, clusters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl._sharing import Sharing
from functional_marl.laws import CheckError, infer_sharing
from tests.laws.check_cases import GROUPS, Around, Critic, Groups, Listed, Stacked, X, one, ours, torchrl_mlp

AGENTS: dict[str, Any] = {"n_agents": 3, "example": X}


@pytest.mark.parametrize(
    ("module", "sharing"),
    [
        (one(), "shared"),
        (Listed(), "independent"),
        (Listed((0, 0, 1)), [0, 0, 1]),
        (Listed((1, 0, 1)), [0, 1, 0]),
        (Stacked(), None),
        (Critic(True), "shared"),
        (Critic(False), "independent"),
        (torchrl_mlp(), "independent"),
        (torchrl_mlp(share_params=True, centralized=True), "shared"),
        (torchrl_mlp(use_td_params=False), "independent"),
        (ours(share_params=[0, 1, 1]), [0, 1, 1]),
    ],
)
def test_the_whole(module: nn.Module, sharing: object) -> None:
    assert infer_sharing(module, **AGENTS).sharing == sharing


def test_every_parameter() -> None:
    found = infer_sharing(Stacked(), **AGENTS)
    assert found.slots == {"heads": ((0,), (1,), (2,)), "trunk.weight": ((0, 1, 2),), "trunk.bias": ((0, 1, 2),)}
    assert found["heads"].axis == 0
    assert found["heads"].sets == {(0,): 10, (1,): 10, (2,): 10}
    assert found["heads"].sharing(3) == Sharing([0, 1, 2])
    assert str(found).splitlines()[1:] == [
        "heads         [3, 5, 2]  {0} {1} {2} along axis 0",
        "trunk.weight  [5, 6]     {0,1,2}",
        "trunk.bias    [5]        {0,1,2}",
    ]


def test_slots_that_overlap() -> None:
    class Sum(nn.Module):
        """Agent 0 uses the first row, agent 1 both, agent 2 the second."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(2, 6))

        def forward(self, x: Tensor) -> Tensor:
            used = torch.stack([self.rows[0], self.rows.sum(0), self.rows[1]])
            return (x * used).sum(-1, keepdim=True)

    found = infer_sharing(Sum(), **AGENTS)
    assert found["rows"].slots is None
    assert dict(found["rows"].sets) == {(0, 1): 6, (1, 2): 6}
    assert found.sharing is None


def test_unused_leaves_are_nobodys() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = infer_sharing(Half(), **AGENTS)
    assert found.sharing == "shared"
    assert str(found["unused.weight"]) == "no agent"


def test_frozen_parameters_are_seen_and_stay_frozen() -> None:
    module = Listed().requires_grad_(False)
    assert infer_sharing(module, **AGENTS).sharing == "independent"
    assert not any(leaf.requires_grad for leaf in module.parameters())


def test_rare_units_are_shared_all_the_same() -> None:
    torch.manual_seed(0)
    for _ in range(5):
        first = nn.Linear(6, 32)
        with torch.no_grad():
            first.bias.sub_(1.5)  # most units are dead for most inputs
        net = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 2))
        assert infer_sharing(net, n_agents=3, example=X[:2]).sharing == "shared"


class Behind(nn.Module):
    """Weights of each agent, biases of all; a deeper unit of agent 0 is dead, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(3))
        self.second = nn.Parameter(torch.tensor([-1.0, 1.0, 1.0]))
        self.biases = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(x * self.first[:, None] + self.biases[0])
        return torch.relu(hidden * self.second[:, None] + self.biases[1])


def test_deep_units_that_one_agents_weights_kill_are_shared_all_the_same() -> None:
    module = Behind()
    before = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
    found = infer_sharing(module, n_agents=3, example=torch.zeros(2, 3, 1))
    assert found.slots == {"first": ((0,), (1,), (2,)), "second": ((0,), (1,), (2,)), "biases": ((0, 1, 2),)}
    for name, leaf in module.named_parameters():  # other weights were tried, and put back
        assert torch.equal(leaf, before[name]), name
    assert module.biases.grad is None


def test_a_module_that_takes_no_other_weights_is_asked_with_its_own() -> None:
    class Fixed(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            assert torch.equal(self.bias.detach(), was), "no weights but mine"
            return super().forward(input)

    net = Fixed(6, 2)
    was = net.bias.detach().clone()
    assert infer_sharing(net, **AGENTS).sharing == "shared"
    assert torch.equal(net.bias.detach(), was)


class Routed(Listed):
    """Which network an agent has stands in a parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.nets[k](x[..., i, :]) for i, k in enumerate(self.route.argmax(-1).tolist())], -2)


class Blocks(nn.Module):
    """One weight over all agents whose other blocks are zero, and get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.block_diag(*torch.randn(3, 2, 6)))
        mask = (self.weight.detach() != 0).float()
        self.weight.register_hook(lambda gradient: gradient * mask)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-2) @ self.weight.T).unflatten(-1, (3, 2))


@pytest.mark.parametrize("build", [Routed, Blocks])
def test_what_no_training_changes_is_not_redrawn(build: Any) -> None:
    found = infer_sharing(build(), **AGENTS)
    assert {agents for leaf in found.leaves for agents in leaf.sets} == {(0,), (1,), (2,)}


def test_training_is_asked_in_training() -> None:
    class Ensemble(Listed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else torch.stack([net(x) for net in self.nets]).mean(0)

    assert infer_sharing(Ensemble(), **AGENTS, train=True).sharing == "independent"
    assert infer_sharing(Ensemble(), **AGENTS).sharing == "shared"


def test_units_behind_frozen_weights_are_shared_all_the_same() -> None:
    class Encoders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.head = Listed(build=lambda: nn.Linear(6, 2)), nn.Linear(2, 2)
            self.own.requires_grad_(False)
            self.own.nets[0].get_parameter("bias").sub_(8)  # dead for usual inputs

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.own(x)))

    assert infer_sharing(Encoders(), **AGENTS)["head.weight"].slots == ((0, 1, 2),)


def test_a_graph_of_the_users_and_an_expanded_leaf_survive() -> None:
    net = Listed()
    loss = net(X).sum()
    infer_sharing(net, **AGENTS)
    loss.backward()

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2).expand(3, 6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bni,nio->bno", x, self.weight)

    assert infer_sharing(Expanded(), **AGENTS).sharing == "independent"


def test_groups() -> None:
    found = infer_sharing(Groups(), **GROUPS)
    assert found.slots["nets.walker.weight"] == ((0, 1),)
    assert found.slots["nets.runner.weight"] == ((2, 3, 4),)
    assert found.sharing == [0, 0, 1, 1, 1]
    assert infer_sharing(Groups(True), **GROUPS)["nets.runner.weight"].sets == {(0, 1, 2, 3, 4): 8}


def test_a_module_that_does_not_run() -> None:
    with pytest.raises(CheckError, match="raises on the example"):
        infer_sharing(one(), n_agents=3, example=torch.zeros(4, 3, 7))


def test_differences_of_inputs_are_seen() -> None:
    def others(net: nn.Module, x: Tensor) -> Tensor:
        return net(x - x.mean(-2, keepdim=True))

    found = infer_sharing(Around(nn.Linear(6, 2, bias=False), others), **AGENTS)
    assert found.sharing == "shared"
