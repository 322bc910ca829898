"""A network as a value that is pickled, copied, compared and used from many threads."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, Tensors, generators_untouched, looped, mlp, numbers, same


class PatternNames(nn.Module):
    """Leaf names with characters that are special in shell patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nn.ParameterDict({"a[0]": torch.ones(4), "a0": torch.zeros(4)})


def top_level() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


class Local:
    """A factory that is an object."""

    def __call__(self) -> nn.Module:
        return nn.Linear(4, 4)


@pytest.mark.parametrize(
    "build",
    [top_level, fm.nets.mlp(4, 8, 2), fm.nets.gru(4, 4), partial(nn.Linear, 4, 2), Local(), nn.Linear(4, 4)],
    ids=["function", "mlp", "gru", "partial", "object", "module"],
)
def test_a_pickled_network_initializes_and_computes_the_same(build: Any) -> None:
    net = fm.network(build, N, sharing=[0, 0, 1], agent_dim=0, randomness="same")
    back: fm.Network = pickle.loads(pickle.dumps(net))
    assert repr(back) == repr(net)
    params = fm.init_params(net, 0)
    assert same(fm.init_params(back, 0), params)
    x = torch.ones(N, 2, 4)
    got, expected = (fm.apply(n, params, x) for n in (back, net))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert fm.tabulate(back) == fm.tabulate(net)


def test_a_network_of_a_named_function_equals_its_pickled_self() -> None:
    net = fm.network(top_level, N)
    assert pickle.loads(pickle.dumps(net)) == net
    assert hash(pickle.loads(pickle.dumps(net))) == hash(net)
    assert fm.network(top_level, N) == net
    assert fm.network(top_level, N, sharing="shared") != net


def test_a_pickled_network_of_a_lambda_computes_and_raises_at_init_params() -> None:
    net = fm.network(lambda: top_level(), N)
    params, x = fm.init_params(net, 0), torch.ones(2, N, 4)
    back = pickle.loads(pickle.dumps(net))
    assert torch.equal(fm.apply(back, params, x), fm.apply(net, params, x))
    assert same(fm.init_state(back), fm.init_state(net))
    assert fm.agent_module(back, params, 0)(x[:, 0]).shape == (2, 4)
    with pytest.raises(fm.StructureError, match=r"unpickled and its factory could not be pickled \(a lambda"):
        fm.init_params(back, 0)
    twice = pickle.loads(pickle.dumps(back))
    assert torch.equal(fm.apply(twice, params, x), fm.apply(net, params, x))


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def test_a_module_that_does_not_pickle_is_built_again_by_its_factory() -> None:
    net = fm.network(weight_normed, N)
    params, x = fm.init_params(net, 0), torch.ones(2, N, 4)
    back = pickle.loads(pickle.dumps(net))
    assert torch.equal(fm.apply(back, params, x), fm.apply(net, params, x))
    with pytest.raises(pickle.PicklingError, match="neither the factory nor the module"):
        pickle.dumps(fm.network(lambda: weight_normed(), N))


def test_a_copy_of_a_network_is_the_network() -> None:
    net = fm.network(lambda: nn.Linear(4, 4), N)
    holder = nn.Module()
    holder.net = net  # pyright: ignore
    for other in (copy.copy(net), copy.deepcopy(net), copy.deepcopy(holder).net):
        assert other == net
        assert same(fm.init_params(other, 0), fm.init_params(net, 0))  # pyright: ignore


def test_leaf_names_with_pattern_characters_survive_replace_and_pickling() -> None:
    net = fm.network(PatternNames, N, sharing={"named.a0": "shared", "*": [0, 0, 1]})
    for other in (net.replace(strategy="loop"), pickle.loads(pickle.dumps(net))):
        assert other.sharing == net.sharing
        assert other.sharing["named.a0"].is_shared
        assert other.sharing["named.a[0]"] == fm.Sharing([0, 0, 1])


def test_only_network_and_init_params_call_the_factory() -> None:
    calls: list[int] = []

    def build() -> nn.Module:
        calls.append(1)
        return mlp()

    net = fm.network(build, N)
    params = fm.init_params(net, 0)
    made = len(calls)
    fm.apply(net, params, numbers(2, N, 4))
    fm.unstack_agents(net, params)
    net.replace(sharing="shared")
    assert len(calls) == made


def test_eight_threads_on_one_network_compute_their_own_results() -> None:
    net = fm.network(mlp, N, strategy="vmap")
    jobs: list[tuple[Tensors, Tensor]] = [(fm.init_params(net, i), numbers(4, N, 4, seed=i)) for i in range(8)]
    expected = [looped(net, params, x) for params, x in jobs]

    def work(i: int) -> bool:
        outputs = [fm.apply(net, *jobs[i]) for _ in range(30)]
        return all(torch.allclose(y, expected[i], rtol=1e-12, atol=1e-12) for y in outputs)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_agents": 0}, fm.StructureError, "n_agents: expected a positive int, got 0"),
        ({"n_agents": True}, fm.StructureError, "n_agents: expected a positive int, got True"),
        ({"n_agents": 2.0}, fm.StructureError, "n_agents: expected a positive int, got 2.0"),
        ({"randomness": "none"}, fm.StructureError, "randomness: expected one of 'error', 'same', 'different', got 'n"),
        ({"strategy": "fast"}, fm.StructureError, "strategy: expected one of 'auto', 'loop', 'vmap', 'plan', got 'fa"),
        ({"agent_dim": "x"}, fm.StructureError, r"agent_dim: expected ints and None, got \['x'\]"),
        ({"agent_dim": (0, {"a": 1.0})}, fm.StructureError, r"agent_dim: expected ints and None, got \[1.0\]"),
        ({"out_agent_dim": [None, "y"]}, fm.StructureError, r"out_agent_dim: expected ints and None, got \['y'\]"),
        ({"sharing": [0, 0]}, fm.SharingError, "expected one slot for each of 3 agents, got 2"),
        ({"sharing": {"0.*": "shared"}}, fm.SharingError, r"matches \['2.weight', '2.bias'\]"),
    ],
)
def test_wrong_settings_raise_when_the_network_is_made(given: dict[str, Any], error: Any, message: str) -> None:
    settings: dict[str, Any] = {"n_agents": N, **given}
    with pytest.raises(error, match=message):
        fm.network(mlp, **settings)


