"""Initialization inside of device contexts, fake tensors, inference mode and transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import functional_marl as fm
from tests.builders import N, numbers, same

Build = Callable[[], nn.Module]
BUILDS: dict[str, Build] = {
    "linear": lambda: nn.Linear(4, 3),
    "norm": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
}
KEYS: list[Any] = [0, fm.key(0), fm.split(0, 2)]


@pytest.mark.parametrize("agents", [2, 6])  # by building, and by replay
@pytest.mark.parametrize("key", KEYS, ids=["int", "key", "keys"])
@pytest.mark.parametrize("name", BUILDS)
def test_on_meta_and_under_fake_tensors_the_leaves_have_shapes(name: str, key: Any, agents: int) -> None:
    for context in (lambda: torch.device("meta"), FakeTensorMode):
        net = fm.network(BUILDS[name], agents)
        with context():
            inside = {**fm.init_params(net, key), **fm.init_state(net, key)}
            both_inside = fm.init_params(fm.network(BUILDS[name], agents), key)
        assert both_inside.keys() == net.param_shapes.keys()
        outside = {**fm.init_params(net, key), **fm.init_state(net, key)}
        assert all(leaf.is_meta or type(leaf) is not Tensor for leaf in inside.values())
        assert all(not leaf.is_meta and type(leaf) is Tensor for leaf in outside.values())
        assert [(k, t.shape, t.dtype) for k, t in inside.items()] == [(k, t.shape, t.dtype) for k, t in outside.items()]
        assert same(outside, {**fm.init_params(net, key), **fm.init_state(net, key)})
        assert net.module_spec.init_trace() is not None  # the calls inside have not decided it


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_a_key_without_numbers_raises(context: Callable[[], Any]) -> None:
    net = fm.network(BUILDS["linear"], N)
    with context(), pytest.raises(fm.StructureError, match=r"key: expected numbers.*outside of .*or give an int seed"):
        fm.init_params(net, fm.key(0))


def test_a_network_made_on_meta_has_no_initial_buffers() -> None:
    with torch.device("meta"):
        net = fm.network(BUILDS["norm"], N)
    params, state = fm.init_params(net, 0), fm.init_state(net, 0)
    assert fm.apply(net, params, numbers(5, N, 4).float(), state=state).shape == (5, N, 3)
    for call in (lambda: fm.apply(net, params, torch.ones(5, N, 4)), lambda: fm.init_state(net, device="cpu")):
        with pytest.raises(fm.StructureError, match=r"state: .*'1.running_mean' got no numbers; give fm.init_state"):
            call()


@pytest.mark.parametrize("agents", [2, 6])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_parameters_made_in_inference_mode_can_be_trained(build: Build, agents: int) -> None:
    expected = fm.network(build, agents)
    for factory in (build, build()):
        with torch.inference_mode():
            net = fm.network(factory, agents)
            params, states = fm.init_params(net, 0), [fm.init_state(net), fm.init_state(net, 0)]
        assert same(params, fm.init_params(expected, 0))
        for state in states:
            assert same(state, fm.init_state(expected))
            leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
            y, after = fm.apply(net, leaves, torch.ones(5, agents, 4), state=state, train=True, mutable=True)
            y.sum().backward()
            for leaf in (*params.values(), *state.values(), *after.values()):
                leaf.detach().add_(1)
        params = {name: leaf.detach() for name, leaf in params.items()}


def test_init_under_a_transform_gives_the_same_as_outside() -> None:
    x = numbers(4, 5, 6, 4).float()
    for randomness in ("error", "same", "different"):
        net = fm.network(BUILDS["linear"], 6)
        run = lambda x: fm.apply(net, fm.init_params(net, 0), x)  # noqa: B023
        mapped = torch.func.vmap(run, randomness=randomness)(x)
        torch.testing.assert_close(mapped, torch.stack([run(one) for one in x]))
        assert net.module_spec.init_trace() is not None
    net = fm.network(BUILDS["linear"], 6)
    slope = torch.func.grad(lambda s: (s * fm.init_params(net, 0)["weight"]).sum())(torch.tensor(2.0))
    torch.testing.assert_close(slope, fm.init_params(net, 0)["weight"].sum())
