"""Dicts keyed by agent: modules of stacked inputs compute what the modules of dicts compute."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.func import functional_call

from functional_marl.laws._agent_dicts import KeyedByAgent, keyed_by_agent
from functional_marl.laws._subject import CheckError

AGENTS = ["a", "b", "c"]
SIZES = {"walker_0": 6, "walker_1": 6, "runner_0": 4}


def drawn(agents: Any = AGENTS, *shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {agent: torch.randn(shape or (4, 6), generator=generator) for agent in agents}


class Shared(nn.Module):
    """One network called in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5))

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {agent: self.net(x[agent]) for agent in x}


class Own(nn.Module):
    """A network of each agent."""

    def __init__(self, sizes: Mapping[str, int] | None = None, outs: Mapping[str, int] | None = None) -> None:
        super().__init__()
        sizes = sizes or dict.fromkeys(AGENTS, 6)
        self.nets = nn.ModuleDict({agent: nn.Linear(size, (outs or {}).get(agent, 2)) for agent, size in sizes.items()})

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {agent: self.nets[agent](x[agent]) for agent in x}


class Whole(nn.Module):
    """One MLP over the observations of all, in the order of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(18, 6)

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        y = self.net(torch.cat(list(x.values()), -1)).chunk(3, -1)
        return dict(zip(x, y, strict=True))


def oracle(module: nn.Module, x: Mapping[str, Tensor], agents: Any = AGENTS) -> Tensor:
    y = module.eval()(x)
    return torch.stack([y[agent] for agent in agents], 1)


@pytest.mark.parametrize("build", [Shared, Own, Whole])
def test_one_shape_is_stacked(build: Callable[[], nn.Module]) -> None:
    module, x = build(), drawn(["c", "a", "b"])  # another order than the agents' numbers
    expected = oracle(module, x)
    wrapped, stacked, groups, order = keyed_by_agent(module, AGENTS, x)
    assert groups is None
    assert order == ("a", "b", "c")
    assert wrapped.batch_dims == 1
    assert wrapped.agent_dim == (1,)
    assert torch.equal(stacked, torch.stack([x[agent] for agent in AGENTS], 1))
    assert torch.equal(wrapped(stacked), expected)


def test_the_module_gets_its_own_order_of_keys() -> None:
    seen: list[list[str]] = []

    class Order(Shared):
        def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
            seen.append(list(x))
            return super().forward(x)

    wrapped, stacked, *_ = keyed_by_agent(Order(), AGENTS, drawn(["c", "a", "b"]))
    wrapped(stacked)
    assert seen == [["c", "a", "b"]] * 2


@pytest.mark.parametrize(
    ("shape", "claim", "batch_dims", "stacked"),
    [
        ((6,), None, 0, (3, 6)),
        ((4, 6), None, 1, (4, 3, 6)),
        ((4, 6), 0, 0, (3, 4, 6)),
        ((5, 4, 6), None, 1, (5, 3, 4, 6)),
        ((5, 4, 6), 2, 2, (5, 4, 3, 6)),
        ((0, 6), None, 1, (0, 3, 6)),
    ],
)
def test_batch_axes(shape: tuple[int, ...], claim: int | None, batch_dims: int, stacked: tuple[int, ...]) -> None:
    module, x = Own(), drawn(AGENTS, *shape)
    wrapped, found, *_ = keyed_by_agent(module, AGENTS, x, claim)
    assert wrapped.batch_dims == batch_dims
    assert found.shape == stacked
    y = module(x)
    assert torch.equal(wrapped(found), torch.stack([y[agent] for agent in AGENTS], batch_dims))


# --- groups -----------------------------------------------------------------------------------------------


def test_different_shapes_are_groups() -> None:
    module, x = Own(SIZES), {agent: torch.randn(4, size) for agent, size in SIZES.items()}
    x = {agent: x[agent] for agent in ("runner_0", "walker_0", "walker_1")}
    wrapped, stacked, groups, order = keyed_by_agent(module, list(SIZES), x)
    assert groups == {"walker": 2, "runner": 1}
    assert order == ("walker_0", "walker_1", "runner_0")
    assert {group: leaf.shape for group, leaf in stacked.items()} == {"walker": (4, 2, 6), "runner": (4, 1, 4)}
    expected, y = module(x), wrapped(stacked)
    for group, i, agent in [("walker", 0, "walker_0"), ("walker", 1, "walker_1"), ("runner", 0, "runner_0")]:
        assert torch.equal(y[group][:, i], expected[agent])


def test_different_outputs_are_groups() -> None:
    module, x = Own(outs={"b": 5}), drawn()
    wrapped, stacked, groups, order = keyed_by_agent(module, AGENTS, x)
    assert groups == {"a+c": 2, "b": 1}
    assert order == ("a", "c", "b")
    expected, y = module(x), wrapped(stacked)
    assert torch.equal(y["a+c"], torch.stack([expected["a"], expected["c"]], 1))
    assert torch.equal(y["b"], expected["b"][:, None])


def test_different_dtypes_are_groups() -> None:
    class Same(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return dict(x)

    _, stacked, groups, _ = keyed_by_agent(Same(), ["a", "b"], {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2).long()})
    assert groups == {"a": 1, "b": 1}
    assert stacked["b"].dtype is torch.int64


def test_names_of_groups_are_different() -> None:
    sizes = {"x_0": 3, "x_1": 4, "x": 5}
    _, _, groups, _ = keyed_by_agent(Own(sizes), list(sizes), {k: torch.zeros(2, n) for k, n in sizes.items()})
    assert groups == {"x_0": 1, "x_1": 1, "x": 1}


# --- inputs and outputs of other forms --------------------------------------------------------------------


def test_trees_and_what_all_see() -> None:
    class Masked(nn.Module):
        def forward(self, obs: Any, state: Tensor, extra: Any, *, gain: Any, bias: Tensor) -> Any:
            actions = {a: obs[a]["x"] * obs[a]["mask"] * gain[a] + state for a in obs}
            return actions, {a: extra["more"][a].sum(-1) + bias for a in obs}

    obs = {a: {"x": x, "mask": x > 0} for a, x in drawn().items()}
    state, more, bias = torch.randn(4, 6), drawn(AGENTS, 4, 2), torch.randn(4)
    example, kwargs = (obs, state, {"more": more, "t": bias}), {"gain": drawn(AGENTS, 4, 1), "bias": bias}
    expected = Masked()(*example, **kwargs)
    wrapped, stacked, *_ = keyed_by_agent(Masked(), AGENTS, example, kwargs=kwargs)
    assert wrapped.agent_dim == (1, None, {"more": 1, "t": None})
    assert stacked[0]["mask"].shape == (4, 3, 6)
    assert stacked[1] is state
    named = wrapped.stack(kwargs)
    assert named["gain"].shape == (4, 3, 1)
    assert named["bias"] is bias
    for k, y in enumerate(wrapped(*stacked, **named)):
        assert torch.equal(y, torch.stack([expected[k][a] for a in AGENTS], 1))


@pytest.mark.parametrize("inner", [False, True])
def test_tensordicts(inner: bool) -> None:
    class Reads(nn.Module):
        def forward(self, td: TensorDict) -> Any:
            assert isinstance(td, TensorDict)
            assert td.batch_size == (4,)
            if inner:
                assert all(isinstance(td[a], TensorDict) for a in AGENTS)
            values = {a: td[a, "x"] if inner else td[a] for a in AGENTS}
            return TensorDict({a: {"y": 2 * x} for a, x in values.items()}, [4])

    x = drawn()
    td = TensorDict({a: TensorDict({"x": x[a]}, [4]) if inner else x[a] for a in AGENTS}, [4])
    wrapped, stacked, *_ = keyed_by_agent(Reads(), AGENTS, td)
    assert torch.equal(wrapped(stacked)["y"], torch.stack([2 * x[a] for a in AGENTS], 1))


def test_distributions_and_numbers() -> None:
    class Dists(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> Any:
            return {a: Normal(v, 1.0) for a, v in x.items()}

    class Numbers(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> Any:
            return {a: int(v.argmax()) for a, v in x.items()}

    x = drawn()
    wrapped, stacked, *_ = keyed_by_agent(Dists(), AGENTS, x)
    assert torch.equal(wrapped(stacked)["loc"], stacked)
    wrapped, stacked, *_ = keyed_by_agent(Numbers(), AGENTS, {a: v[0] for a, v in x.items()})
    assert wrapped(stacked).tolist() == [int(x[a][0].argmax()) for a in AGENTS]


@pytest.mark.parametrize("select", ["logits", lambda output: {a: dist.logits for a, dist in output.items()}])
def test_select_of_agents(select: Any) -> None:
    class Dists(Own):
        def forward(self, x: Mapping[str, Tensor]) -> Any:
            return {a: Categorical(logits=y) for a, y in super().forward(x).items()}

    module, x = Dists(), drawn()
    wrapped, stacked, *_ = keyed_by_agent(module, AGENTS, x, select=select)
    assert torch.equal(wrapped(stacked), torch.stack([module(x)[a].logits for a in AGENTS], 1))


def test_select_of_the_whole() -> None:
    class Recurrent(Own):
        def forward(self, x: Mapping[str, Tensor]) -> Any:
            return super().forward(x), torch.zeros(4, 7)

    x = drawn()
    wrapped, stacked, *_ = keyed_by_agent(Recurrent(), AGENTS, x, select="0")
    assert wrapped(stacked).shape == (4, 3, 2)
    with pytest.raises(CheckError, match=r"outputs\[1\]: expected a dict keyed by .*got a tensor .*\[4, 7\].*select="):
        keyed_by_agent(Recurrent(), AGENTS, x)


def test_an_example_that_is_drawn() -> None:
    def example(generator: torch.Generator) -> dict[str, Tensor]:
        return {a: torch.randn(4, 6, generator=generator) for a in AGENTS}

    _, draw, *_ = keyed_by_agent(Shared(), AGENTS, example)
    x = example(torch.Generator().manual_seed(7))
    assert torch.equal(draw(torch.Generator().manual_seed(7)), torch.stack([x[a] for a in AGENTS], 1))


# --- one set of attributes --------------------------------------------------------------------------------


def test_parameters_have_their_own_names() -> None:
    module = Shared()
    wrapped, stacked, *_ = keyed_by_agent(module, AGENTS, drawn())
    assert [name for name, _ in wrapped.named_parameters()] == ["net.0.weight", "net.0.bias"]
    zeros = {name: torch.zeros_like(leaf) for name, leaf in module.named_parameters()}
    before = wrapped.eval()(stacked)
    assert not functional_call(wrapped, zeros, (stacked,)).any()
    assert torch.equal(wrapped(stacked), before)
    assert before.any()
    wrapped(stacked).sum().backward()
    assert module.net[0].get_parameter("weight").grad is not None


def test_a_parameter_of_the_module_itself() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(6))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self.calls += 1
            return {a: v + self.bias for a, v in x.items()}

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.bias)

    module = Bias()
    wrapped, stacked, *_ = keyed_by_agent(module, AGENTS, drawn())
    assert module.calls == 0, "the first call leaves no trace"
    moved = functional_call(wrapped, {"bias": torch.ones(6)}, (stacked,))
    assert torch.equal(moved, stacked + 1)
    wrapped.reset_parameters()
    assert torch.equal(wrapped(stacked), stacked)
    assert not module.bias.any()


def test_the_flag_of_training_and_hooks_are_the_modules() -> None:
    module, calls = Shared(), list[Any]()
    wrapped, stacked, *_ = keyed_by_agent(module, AGENTS, drawn())
    assert wrapped.training
    wrapped.eval()
    assert not module.training
    assert not module.net.training
    module.register_forward_hook(lambda _module, args, _output: calls.append(args[0]))
    wrapped(stacked)
    assert len(calls) == 1
    assert list(calls[0]) == AGENTS


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_apart(copied: Callable[[KeyedByAgent], KeyedByAgent]) -> None:
    wrapped, stacked, *_ = keyed_by_agent(Shared().eval(), AGENTS, drawn())
    other = copied(wrapped)
    assert torch.equal(other(stacked), wrapped(stacked))
    with torch.no_grad():
        other.get_parameter("net.0.bias").add_(1)
    assert not torch.equal(other(stacked), wrapped(stacked))
    assert torch.equal(other.inner.get_parameter("net.0.bias"), other.get_parameter("net.0.bias"))


def test_a_module_that_raises_says_so_when_it_is_called() -> None:
    wrapped, stacked, groups, _ = keyed_by_agent(Shared(), AGENTS, drawn(AGENTS, 4, 5))
    assert groups is None
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        wrapped(stacked)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agents", "example", "match"),
    [
        (AGENTS, drawn(["a", "b"]), r"inputs\[0\]: expected the agents \['a', 'b', 'c'\]; it misses \['c'\]"),
        (AGENTS, drawn(["a", "b", "c", "d"]), r"it has besides \['d'\]"),
        (AGENTS, drawn(["a", "b", "d"]), r"it misses \['c'\] and has besides \['d'\]"),
        (AGENTS, ({"obs": drawn(["a"])},), r"inputs\[0\]\['obs'\]: expected the agents"),
        (AGENTS, torch.zeros(4, 3, 6), r"expected a dict keyed by the agents \['a', 'b', 'c'\], got \['Tensor'\]"),
        (AGENTS, drawn(["x", "y"]), r"expected a dict keyed by .*got \[\['x', 'y'\]\]"),
        (AGENTS, dict.fromkeys(AGENTS, 1.0), r"inputs\[0\]\['a'\]: expected tensors, got float"),
        ("abc", drawn(), "agents: expected a list of different names, got 'abc'"),
        (["a", "a"], drawn(), "agents: expected a list of different names"),
        ([], drawn(), "agents: expected a list of different names"),
    ],
)
def test_inputs_of_other_agents(agents: Any, example: Any, match: str) -> None:
    with pytest.raises(CheckError, match=match):
        keyed_by_agent(Shared(), agents, example)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x["a"], r"outputs: expected a dict keyed by the agents .* got a tensor of shape \[4, 6\]"),
        (lambda x: {a: x[a] for a in "ab"}, r"outputs: expected the agents .*; it misses \['c'\]"),
        (lambda x: {**x, "__all__": x["a"]}, r"it has besides \['__all__'\]"),
        (lambda x: {"y": x["a"]}, r"outputs\['y'\]: expected a dict keyed by the agents"),
        (lambda x: None, "output: expected tensors"),
        (lambda x: {a: v.sum() for a, v in x.items()}, r"outputs\['a'\]: expected 1 batch axes in front.*batch_dims="),
    ],
)
def test_outputs_of_other_forms(function: Any, match: str) -> None:
    class Gives(nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    def called() -> None:
        wrapped, stacked, *_ = keyed_by_agent(Gives(), AGENTS, drawn())
        wrapped(stacked)

    with pytest.raises(CheckError, match=match):
        called()


def test_shapes_that_change() -> None:
    class Changes(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {a: v[: 2 if self.training and a == "b" else None] for a, v in x.items()}

    wrapped, stacked, *_ = keyed_by_agent(Changes(), AGENTS, drawn())
    with pytest.raises(CheckError, match=r"outputs: expected the same shapes as of the example .*\[2, 6\]"):
        wrapped.train()(stacked)
