"""``apply`` against a loop over agents: sharings, strategies, shapes, purity, errors, and fallbacks to the loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._lowering import linear_kernels as dense
from tests.builders import (
    FLAT_SHARINGS,
    SHARINGS,
    N,
    assert_alike,
    by_agents,
    by_apply,
    copied,
    generators_untouched,
    looped,
    mlp,
    numbers,
    same,
)

STRATEGIES: list[Any] = ["auto", "loop", "vmap", "plan"]


class Does(nn.Module):
    """A linear layer, and a function of it and the input as forward."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear, x)


def does(function: Callable[[Any, Tensor], Any], **settings: Any) -> fm.Network:
    return fm.network(lambda: Does(function), N, **settings)


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# --- the meaning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sharing", SHARINGS.values(), ids=SHARINGS)
def test_apply_equals_a_loop_over_agents(sharing: Any, strategy: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing, strategy=strategy, agent_dim=0)
    params = fm.init_params(net, 0)
    for shape in ((4,), (5, 4), (20, 4), (2, 3, 4), (0, 4), (2, 0, 4)):
        x = numbers(N, *shape)
        assert_alike(by_apply(net, params, x), by_agents(net, params, x))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "sharing",
    [[0], fm.Sharing([1], 3), [0, 0, 0, 1, 2, 2, 1], [3, 1, 2, 0], [1, 0] * 6, [0] * 9 + [1], [0, 1, 1, 0, 2] * 3],
    ids=str,
)
def test_teams_and_clusters_of_any_size(sharing: Any, strategy: Any) -> None:
    n = len(sharing)
    net = fm.network(mlp, n, sharing=sharing, strategy=strategy, agent_dim=0)
    params = fm.init_params(net, 0)
    for batch in (1, 20):
        x = numbers(n, batch, 4)
        assert_alike(by_apply(net, params, x), by_agents(net, params, x))


