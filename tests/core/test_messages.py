"""What users type first, and what they are told when it is something else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from functional_marl.nn import MultiAgentMLP, convert_state_dict
from tests.builders import N, mlp, numbers


@pytest.mark.parametrize(
    "call",
    [
        lambda it: fm.apply(it, {}, torch.zeros(5, N, 4)),
        lambda it: fm.init_params(it, 0),
        lambda it: fm.init_state(it, 0),
        fm.tabulate,
    ],
)
def test_something_else_in_the_place_of_a_network(call: Any) -> None:
    with pytest.raises(fm.StructureError, match=r"net: expected a network, got Linear; make one: fm.network\(build"):
        call(nn.Linear(4, 2))


@pytest.mark.parametrize("activation", ["relu", torch.relu, nn.ReLU()])
def test_an_activation_that_builds_no_module(activation: Any) -> None:
    with pytest.raises(fm.StructureError, match=r"mlp: expected as activation a module class such as nn.ReLU, .* got"):
        fm.nets.mlp(4, 5, 2, activation=activation)
    with pytest.raises(fm.StructureError, match="convnet: expected as activation"):
        fm.nets.convnet([3, 4], activation=activation)


@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]])
def test_inputs_that_a_layer_does_not_take_are_told_as_one_agent_sees_them(sharing: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 5, 2), N, sharing=sharing)
    for x, seen in ((torch.zeros(6, N, 4).double(), r"\[6, 4\] \(float64\)"), (torch.zeros(6, N, 3), r"\[6, 3\] \(fl")):
        with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
            fm.apply(net, fm.init_params(net, 0), x)
        assert any(re.search(f"agent 0 of 3, which sees inputs of shape {seen}", n) for n in caught.value.__notes__)


def test_a_critic_is_told_that_it_sees_all_features_in_one() -> None:
    critic = fm.network(fm.nets.mlp(4, 5, 2), N, centralized=True)
    with pytest.raises(RuntimeError) as caught:
        fm.apply(critic, fm.init_params(critic, 0), torch.zeros(6, N, 4))
    seen = "functional_marl: agent 0 of 3, which sees inputs of shape [6, 12] (float32)"
    assert caught.value.__notes__ == [f"{seen}, the features of all agents in one"]
    cell = fm.network(lambda: nn.GRUCell(4, 5), N, agent_dim=1, strategy="loop")
    with pytest.raises(RuntimeError) as caught:
        fm.apply(cell, fm.init_params(cell, 0), torch.zeros(6, N, 4), torch.zeros(6, N, 4).double())
    assert caught.value.__notes__ == [f"{seen.replace('12', '4')}, [6, 4] (float64)"]


def test_initialisation_inside_vmap_is_told_of_batches_of_keys() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=r"give the batch of keys itself: fm.init_params\(net, fm.split"):
        torch.func.vmap(lambda key: fm.init_params(net, key))(fm.split(0, 6))
    assert all(len(leaf) == 6 for leaf in fm.init_params(net, fm.split(0, 6)).values())


def test_params_of_a_population_are_told_of_vmap() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, fm.split(0, 6))
    with pytest.raises(fm.StructureError, match=r"every leaf has the axes \[6\] in front of .* torch\.func\.vmap"):
        fm.apply(net, params, numbers(5, N, 4))


def test_a_state_that_does_not_fit_is_told_of_init_state() -> None:
    net = fm.network(lambda: nn.BatchNorm1d(4), N)
    with pytest.raises(fm.StructureError, match=r"use fm\.init_state, or the state that apply"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), state={})


def test_a_part_that_nothing_belongs_to() -> None:
    with pytest.raises(fm.StructureError, match=r"partition: the patterns \['3.\*'\] decide no leaf"):
        fm.partition({"0.w": 1, "2.w": 2}, {"3.*": "frozen", "*": "trained"})


def test_the_word_sharing_for_a_facade() -> None:
    with pytest.raises(TypeError, match="these classes call it share_params"):
        MultiAgentMLP(4, 2, 3, centralized=False, sharing=[0, 0, 1])


def test_a_checkpoint_for_a_module_around_ours() -> None:
    own = MultiAgentMLP(4, 2, 3, centralized=False, share_params=True, depth=0)
    around = nn.Sequential(own)
    with pytest.raises(fm.StructureError, match=r"got Sequential; it holds one: give that, and prefix='0.'"):
        convert_state_dict(around.state_dict(), around)  # pyright: ignore[reportArgumentType]
    with pytest.raises(fm.StructureError, match="prefix= is the module.s name inside a larger one"):
        convert_state_dict(around.state_dict(), own)
    assert convert_state_dict(around.state_dict(), own, prefix="0.").keys() == around.state_dict().keys()


def test_a_way_that_was_asked_for_and_cannot_be_is_said_in_the_table() -> None:
    last = lambda net: fm.tabulate(net).splitlines()[-1]
    planned = fm.network(lambda: nn.LSTM(4, 2), N, strategy="plan")
    assert "strategy plan: none (plan was asked for: " in last(planned)
    assert "none (vmap was asked for: torch.func.vmap has no batching rule for LSTM)" in last(
        planned.replace(strategy="vmap")
    )


def test_the_laws_are_there_without_an_import_of_their_own() -> None:
    assert fm.laws.check is not None
