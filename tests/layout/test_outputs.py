"""Outputs put back: where they carry the agents, written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_marl as fm
from tests.builders import N, numbers
from tests.layout.scaled_agents import SCALES, Observation, call, close


def test_outputs_carry_the_agents_where_the_input_does_also_with_other_axes_besides(strategy: Any) -> None:
    x = numbers(4, N, 6)
    summed = call(lambda w, x: w * x.sum(-1), x, strategy=strategy)
    close(summed, torch.stack([SCALES[i] * x[:, i].sum(-1) for i in range(N)], 1))
    grown = call(lambda w, x: w * x[..., None, None], x, strategy=strategy)
    close(grown, torch.stack([SCALES[i] * x[:, i, :, None, None] for i in range(N)], 1))


@pytest.mark.parametrize("out", [0, 1, 2, -1, -2, -3])
def test_out_agent_dim_puts_the_agents_elsewhere(out: int, strategy: Any) -> None:
    x = numbers(4, N, 6)
    got = call(lambda w, x: w * x, x, out_agent_dim=out, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x[:, i] for i in range(N)], out))


def test_outputs_of_any_tree_take_a_prefix(strategy: Any) -> None:
    x = numbers(4, N, 2)
    function: Any = lambda w, x: {"pair": (w * x, [w + x]), "o": Observation(x.sum(-1), w * 1)}
    out = {"pair": (0, -1), "o": Observation(None, 0)}
    got = call(function, x, out_agent_dim=out, strategy=strategy)
    each = [function(SCALES[i], x[:, i]) for i in range(N)]
    close(got["pair"][0], torch.stack([e["pair"][0] for e in each], 0))
    close(got["pair"][1][0], torch.stack([e["pair"][1][0] for e in each], -1))
    close(got["o"].pixels, torch.stack([e["o"].pixels for e in each], 1))
    close(got["o"].features, torch.stack([e["o"].features for e in each], 0))
    assert type(got["o"]) is Observation


def test_outputs_share_no_memory_with_the_inputs(strategy: Any) -> None:
    x = numbers(4, N, 2)
    before = x.clone()
    for output in (call(lambda w, x: x, x, strategy=strategy), call(lambda w, x: x.T, x, strategy=strategy)):
        output.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (3, r"^outputs: an agent's output of shape \[4, 2\] has no place for the agents at dim 3; set out_agent_dim="),
        ((0, 1), "^out_agent_dim: expected an int, None or a prefix of the tree"),
    ],
)
def test_an_output_without_a_place_for_the_agents_raises(out: Any, message: str) -> None:
    x = numbers(4, N, 2)
    with pytest.raises(fm.StructureError, match=message):
        call(lambda w, x: w * x, x, out_agent_dim=out)