@pytest.mark.parametrize("sharing", ["independent", [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]], ids=str)
def test_agents_in_chunks_compute_the_same(sharing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "CHUNK_ABOVE", 1)
    monkeypatch.setattr(dense, "CHUNK", 3 * 5 * 5 * 8)  # three agents of five rows of width 5
    net = fm.network(mlp, 10, sharing=sharing, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(10, 5, 4)
    assert_alike(by_apply(net, params, x), by_agents(net, params, x))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sharing", SHARINGS.values(), ids=SHARINGS)
def test_centralized_agents_share_the_input_but_not_parameters(sharing: Any, strategy: Any) -> None:
    wide = lambda: nn.Sequential(nn.Linear(N * 4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    net = fm.network(wide, N, sharing=sharing, strategy=strategy, centralized=True)
    params = {name: leaf.requires_grad_() for name, leaf in fm.init_params(net, 0).items()}
    x = numbers(5, N, 4)
    joint = torch.cat(x.unbind(1), -1)
    y = fm.apply(net, params, x)
    modules = [fm.agent_module(net, params, i) for i in range(N)]
    close(y, torch.stack([module(joint) for module in modules], 1))
    y.pow(2).sum().backward()
    for module in modules:
        module(joint).pow(2).sum().backward()
    for name, leaf in params.items():
        expected = torch.zeros_like(leaf)
        for i, module in enumerate(modules):
            grad = module.get_parameter(name).grad
            assert grad is not None
            expected[net.sharing[name].slots[i]] += grad
        close(leaf.grad, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_params_may_be_any_mapping_in_any_order(strategy: Any) -> None:
    net = fm.network(mlp, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = looped(net, params, x).detach()
    backwards = dict(reversed(params.items()))
    for given in (
        params,
        backwards,
        OrderedDict(params),
        fm.to_tensordict(params),
        {k: nn.Parameter(v) for k, v in params.items()},
    ):
        close(fm.apply(net, given, x).detach(), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_apply_works_without_autograd(strategy: Any) -> None:
    net = fm.network(mlp, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = looped(net, params, x).detach()
    learned = {k: v.requires_grad_() for k, v in params.items()}
    assert fm.apply(net, learned, x).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = fm.apply(net, learned, x)
        assert not y.requires_grad
        close(y.clone(), expected)


# --- purity --------------------------------------------------------------------------------------------


def _writes_input(linear: Any, x: Tensor) -> Tensor:
    return linear(x.mul_(2)).add_(1)


def _returns_input(linear: Any, x: Tensor) -> Tensor:
    return x


def _returns_a_view(linear: Any, x: Tensor) -> Tensor:
    return x[..., :2].mT


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("agent_dim", [1, None])
@pytest.mark.parametrize("function", [_writes_input, _returns_input, _returns_a_view])
def test_inputs_and_params_are_unchanged(function: Any, agent_dim: Any, strategy: Any) -> None:
    net = does(function, strategy=strategy, agent_dim=(agent_dim,), out_agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    x_before, params_before = x.clone(), copied(params)
    y = fm.apply(net, params, x)
    each = [fm.agent_module(net, params, i)(x[:, i].clone() if agent_dim else x.clone()) for i in range(N)]
    close(y, torch.stack(each).detach())
    y.clone().zero_()
    assert torch.equal(x, x_before)
    assert same(params, params_before)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sharing", SHARINGS.values(), ids=SHARINGS)
def test_outputs_are_new_tensors(sharing: Any, strategy: Any) -> None:
    net = fm.network(mlp, N, strategy=strategy, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    y = fm.apply(net, params, x)
    expected = y.clone()
    y.zero_()
    assert torch.equal(fm.apply(net, params, x), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluation_uses_no_random_numbers(strategy: Any) -> None:
    net = fm.network(lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with generators_untouched():
        y = fm.apply(net, params, x)
        assert torch.equal(fm.apply(net, params, x, key=3), y)
    close(y, looped(net, params, x).detach())


class Bad(Exception):
    pass


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("error", [Bad("mine"), ValueError("mine"), RuntimeError("mine"), KeyError("mine")], ids=repr)
def test_an_error_of_the_module_is_raised_and_the_next_call_is_correct(error: Exception, strategy: Any) -> None:
    broken = [True]

    def function(linear: Any, x: Tensor) -> Tensor:
        if broken[0]:
            linear.weight.detach().clone().add_(1)
            raise error
        return linear(x)

    net = does(function, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with generators_untouched(), pytest.raises(type(error), match="mine") as caught:
        fm.apply(net, params, x, train=True)
    if strategy == "loop":
        assert any("agent 0 of 3, which sees inputs of shape [5, 4] (float" in n for n in caught.value.__notes__)
    broken[0] = False
    close(fm.apply(net, params, x), looped(net, params, x).detach())


# --- fallback to the loop ------------------------------------------------------------------------------


def _branches(linear: Any, x: Tensor) -> Tensor:
    return linear(x) if bool(x.sum() > 0) else -linear(x)


def _reads_numbers(linear: Any, x: Tensor) -> Tensor:
    return linear(x) * float(x.detach().abs().sum()) + len(x[x > 0].tolist())


def _draws_then_branches(linear: Any, x: Tensor) -> Tensor:
    noise = torch.randn_like(x)
    return linear(x + noise) if bool(x.sum() > 0) else linear(x - noise)


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("function", [_branches, _reads_numbers])
def test_auto_falls_back_to_the_loop_if_vmap_cannot_map_the_module(function: Any, sharing: Any) -> None:
    net = does(function, sharing=sharing, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, 5, 4)
    assert "loop" not in fm.tabulate(net)
    for _ in range(2):
        assert_alike(by_apply(net, params, x), by_agents(net, params, x))
    assert "vmap raised RuntimeError" in fm.tabulate(net)
    with pytest.raises(RuntimeError, match="vmap"):
        fm.apply(net.replace(strategy="vmap"), params, x)


@pytest.mark.parametrize("train", [False, True])
def test_a_seed_gives_the_same_numbers_at_the_first_call_later_and_in_the_loop(train: bool) -> None:
    net = does(_draws_then_branches)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    results: list[tuple[Tensor, Tensor]] = []
    for strategy in ("auto", "auto", "loop"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            results.append((fm.apply(net.replace(strategy=strategy), params, x, train=train), torch.rand(3)))
    for y, after in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(after, results[0][1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_auto_uses_the_loop_at_once_for_layers_without_a_batching_rule(kind: Any) -> None:
    net = fm.network(lambda: kind(4, 3), N, agent_dim=0)
    assert f"loop (torch.func.vmap has no batching rule for {kind.__name__}" in fm.tabulate(net)
    with pytest.raises(fm.StructureError, match=f'strategy="vmap": .*{kind.__name__}.*; use "auto"'):
        fm.apply(net.replace(strategy="vmap"), fm.init_params(net, 0), torch.zeros(N, 2, 4))


def test_vmap_raises_for_layers_that_it_trains_wrongly() -> None:
    builds = (lambda: nn.Embedding(4, 3, padding_idx=0), lambda: nn.Embedding(4, 3, scale_grad_by_freq=True))
    for build in builds:
        net = fm.network(build, N, strategy="vmap")
        with pytest.raises(fm.StructureError, match=r"torch.func.vmap trains Embedding wrongly"):
            fm.apply(net, fm.init_params(net, 0), torch.zeros(N, 2, dtype=torch.int64))


def test_an_input_that_the_module_does_not_take_raises() -> None:
    for strategy in STRATEGIES:
        net = fm.network(mlp, N, strategy=strategy)
        params, x = fm.init_params(net, 0), numbers(5, N, 4)
        for inputs, kwargs in (((x, x), None), ((x,), {"y": x})):
            with pytest.raises(fm.StructureError if strategy == "plan" else TypeError, match=r"takes|unexpected"):
                fm.apply(net, params, *inputs, kwargs=kwargs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cell_may_share_its_hidden_state(strategy: Any) -> None:
    net = fm.network(lambda: nn.GRUCell(4, 5).double(), N, strategy=strategy, agent_dim=(1, None))
    params, x, h = fm.init_params(net, 0), numbers(6, N, 4), numbers(6, 5, seed=1)
    each = [fm.agent_module(net, params, i)(x[:, i], h).detach() for i in range(N)]
    close(fm.apply(net, params, x, h), torch.stack(each, 1))


@pytest.mark.parametrize(
    ("build", "inputs", "message"),
    [
        (mlp, (3,), '^strategy="plan": the plan takes tensors; use "auto", which uses another strategy'),
        (mlp, (numbers(2, N, 4), numbers(2, N, 4)), '^strategy="plan": the plan takes one tensor; use "auto"'),
        (lambda: nn.GRUCell(4, 5), [numbers(2, N, 4)] * 4, r'^strategy="plan": .* positional arguments .*; use "auto"'),
    ],
)
def test_inputs_that_a_plan_does_not_take_raise(build: Any, inputs: Any, message: str) -> None:
    net = fm.network(build, N, strategy="plan", out_agent_dim=0)
    with pytest.raises(fm.StructureError, match=message):
        fm.apply(net, fm.init_params(net, 0), *inputs)


def test_a_module_without_a_plan_raises_the_reason() -> None:
    net = does(_branches, strategy="plan")
    with pytest.raises(fm.StructureError, match=r'strategy="plan": .*Does.*; use "auto"'):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4))


# --- what does not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("agents", [1, 2, 4])
def test_params_of_another_number_of_agents_raise(agents: int, strategy: Any) -> None:
    net = fm.network(mlp, N, strategy=strategy)
    wrong = fm.init_params(fm.network(mlp, agents), 0)
    message = rf"params\['0.weight'\]: expected \[3, 5, 4\], got \[{agents}, 5, 4\]\n(.*\n)*.*the network has 3 agents"
    with pytest.raises(fm.StructureError, match=message) as caught:
        fm.apply(net, wrong, numbers(5, N, 4))
    assert all(name in str(caught.value) for name in wrong)
    shared = net.replace(sharing="shared")
    if agents > 1:
        with pytest.raises(fm.StructureError, match=rf"expected \[1, 5, 4\], got \[{agents}, 5, 4\]"):
            fm.apply(shared, wrong, numbers(5, N, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "3.weight": p["2.bias"]}, r"params\['3.weight'\]: not a leaf of this network; its leaves are"),
        (lambda p: {k: v for k, v in p.items() if k != "2.bias"}, r"params\['2.bias'\]: missing, expected \[3, 2\]"),
        (lambda p: {**p, "2.bias": p["2.bias"][0]}, r"params\['2.bias'\]: expected \[3, 2\], got \[2\]"),
        (lambda p: {**p, "2.bias": None}, r"params\['2.bias'\]: expected a tensor \[3, 2\], got NoneType"),
        (lambda p: {}, r"params\['0.weight'\]: missing"),
        (lambda p: list(p.values()), "expected a dict of dotted names to tensors"),
        (lambda p: mlp(), "expected a dict of dotted names to tensors"),
    ],
)
def test_wrong_params_are_named_before_the_module_runs(change: Any, message: str) -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=message):
        fm.apply(net, change(fm.init_params(net, 0)), "never looked at")


def test_a_wrong_key_raises() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=r"key: expected an int64 tensor of shape \[2\]"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4), key=torch.zeros(3, 2, dtype=torch.int64))


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("strategy", ["auto", "loop", "vmap"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda linear, x: torch.distributions.Normal(linear(x), 1.0),
            "tree of tensors and plain values, got a Normal",
        ),
        (
            lambda linear, x: (linear(x), Holder(x)),
            r"got a Holder; return its tensors in a tuple or dict \(of a distribution the parameters\)",
        ),
        (lambda linear, x: {"y": linear(x), "n": x.detach().numpy}, "tree of tensors and plain values, got a "),
    ],
)
def test_outputs_with_tensors_inside_unknown_objects_raise(function: Any, message: str, strategy: Any) -> None:
    net = does(function, strategy=strategy)
    with pytest.raises(fm.StructureError, match=message):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4))


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda linear, x: float(x.sum()), r"outputs: agents return different shapes or values: \["),
        (lambda linear, x: x[x > 0], r"outputs: agents return different shapes or values: \[\["),
        (lambda linear, x: x if bool(x.sum() > 0) else 0.0, "outputs: agents return different shapes or values"),
        (lambda linear, x: {"a" if bool(x.sum() > 0) else "b": x}, r"different trees: \[\[\"y\['[ab]'\]\"\], \["),
        (lambda linear, x: (x,) if bool(x.sum() > 0) else (x, x), "outputs: agents return different trees"),
    ],
)
def test_agents_with_outputs_of_different_structure_raise(function: Any, message: str, strategy: Any) -> None:
    net = does(function, strategy=strategy)
    for odd in torch.eye(N, dtype=torch.float64):
        x = (odd - 0.5)[:, None].expand(5, N, 4)  # the sum is above 0 for one agent
        with pytest.raises(fm.StructureError, match=message):
            fm.apply(net, fm.init_params(net, 0), x)
