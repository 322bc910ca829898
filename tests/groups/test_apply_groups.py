"""One network with its own params for each group."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from functional_marl._apply import apply
from functional_marl._errors import GroupingError, StructureError
from functional_marl._groups.apply_groups import apply_groups
from functional_marl._groups.group_data import group_agents, ungroup_agents
from functional_marl._init_params import init_params
from functional_marl._init_state import init_state
from functional_marl._network import network
from functional_marl._parameters import agent_module
from functional_marl._tensordict import to_tensordict
from functional_marl.random import fold_in, key

GROUPS = {"wolf": ["w0", "w1", "w2"], "sheep": ["s0"]}


class Gated(nn.Module):
    """Two inputs and a keyword, with dropout and batch statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(width, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, h: Tensor, gain: Tensor) -> Tensor:
        return self.drop(self.norm(self.body(x))) * gain + h


PLAIN = {
    "wolf": network(lambda: nn.Linear(3, 2), n_agents=3, sharing="shared"),
    "sheep": network(lambda: nn.Linear(5, 1), n_agents=1),
}
GATED = {
    "wolf": network(lambda: Gated(3), n_agents=3, sharing=[0, 0, 1]),
    "sheep": network(lambda: Gated(5), n_agents=1),
}
PARAMS = {group: init_params(net, key(1)) for group, net in PLAIN.items()}
INPUTS = {"wolf": torch.linspace(-1, 1, 63).view(7, 3, 3), "sheep": torch.linspace(-1, 1, 35).view(7, 1, 5)}


def gated() -> dict[str, Any]:
    """All arguments of a call on ``GATED``."""
    hidden = {group: torch.ones(7, net.n_agents, 4) for group, net in GATED.items()}
    return {
        "params": {group: init_params(net, key(i)) for i, (group, net) in enumerate(GATED.items())},
        "inputs": {group: (INPUTS[group], hidden[group]) for group in GATED},
        "state": {group: {k: b + 1 for k, b in init_state(net).items()} for group, net in GATED.items()},
        "kwargs": {group: {"gain": hidden[group] * (2 + i)} for i, group in enumerate(GATED)},
    }


def test_groups_compute_as_their_single_agents() -> None:
    seen = {
        name: x for group, members in GROUPS.items() for name, x in zip(members, INPUTS[group].unbind(1), strict=True)
    }
    found = apply_groups(PLAIN, PARAMS, group_agents(GROUPS, seen, batch_dims=1))
    assert {group: list(y.shape) for group, y in found.items()} == {"wolf": [7, 3, 2], "sheep": [7, 1, 1]}
    for name, y in ungroup_agents(GROUPS, found, batch_dims=1).items():
        group = "wolf" if name.startswith("w") else "sheep"
        module = agent_module(PLAIN[group], PARAMS[group], GROUPS[group].index(name))
        torch.testing.assert_close(y, module(seen[name]))


def test_each_group_has_its_own_arguments() -> None:
    given = gated()
    mutable_of = {"wolf": True, "sheep": False}
    found = apply_groups(GATED, **given, key=key(3), train=False, mutable=mutable_of)
    trained = apply_groups(GATED, **given, key=key(3), train=True, mutable=True)
    for i, (group, net) in enumerate(GATED.items()):
        same: dict[str, Any] = {
            "key": fold_in(key(3), i),
            "state": given["state"][group],
            "kwargs": given["kwargs"][group],
        }
        params, inputs = given["params"][group], given["inputs"][group]
        wanted = apply(net, params, *inputs, **same, mutable=mutable_of[group])
        torch.testing.assert_close(found[group], wanted, rtol=0, atol=0)
        y, state = apply(net, params, *inputs, **same, train=True, mutable=True)
        torch.testing.assert_close(trained[group], (y, state), rtol=0, atol=0)
        assert not torch.equal(state["norm.running_mean"], given["state"][group]["norm.running_mean"])


def test_groups_have_different_keys_and_a_new_last_group_changes_no_other() -> None:
    net = network(lambda: nn.Dropout(0.5), n_agents=1)
    x = torch.ones(64, 1, 1)

    def draw(*groups: str) -> dict[str, Tensor]:
        same = dict.fromkeys(groups)
        return apply_groups(
            dict.fromkeys(same, net), {group: {} for group in same}, dict.fromkeys(same, x), key=5, train=True
        )

    two, three = draw("a", "b"), draw("a", "b", "c")
    assert not torch.equal(two["a"], two["b"])
    assert torch.equal(two["a"], three["a"])
    assert torch.equal(two["b"], three["b"])
    assert torch.equal(two["a"], apply(net, {}, x, key=fold_in(5, 0), train=True))
    assert torch.equal(apply_groups({"a": net}, {"a": {}}, {"a": x}, key=5)["a"], x)  # in evaluation by default


class Pair(NamedTuple):
    """One input with two fields."""

    left: Tensor
    right: Tensor


class Sum(nn.Module):
    """Takes a named tuple as its only input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pair: Pair) -> Tensor:
        return self.weight * (pair.left + pair.right)


def test_a_named_tuple_is_one_input() -> None:
    net = network(lambda: Sum(), n_agents=2)
    params = {"weight": torch.tensor([[1.0], [2.0]])}
    x = torch.ones(7, 2, 3)
    found = apply_groups({"g": net}, {"g": params}, {"g": Pair(x, x)})["g"]
    assert torch.equal(found, torch.tensor([2.0, 4.0])[:, None].expand(7, 2, 3))


def test_params_and_inputs_may_be_tensordicts() -> None:
    wanted = apply_groups(PLAIN, PARAMS, INPUTS)
    tds = TensorDict({group: to_tensordict(params) for group, params in PARAMS.items()})
    torch.testing.assert_close(apply_groups(PLAIN, tds, TensorDict(INPUTS, [7])), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["params", "inputs", "state", "mutable", "kwargs"])
def test_missing_and_extra_groups_are_named(what: str) -> None:
    given: dict[str, Any] = {**gated(), "mutable": {"wolf": False, "sheep": False}}
    given[what] = {"wolf": given[what]["wolf"], "goat": given[what]["sheep"]}
    message = f"{what}: expected the groups 'wolf', 'sheep', got 'wolf', 'goat' (missing: 'sheep'; extra: 'goat')"
    with pytest.raises(GroupingError, match=re.escape(message + "; give one entry for each group of nets")):
        apply_groups(GATED, **given)


def test_an_error_inside_a_group_names_the_group() -> None:
    with pytest.raises(StructureError) as caught:
        apply_groups(PLAIN, {**PARAMS, "sheep": PARAMS["wolf"]}, INPUTS)
    assert caught.value.__notes__ == ["in group 'sheep' of apply_groups"]
