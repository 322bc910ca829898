"""The agent axis of each input: what one int means for inputs of different rank, and the errors for a wrong axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, numbers
from tests.layout.scaled_agents import SCALES, call, close


def add(w: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """``x: [*T, B, F]`` and ``h: [B, F]`` of one agent."""
    return w * x + h


def test_a_negative_int_counts_from_the_end_of_each_input(strategy: Any) -> None:
    x, h = numbers(7, 5, N, 4), numbers(5, N, 4, seed=1)
    expected = torch.stack([SCALES[i] * x[:, :, i] + h[:, i] for i in range(N)], 2)
    close(call(add, x, h, strategy=strategy), expected)
    close(call(lambda w, x, h: add(w, x, h), x, kwargs={"h": h}, strategy=strategy), expected)
    close(call(add, x, h, agent_dim=(-2, -2), strategy=strategy), expected)
    close(call(add, x, kwargs={"h": h}, agent_dim=(-2,), strategy=strategy), expected)
    # as many steps as agents: the front axis fits too
    x, h = numbers(N, N, N, 4), numbers(5, N, 4, seed=1)
    got = call(lambda w, x, h: w * x.sum((0, 1)) + h.sum(0), x, h, out_agent_dim=0, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x[:, :, i].sum((0, 1)) + h[:, i].sum(0) for i in range(N)]))


def test_an_input_without_the_agents_there_has_them_at_the_position_of_the_first_input(strategy: Any) -> None:
    x, h, steps = numbers(5, N, 4), numbers(5, N, seed=1), numbers(5, N, 7, 4, seed=2)
    got = call(lambda w, x, h, s: w * x + h[:, None] + s.sum(1), x, h, steps, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x[:, i] + h[:, i, None] + steps[:, i].sum(1) for i in range(N)], 1))
    flat = numbers(N, seed=3)  # too few axes to count from the end
    got = call(lambda w, x, f: w * x + f, x[0], flat, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x[0, i] + flat[i] for i in range(N)]))


def test_an_int_of_zero_or_more_is_that_position_in_every_input(strategy: Any) -> None:
    x, h = numbers(N, N, N, 4), numbers(N, N, seed=1)  # everything fits everywhere
    got = call(lambda w, x, h: w * x + h[:, None, None], x, h, agent_dim=1, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x[:, i] + h[:, i, None, None] for i in range(N)], 1))


@pytest.mark.parametrize(
    ("inputs", "kwargs", "agent_dim", "prefix"),
    [
        ((numbers(N, N, 4), numbers(N, N)), None, -2, "(-2, -2)"),
        ((numbers(N, N, 4),), {"h": numbers(N, N)}, -2, "(-2, -2)"),
        ((numbers(N, N, 4),), {"h": numbers(N, N)}, (-2,), "(-2, -2)"),
        (({"a": numbers(N, N, 4), "b": numbers(N, N)},), None, -2, "(-2,)"),
    ],
)
@pytest.mark.parametrize("centralized", [False, True])
def test_an_int_that_fits_two_axes_raises_and_names_both(
    inputs: Any, kwargs: Any, agent_dim: Any, prefix: str, centralized: bool
) -> None:
    with pytest.raises(fm.StructureError) as caught:
        call(lambda w, *a, **k: w, *inputs, kwargs=kwargs, agent_dim=agent_dim, centralized=centralized)
    text = str(caught.value)
    assert "got shape [3, 3], where agent_dim=-2 fits two axes: 0 (from the end of this input) and 1 (where" in text
    assert f"of shape [3, 3, 4] has the agents); agent_dim={prefix} counts from the end of each input" in text
    assert "agent_dim=1 is that axis in all of them, and a tuple can mix both" in text


def test_the_fixes_that_the_message_names_work() -> None:
    x, h = numbers(N, N, 4), numbers(N, N, seed=1)
    function: Any = lambda w, x, h: w * x + h[:, None]
    end = call(function, x, h, agent_dim=(-2, -2))
    close(end, torch.stack([SCALES[i] * x[:, i] + h[i][:, None] for i in range(N)], 1))
    front = call(function, x, h, agent_dim=1)
    close(front, torch.stack([SCALES[i] * x[:, i] + h[:, i, None] for i in range(N)], 1))


def test_one_agent_in_a_batch_of_one_is_not_ambiguous() -> None:
    net = fm.network(Masked, 1)
    params = fm.init_params(net, 0)
    x, mask = torch.ones(1, 1, 4), torch.full((1, 1), 2.0)
    one = fm.agent_module(net, params, 0)(x[:, 0], mask[:, 0])
    assert torch.equal(fm.apply(net, params, x, mask), one[:, None])


def test_centralized_networks_find_the_axis_of_other_inputs_likewise(strategy: Any) -> None:
    x, h = numbers(7, 5, N, 4), numbers(5, N, 2, seed=1)
    got = call(lambda w, x, h: w * x.sum(-1) + h.sum(-1), x, h, centralized=True, out_agent_dim=0, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x.flatten(2).sum(-1) + h[:, i].sum(-1) for i in range(N)]))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x) * mask.unsqueeze(-1)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_export_leaves_a_dynamic_batch_size_open(strict: bool) -> None:
    net = fm.network(Masked, N)
    params = fm.init_params(net, 0)
    wrapped = Exported(net, params)
    x, mask = torch.rand(5, N, 4), torch.rand(5, N)
    batch = torch.export.Dim("batch", min=1, max=100)
    program = torch.export.export(wrapped, (x, mask), dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    for size in (1, 7):
        x, mask = torch.rand(size, N, 4), torch.rand(size, N)
        torch.testing.assert_close(program.module()(x, mask), fm.apply(net, params, x, mask))


class Exported(nn.Module):
    def __init__(self, net: fm.Network, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.net, self.names = net, list(params)
        for name, leaf in params.items():
            self.register_buffer(name.replace(".", "_"), leaf)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        params = {name: getattr(self, name.replace(".", "_")) for name in self.names}
        return fm.apply(self.net, params, x, mask)


def test_a_compiled_call_finds_the_axis_that_an_eager_one_finds() -> None:
    net = fm.network(Masked, N)
    params = fm.init_params(net, 0)
    run: Any = lambda x, mask: fm.apply(net, params, x, mask)
    compiled: Any = torch.compile(run, fullgraph=True, backend="eager", dynamic=False)
    for shape in ((5, N), (2, 5, N)):
        x, mask = torch.rand(*shape, 4), torch.rand(shape)
        torch.testing.assert_close(compiled(x, mask), run(x, mask))


# --- errors --------------------------------------------------------------------------------------------

X = torch.zeros(4, N, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "inputs", "kwargs", "message"),
    [
        ({}, (X[:, :2],), None, r"inputs\[0\]: expected 3 agents at dim -2, got 2 in shape \[4, 2, 2\]"),
        (
            {"agent_dim": 0},
            (X,),
            None,
            r"inputs\[0\]: expected 3 agents at dim 0, got 4 in shape .*; set agent_dim= of the network to the agent "
            r"axis, one int for all inputs or one for each$",
        ),
        ({}, (X[0, 0],), None, r"inputs\[0\]: expected 3 agents at dim -2, got shape \[2\], which has no such dim"),
        ({"agent_dim": 3}, (X,), None, r"has no such dim; set agent_dim= of the network, with None for an input that"),
        ({}, (X, X[:, 0]), None, r"inputs\[1\]: expected 3 agents at dim 1 or -2, got 2 in shape \[4, 2\]"),
        ({"agent_dim": 1}, (X, X[:, 0]), None, r"inputs\[1\]: expected 3 agents at dim 1, got 2 in shape \[4, 2\]"),
        ({}, ({"a": X, "b": [X, X[:, 0]]},), None, r"inputs\[0\]\['b'\]\[1\]: expected 3 agents at dim 1 or -2, got 2"),
        ({}, ({"a": X[:, :2]},), None, r"inputs\[0\]\['a'\]: expected 3 agents at dim -2, got 2"),
        ({}, (X,), {"y": X[0, 0]}, r"kwargs\['y'\]: expected 3 agents at dim 1, got shape \[2\]"),
        ({"agent_dim": (1, None)}, (X,), None, r"agent_dim: expected an int, None or a prefix of the tree"),
        ({"agent_dim": ({"a": 1},)}, ({"a": X, "b": X},), None, "agent_dim: expected an int, None or a prefix"),
        ({"agent_dim": (1, {"z": 1})}, (X,), {"y": X}, "agent_dim: expected an int, None or a prefix"),
    ],
)
def test_an_input_with_a_wrong_agent_axis_is_named(settings: Any, inputs: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(fm.StructureError, match=message):
        call(lambda w, *xs, **named: w * X[:, 0], *inputs, kwargs=kwargs, **settings)
