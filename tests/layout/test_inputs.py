"""Inputs laid out for the agents: what each agent sees, written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, mlp, numbers
from tests.layout.scaled_agents import SCALES, Observation, call, close

# --- one input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (4, 2), (0,), (4, 0)])
def test_the_agent_axis_may_be_any_axis(batch: tuple[int, ...], strategy: Any) -> None:
    for dim in range(len(batch) + 1):
        x = numbers(*batch[:dim], N, *batch[dim:])
        function: Any = (lambda w, x: w * x.cumsum(-1)) if batch else (lambda w, x: w * x)
        expected = torch.stack([function(SCALES[i], x.select(dim, i)) for i in range(N)], dim)
        for given in (dim, dim - x.ndim):
            close(call(function, x, agent_dim=given, strategy=strategy), expected)


# --- several inputs ----------------------------------------------------------------------------------


def test_one_int_is_resolved_on_the_first_input(strategy: Any) -> None:
    x, hidden, flag = numbers(4, N, 6), numbers(4, N, seed=1), numbers(4, N, 2, 6, seed=2)
    function: Any = lambda w, x, h, f: (w * x + h[:, None], f.sum(1))
    got = call(function, x, hidden, flag, strategy=strategy)
    close(got[0], torch.stack([SCALES[i] * x[:, i] + hidden[:, i, None] for i in range(N)], 1))
    close(got[1], torch.stack([flag[:, i].sum(1) for i in range(N)], 1))


def test_a_prefix_sets_the_axis_of_each_leaf(strategy: Any) -> None:
    x = {"b": [numbers(N, 4, seed=1), numbers(4, N, seed=2)], "a": numbers(4, seed=3)}
    o = Observation(numbers(4, N, seed=4), (numbers(2, 4, N, seed=5), numbers(2, 4, N, seed=6)))
    shared = numbers(4, seed=7)

    def function(w: Tensor, x: Any, o: Any, s: Tensor) -> Tensor:
        assert type(o) is Observation
        assert type(x["b"]) is list
        return w * (x["b"][0] + x["b"][1] + x["a"]) + o.pixels + (o.features[0] - o.features[1]).sum(0) * s

    prefix = ({"a": None, "b": [0, -1]}, Observation(1, -1), None)
    got = call(function, x, o, shared, agent_dim=prefix, out_agent_dim=0, strategy=strategy)
    expected = [
        function(
            SCALES[i],
            {"a": x["a"], "b": [x["b"][0][i], x["b"][1][:, i]]},
            Observation(o.pixels[:, i], (o.features[0][..., i], o.features[1][..., i])),
            shared,
        )
        for i in range(N)
    ]
    close(got, torch.stack(expected))


@pytest.mark.parametrize(
    "agent_dim", [-2, (-2, -2), (-2, {"b": -2, "a": -2}), ({"x": -2}, 1), (1, {"a": 1, "b": 1})], ids=str
)
def test_a_prefix_may_stop_early(agent_dim: Any, strategy: Any) -> None:
    first, second = {"x": numbers(4, N, 2)}, {"a": numbers(4, N, 2, seed=1), "b": numbers(4, N, 2, seed=2)}
    got = call(lambda w, f, s: w * f["x"] + s["a"] / s["b"], first, second, agent_dim=agent_dim, strategy=strategy)
    close(got, torch.stack([SCALES[i] * first["x"][:, i] + second["a"][:, i] / second["b"][:, i] for i in range(N)], 1))


def test_a_prefix_of_one_input_needs_no_tuple(strategy: Any) -> None:
    x = {"a": numbers(N, 4), "b": numbers(4, seed=1)}
    got = call(lambda w, x: w * x["a"] + x["b"], x, agent_dim={"a": 0, "b": None}, strategy=strategy)
    close(got, torch.stack([SCALES[i] * x["a"][i] + x["b"] for i in range(N)]))
    whole = call(lambda w, x: w * x, x["b"], agent_dim=None, out_agent_dim=0, strategy=strategy)
    close(whole, torch.stack([SCALES[i] * x["b"] for i in range(N)]))


@pytest.mark.parametrize("agent_dim", [-2, (-2,), (-2, -2), (-2, {"scale": -2, "shift": 1})], ids=str)
def test_keyword_inputs_follow_the_first_input_or_their_own_prefix(agent_dim: Any, strategy: Any) -> None:
    x, kwargs = numbers(4, N, 2), {"shift": numbers(4, N, 2, seed=1), "scale": numbers(4, N, 2, seed=2)}
    function: Any = lambda w, x, *, shift, scale: w * x * scale + shift
    got = call(function, x, kwargs=kwargs, agent_dim=agent_dim, strategy=strategy)
    expected = [SCALES[i] * x[:, i] * kwargs["scale"][:, i] + kwargs["shift"][:, i] for i in range(N)]
    close(got, torch.stack(expected, 1))


def test_keyword_inputs_alone_and_without_an_agent_axis(strategy: Any) -> None:
    x, y = numbers(4, N, 2), numbers(4, 2, seed=1)
    function: Any = lambda w, x, y=0.0: w * x + y
    expected = torch.stack([SCALES[i] * x[:, i] for i in range(N)], 1)
    close(call(function, kwargs={"x": x}, strategy=strategy), expected)
    got = call(function, kwargs={"x": x, "y": y}, agent_dim=({"x": 1, "y": None},), strategy=strategy)
    close(got, expected + y[:, None])
    whole = call(function, y, kwargs={"y": y}, agent_dim=(None,), out_agent_dim=0, strategy=strategy)
    close(whole, torch.stack([SCALES[i] * y + y for i in range(N)]))


def test_every_agent_sees_the_whole_of_what_is_no_tensor(strategy: Any) -> None:
    x = numbers(4, N, 2)

    def function(w: Tensor, mode: str, power: int, x: Tensor, options: Any, nothing: None, *, extra: Any) -> Any:
        assert mode == "a"
        assert nothing is None
        assert options == {"k": [True, 2.5], "none": None}
        assert extra is Ellipsis
        return {"y": w * x**power, "tag": mode, "n": power, "none": None, "empty": ()}

    inputs = ("a", 2, x, {"k": [True, 2.5], "none": None}, None)
    for agent_dim in (-2, (None, None, 1, None, None)):
        got = call(function, *inputs, kwargs={"extra": ...}, agent_dim=agent_dim, strategy=strategy)
        close(got.pop("y"), torch.stack([SCALES[i] * x[:, i] ** 2 for i in range(N)], 1))
        assert got == {"tag": "a", "n": 2, "none": None, "empty": ()}


def test_a_call_without_inputs(strategy: Any) -> None:
    close(call(lambda w: w[None] * 1, out_agent_dim=0, strategy=strategy), SCALES[:, None])
    close(call(lambda w: w.expand(4).clone(), strategy=strategy), SCALES[:, None].expand(N, 4))  # dim -2


# --- centralized -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(N, 6), (4, N, 6), (N, 4, 6), (4, 2, N, 6), (4, N, 2, 6)])
def test_centralized_agents_see_all_observations_side_by_side(shape: tuple[int, ...], strategy: Any) -> None:
    x = numbers(*shape)
    for dim in [d for d in range(len(shape) - 1) if shape[d] == N]:
        joint = torch.cat([x.select(dim, j) for j in range(N)], dim)
        for given in (dim, dim - len(shape)):
            got = call(lambda w, x: w * x, x, agent_dim=given, centralized=True, strategy=strategy)
            close(got, torch.stack([SCALES[i] * joint for i in range(N)], dim))


def test_centralized_merges_the_first_input_only(strategy: Any) -> None:
    x, own, whole = {"a": numbers(4, N, 2), "b": numbers(4, N, 5)}, numbers(4, N, 6, seed=1), numbers(4, 6, seed=2)
    function: Any = lambda w, x, own, whole: w * (x["a"] + x["b"].sum(-1, True)[..., :6]) + own * whole
    got = call(function, x, own, whole, agent_dim=(1, 1, None), centralized=True, strategy=strategy)
    a, b = (x[k].reshape(4, -1) for k in "ab")
    close(got, torch.stack([SCALES[i] * (a + b.sum(-1, True)) + own[:, i] * whole for i in range(N)], 1))


def test_centralized_leaves_inputs_without_an_agent_axis_as_they_are(strategy: Any) -> None:
    x = {"goal": numbers(4, 2), "own": numbers(4, N, 2, seed=1), "past": numbers(N, 4, 5, seed=2)}
    prefix: Any = ({"goal": None, "own": 1, "past": 0},)
    function: Any = lambda w, x: w * torch.cat([x["goal"], x["own"]], 1).sum(1) + x["past"].sum()
    got = call(function, x, agent_dim=prefix, out_agent_dim=0, centralized=True, strategy=strategy)
    flat = torch.cat([x["goal"], x["own"].reshape(4, -1)], 1).sum(1)
    close(got, torch.stack([SCALES[i] * flat + x["past"].sum() for i in range(N)]))


def test_a_centralized_shared_network_gives_every_agent_the_same(strategy: Any) -> None:
    net = fm.network(lambda: nn.Linear(N * 2, 3).double(), N, centralized=True, sharing="shared", strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(4, N, 2)
    got = fm.apply(net, params, x)
    one = x.reshape(4, -1) @ params["weight"][0].T + params["bias"][0]
    close(got, torch.stack([one] * N, 1))
    if strategy == "vmap":  # evaluated once, and its output expanded
        assert got.stride(1) == 0


# --- what does not fit -------------------------------------------------------------------------------

X = torch.zeros(4, N, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "inputs", "kwargs", "message"),
    [
        (
            {"centralized": True, "agent_dim": -1},
            (X.mT,),
            None,
            r"inputs\[0\]: expected an axis after the agents at dim 2, into which centralized=True merges them, got",
        ),
        (
            {"centralized": True, "agent_dim": (None,)},
            (X,),
            None,
            r"^inputs\[0\]: expected a positional input with an agent axis, .* into the next axis; got none$",
        ),
        ({"centralized": True}, (), {"x": X}, r"inputs\[0\]: expected a positional input with an agent axis"),
    ],
)
def test_centralized_needs_an_agent_axis_and_one_after_it(
    settings: Any, inputs: Any, kwargs: Any, message: str
) -> None:
    with pytest.raises(fm.StructureError, match=message):
        call(lambda w, *xs, **named: w * X[:, 0], *inputs, kwargs=kwargs, **settings)


def test_wrong_inputs_raise_before_the_module_runs() -> None:
    ran: list[int] = []
    with pytest.raises(fm.StructureError, match="expected 3 agents"):
        call(lambda w, *xs: ran.append(1), X, X[:, 0])
    assert ran == []


def test_dicts_by_agent_arrays_and_lists_raise_and_name_the_fix() -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    for shape in ((4,), (5, 4)):
        with pytest.raises(fm.StructureError, match=r"got a dict of 3 tensors of shape .*; fm.group_agents stacks"):
            fm.apply(net, params, {name: numbers(*shape) for name in "abc"})
    for wrong in (np.zeros((5, N, 4)), {"x": np.zeros((5, N, 4))}):
        with pytest.raises(fm.StructureError, match=r"got a ndarray of shape \[5, 3, 4\]; torch.as_tensor"):
            fm.apply(net, params, wrong)
    with pytest.raises(fm.StructureError, match=r"inputs\[0\]: .* got a list without any; torch.tensor"):
        fm.apply(net, params, numbers(5, N, 4).tolist())
