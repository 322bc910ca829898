"""Ints, also those of numpy, wherever an int is an argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import same

I: Any = np.int64  # as of env.action_space(agent).n  # noqa: E741


def test_numpy_integers_are_accepted_wherever_an_int_is() -> None:
    net = fm.network(fm.nets.mlp(I(4), I(5), I(2)), I(3), sharing=[I(0), I(0), I(1)], agent_dim=I(-2))
    plain = fm.network(fm.nets.mlp(4, 5, 2), 3, sharing=[0, 0, 1])
    assert (net.sharing, net.agent_dim, net.n_agents) == (plain.sharing, -2, 3)
    params = fm.init_params(net, I(7))
    assert same(params, fm.init_params(plain, 7))
    x = torch.rand(5, 3, 4)
    assert torch.equal(fm.apply(net, params, x, key=I(1)), fm.apply(plain, params, x, key=1))
    assert same(fm.agent_params(net, params, I(2)), fm.agent_params(net, params, 2))
    grown = fm.reshare(net, params, "independent", agents=np.array([2, 0]))  # pyright: ignore
    assert same(grown[1], fm.reshare(net, params, "independent", agents=[2, 0])[1])
    tree = fm.agent_params(net, params, 0)
    assert same(fm.stack_agents(tree, n_agents=I(2)), fm.stack_agents(tree, n_agents=2))
    assert fm.Sharing([0, 2], I(4)) == fm.Sharing(np.array([0, 2]), 4)
    assert fm.Sharing.shared(I(3)) == fm.Sharing.shared(3)
    assert net.replace(n_agents=I(2), sharing="shared").n_agents == 2
    assert torch.equal(fm.key(I(5)), fm.key(5))
    assert torch.equal(fm.split(I(5), I(3)), fm.split(5, 3))
    assert torch.equal(fm.fold_in(0, I(9)), fm.fold_in(0, 9))
    assert torch.equal(fm.with_agent_ids(x, I(1)), fm.with_agent_ids(x, 1))
    assert torch.equal(fm.random.uniform(0, (I(2), I(3))), fm.random.uniform(0, (2, 3)))
    data = {"a": x, "b": x}
    grouped = fm.group_agents({"g": ["a", "b"]}, data, I(1))
    assert torch.equal(grouped["g"], torch.stack([x, x], 1))
    for build in (fm.nets.gru(I(4), I(5)), fm.nets.lstm(I(4), I(5)), fm.nets.convnet([I(3), I(4)], I(3), I(1), I(0))):
        assert all(isinstance(p, nn.Parameter) for p in build().parameters())


def test_a_tuple_as_number_of_keys_names_the_fix() -> None:
    with pytest.raises(fm.StructureError, match=r"n: .* got \(2, 3\); .* fm.split\(key, 6\).view\(2, 3, 2\)"):
        fm.split(0, (2, 3))  # pyright: ignore[reportArgumentType]