def test_replace_changes_the_named_settings_only() -> None:
    net = fm.network(mlp, N, sharing={"0.*": "shared", "*": [0, 0, 1]}, randomness="same")
    looping = net.replace(strategy="loop")
    assert looping.sharing == net.sharing
    assert (looping.strategy, looping.randomness) == ("loop", "same")
    assert net.strategy == "auto"
    assert looping.replace(strategy="auto") == net
    assert hash(looping.replace(strategy="auto")) == hash(net)
    grown = net.replace(n_agents=2, sharing="shared")
    assert grown.param_shapes["0.weight"] == (1, 5, 4)
    with pytest.raises(TypeError, match=r"replace: unknown \['agents'\]; expected \['agent_dim', "):
        net.replace(agents=3)
    with pytest.raises(fm.SharingError, match="a new n_agents needs a new sharing= too"):
        net.replace(n_agents=4)


def test_a_network_cannot_be_assigned_to() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(AttributeError):
        net.n_agents = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert net != 3
    assert net in {net: 1}


def test_buffers_follow_the_patterns_too() -> None:
    net = fm.network(top_level, N, sharing={"1.running_*": "shared", "0.*": [0, 0, 1], "*": "independent"})
    assert net.state_sharing["1.running_mean"].is_shared
    assert net.state_sharing["1.num_batches_tracked"].is_independent
    assert net.sharing["1.weight"].is_independent
    assert {k: list(v.shape) for k, v in fm.init_state(net).items()} == {
        "1.running_mean": [1, 4],
        "1.running_var": [1, 4],
        "1.num_batches_tracked": [3],
    }


def test_making_and_initializing_leave_the_global_generators_unchanged() -> None:
    with generators_untouched():
        net = fm.network(top_level, N)
        fm.init_params(net, 0)
        fm.init_state(net)
        pickle.loads(pickle.dumps(net))


# --- what users try first -------------------------------------------------------------------------------


def test_the_mappings_of_a_network_cannot_be_changed() -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), N)
    for mapping in (net.sharing, net.state_sharing, net.param_shapes, net.state_shapes):
        given: Any = mapping
        before = dict(given)
        changes: list[Any] = [
            lambda g: g.__setitem__("w", 1),
            lambda g: g.__delitem__(next(iter(g))),
            lambda g: g.update(w=1),
            lambda g: g.__ior__({"w": 1}),
            lambda g: g.pop(next(iter(g))),
            lambda g: g.popitem(),
            lambda g: g.setdefault("w", 1),
            lambda g: g.clear(),
        ]
        for change in changes:
            with pytest.raises(TypeError, match=r"a network cannot be changed; net.replace\(...\) gives one"):
                change(given)
        assert given == before
        assert before == given
        for again in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
            assert again == given
            assert type(again) is type(given)
        assert given.copy() | {"w": 1} == before | {"w": 1}
    assert json.loads(json.dumps(net.param_shapes))["0.bias"] == [N, 2]


def test_a_compiled_function_reads_the_mappings_of_a_network() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    run: Any = lambda x: x + sum(shape[0] for shape in net.param_shapes.values()) + net.sharing["0.bias"].n_slots
    compiled: Any = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())).item() == 10


def test_a_network_is_no_function_and_no_module() -> None:
    net = fm.network(mlp, N)
    call: Any = net
    with pytest.raises(fm.StructureError, match=r"not called itself: fm.apply\(net, params, x\)"):
        call(fm.init_params(net, 0), numbers(5, N, 4))
    for name, fix in (
        ("init", r"fm.init_params\(net, key\)"),
        ("apply", r"fm.apply\(net, params, x\)"),
        ("parameters", r"fm.init_params"),
        ("state_dict", r"fm.init_params"),
    ):
        with pytest.raises(AttributeError, match=f"'Network' object has no attribute '{name}'; write {fix}"):
            getattr(net, name)
    assert not hasattr(net, "nothing")
    with pytest.raises(fm.StructureError, match=r"build: .* got a network; net.replace"):
        fm.network(call, N)


def test_an_example_that_is_a_shape_raises_and_names_the_fix() -> None:
    with pytest.raises(
        fm.StructureError, match=r"example: expected .* got \(5, 4\); give for example torch.zeros\(4\)"
    ):
        fm.network(lambda: nn.LazyLinear(2), N, example=(5, 4))
