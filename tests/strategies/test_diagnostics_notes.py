"""The note on what an agent saw, at errors that layers raise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import N


@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]])
def test_an_error_of_a_layer_has_a_note_with_the_inputs_of_one_agent(sharing: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 5, 2), N, sharing=sharing)
    for x, seen in ((torch.zeros(6, N, 4).double(), r"\[6, 4\] \(float64\)"), (torch.zeros(6, N, 3), r"\[6, 3\] \(fl")):
        with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
            fm.apply(net, fm.init_params(net, 0), x)
        assert any(re.search(f"agent 0 of 3, which sees inputs of shape {seen}", n) for n in caught.value.__notes__)


def test_the_note_of_a_centralized_network_names_the_joint_input() -> None:
    critic = fm.network(fm.nets.mlp(4, 5, 2), N, centralized=True)
    with pytest.raises(RuntimeError) as caught:
        fm.apply(critic, fm.init_params(critic, 0), torch.zeros(6, N, 4))
    seen = "functional_marl: agent 0 of 3, which sees inputs of shape [6, 12] (float32)"
    assert caught.value.__notes__ == [f"{seen}, the features of all agents in one"]
    cell = fm.network(lambda: nn.GRUCell(4, 5), N, agent_dim=1, strategy="loop")
    with pytest.raises(RuntimeError) as caught:
        fm.apply(cell, fm.init_params(cell, 0), torch.zeros(6, N, 4), torch.zeros(6, N, 4).double())
    assert caught.value.__notes__ == [f"{seen.replace('12', '4')}, [6, 4] (float64)"]
