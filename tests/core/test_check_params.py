"""Params and states that do not fit a network: all that is wrong is named at once, with the fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import N, mlp, numbers, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    "call",
    [
        lambda it: fm.apply(it, {}, torch.zeros(5, N, 4)),
        lambda it: fm.init_params(it, 0),
        lambda it: fm.init_state(it, 0),
        fm.tabulate,
    ],
)
def test_something_else_instead_of_a_network_raises(call: Any) -> None:
    with pytest.raises(fm.StructureError, match=r"net: expected a network, got Linear; make one: fm.network\(build"):
        call(nn.Linear(4, 2))


def test_everything_wrong_with_params_is_named_at_once() -> None:
    net = fm.network(mlp, N)
    params: dict[str, Any] = {**fm.init_params(net, 0), "3.weight": torch.zeros(3)}
    params["0.bias"] = params["0.bias"][0]
    params["2.bias"] = [0.0]
    del params["2.weight"]
    with pytest.raises(fm.StructureError) as caught:
        fm.unstack_agents(net, params)
    lines = str(caught.value).splitlines()
    assert lines[:4] == [
        "params['2.weight']: missing, expected [3, 2, 5]",
        f"params['3.weight']: not a leaf of this network; its leaves are {NAMES}",
        "params['0.bias']: expected [3, 5], got [5]",
        "params['2.bias']: expected a tensor [3, 2], got list",
    ]
    assert "use fm.init_params, fm.stack_agents (from one-agent trees) or fm.reshare" in lines[4]


def test_params_of_a_population_name_vmap_as_the_fix() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, fm.split(0, 6))
    with pytest.raises(fm.StructureError, match=r"every leaf has the axes \[6\] in front of .* torch\.func\.vmap"):
        fm.apply(net, params, numbers(5, N, 4))


def test_a_wrong_state_names_init_state_as_the_fix() -> None:
    net = fm.network(lambda: nn.BatchNorm1d(4), N)
    with pytest.raises(fm.StructureError, match=r"use fm\.init_state, or the state that apply"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), state={})


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_trees_of_a_population_raise_one_line_that_names_vmap(batch: tuple[int, ...]) -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = fm.init_params(net, fm.split(0, 6).view(*batch, 2))
    calls: list[Any] = [
        lambda: fm.apply(net, params, numbers(5, N, 4)),
        lambda: fm.agent_params(net, params, 0),
        lambda: fm.agent_module(net, params, 0),
        lambda: fm.unstack_agents(net, params),
        lambda: fm.reshare(net, params, "independent"),
    ]
    for call in calls:
        with pytest.raises(fm.StructureError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(f"params: every leaf has the axes {list(batch)} in front of [slots, *leaf]")
        assert "torch.func.vmap(lambda p: fm.apply(net, p, x))(params)" in text
        assert "\n" not in text


def test_the_fix_that_the_message_names_works() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = fm.init_params(net, fm.split(0, 2))
    one: Any = lambda p: {name: leaf[p] for name, leaf in params.items()}
    calls: list[Any] = [
        lambda p: fm.agent_params(net, p, 1),
        lambda p: fm.unstack_agents(net, p)[2],
        lambda p: fm.reshare(net, p, "independent")[1],
        lambda p: fm.reshare(net, p, "shared", merge="mean")[1],
        lambda p: fm.stack_agents(fm.unstack_agents(net, p), sharing="shared", merge="first"),
    ]
    for call in calls:
        mapped = torch.func.vmap(call)(params)
        for p in range(2):
            assert same({name: leaf[p] for name, leaf in mapped.items()}, call(one(p)))
    with pytest.raises(fm.SharingError, match=r'merge="error" compares the numbers .* give merge="mean"'):
        torch.func.vmap(lambda p: fm.reshare(net, p, "shared")[1])(params)
