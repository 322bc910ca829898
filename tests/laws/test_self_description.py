"""What facades and functional networks say of themselves, in torchrl and here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.modules as rl  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

import functional_marl as fm
import functional_marl.nn as fmnn
from functional_marl.laws._network_module import as_module
from functional_marl.laws._self_description import build_of, by_its_names, stated_by, template_of
from tests.laws.check_cases import Listed, ours, torchrl_mlp

FACADES = {"torchrl": torchrl_mlp, "ours": ours}
facades = pytest.mark.parametrize("build", FACADES.values(), ids=FACADES)


def network(**how: Any) -> Any:
    net = fm.network(lambda: nn.Linear(6, 2), 3, sharing=[0, 1, 1], **how)
    return as_module((net, fm.init_params(net, 0)))


# --- what is stated ---------------------------------------------------------------------------------------


@facades
def test_a_facade_states_its_arguments(build: Any) -> None:
    module = build(share_params=True, centralized=True, vmap_randomness="same")
    assert stated_by(module) == {
        "n_agents": 3,
        "sharing": True,
        "centralized": True,
        "agent_dim": -2,
        "randomness": "same",
    }


@facades
def test_a_facade_states_that_nothing_is_shared_and_nothing_seen(build: Any) -> None:
    said = stated_by(build())
    assert said["sharing"] is False
    assert said["centralized"] is False
    assert said["randomness"] == "different"


def test_our_facade_states_a_slot_map() -> None:
    assert stated_by(ours(share_params=[0, 0, 1]))["sharing"] == [0, 0, 1]


def test_a_facade_without_the_private_attribute_claims_no_randomness() -> None:
    module = torchrl_mlp()
    del module._vmap_randomness
    assert stated_by(module)["randomness"] is None


def test_a_network_states_what_it_has() -> None:
    said = stated_by(network(agent_dim=-2, randomness="same"))
    assert said["n_agents"] == 3
    assert {name: list(slots) for name, slots in said["sharing"].items()} == {"weight": [0, 1, 1], "bias": [0, 1, 1]}
    assert said["centralized"] is False
    assert said["agent_dim"] == -2
    assert said["randomness"] == "same"


def test_another_module_states_nothing() -> None:
    module = Listed()
    assert stated_by(module) == {}
    assert template_of(module, 0) is None
    assert build_of(module) is None


@pytest.mark.parametrize("missing", ["n_agents", "share_params", "centralized", "agent_dim", "_empty_net"])
def test_a_module_with_only_some_of_the_attributes_is_no_facade(missing: str) -> None:
    module: Any = nn.Linear(6, 2)
    for name in ("n_agents", "share_params", "centralized", "agent_dim", "_empty_net"):
        if name != missing:
            setattr(module, name, 1)
    assert stated_by(module) == {}


# --- names ------------------------------------------------------------------------------------------------


@facades
@pytest.mark.parametrize(("td_params", "root"), [(True, "params."), (False, "_empty_net.")])
def test_patterns_are_over_names_that_the_facade_has(build: Any, td_params: bool, root: str) -> None:
    module = build(use_td_params=td_params)
    assert by_its_names(module, {"0.*": "shared", "*": [0, 0, 1]}) == {root + "0.*": "shared", root + "*": [0, 0, 1]}


def test_names_of_leaves_begin_with_the_root_of_patterns() -> None:
    for td_params, root in ((True, "params."), (False, "_empty_net.")):
        for build in FACADES.values():
            assert all(name.startswith(root) for name, _ in build(use_td_params=td_params).named_parameters())


def test_a_spec_that_is_no_mapping_stays() -> None:
    for spec in (True, "shared", [0, 0, 1], None):
        assert by_its_names(ours(), spec) is spec


def test_patterns_of_another_module_stay() -> None:
    spec = {"nets.*": "shared"}
    assert by_its_names(Listed(), spec) is spec


# --- the network of one agent -----------------------------------------------------------------------------


@facades
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("td_params", [False, True])
def test_the_template_gives_the_row_of_its_agent(build: Any, share: bool, td_params: bool) -> None:
    module, x = build(share_params=share, use_td_params=td_params), torch.randn(4, 3, 6)
    wanted = module(x)
    for agent in range(3):
        template = template_of(module, agent)
        assert template is not None
        torch.testing.assert_close(template(x[:, agent]), wanted[:, agent])


def test_the_template_of_a_slot_map_gives_the_row_of_its_agent() -> None:
    module, x = ours(share_params=[1, 0, 1]), torch.randn(4, 3, 6)
    for agent in range(3):
        template = template_of(module, agent)
        assert template is not None
        torch.testing.assert_close(template(x[:, agent]), module(x)[:, agent])


def test_the_template_of_a_network_gives_the_row_of_its_agent() -> None:
    module, x = network(), torch.randn(4, 3, 6)
    for agent in range(3):
        template = template_of(module, agent)
        assert template is not None
        torch.testing.assert_close(template(x[:, agent]), module(x)[:, agent])


def test_a_foreign_facade_with_a_slot_map_has_no_template() -> None:
    module: Any = torchrl_mlp()
    module.share_params = [0, 0, 1]
    assert template_of(module, 0) is None


@facades
@pytest.mark.parametrize("train", [False, True])
def test_the_template_is_in_the_mode_of_the_module(build: Any, train: bool) -> None:
    module, x = build(dropout=0.5, num_cells=64).train(train), torch.ones(6)
    template = template_of(module, 0)
    assert template is not None
    draws = [template(x) for _ in range(4)]
    assert any(not torch.equal(draw, draws[0]) for draw in draws) is train


def test_the_template_of_a_network_is_in_its_mode() -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5)), 3, sharing="independent")
    module = as_module((net, fm.init_params(net, 0)))
    for train in (True, False):
        template = template_of(module.train(train), 1)
        assert template is not None
        assert torch.equal(template(torch.ones(6)), template(torch.ones(6))) is not train


def test_the_template_of_a_network_reads_its_buffers() -> None:
    net = fm.network(lambda: nn.BatchNorm1d(6), 3, sharing="independent")
    module = as_module((net, fm.init_params(net, 0), fm.init_state(net)))
    module.train()(torch.randn(8, 3, 6))
    x = torch.randn(4, 3, 6)
    template = template_of(module.eval(), 2)
    assert template is not None
    torch.testing.assert_close(template(x[:, 2]), module(x)[:, 2])


def test_calls_of_the_template_leave_the_facade_as_it_was() -> None:
    module: Any = torchrl_mlp()
    before = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
    template = template_of(module, 1)
    assert template is not None
    template(torch.ones(6))
    assert {name for name, _ in module.named_parameters()} == set(before)
    assert all(leaf.is_meta for leaf in module._empty_net.parameters())
    for name, leaf in module.named_parameters():
        assert torch.equal(leaf, before[name])


# --- the factory ------------------------------------------------------------------------------------------


@facades
def test_the_factory_builds_what_the_template_looks_like(build: Any) -> None:
    module = build()
    make = build_of(module)
    assert make is not None
    made = make()
    assert str(made) == str(module._empty_net)
    assert not any(leaf.is_meta for leaf in made.parameters())
    assert made(torch.zeros(6)).shape == (2,)


def test_the_factory_of_a_network_is_its_own() -> None:
    def build() -> nn.Module:
        return nn.Linear(6, 2)

    net = fm.network(build, 3)
    assert build_of(as_module((net, fm.init_params(net, 0)))) is build


class Widening(rl.MultiAgentMLP):
    """What it builds changes after the constructor."""

    def _build_single_net(self, *, device: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "_empty_net"):
            return nn.Linear(6, 2, device=device)
        return self.later(device)

    def later(self, device: Any) -> nn.Module:
        return nn.Linear(7, 2, device=device)


class Refusing(Widening):
    def later(self, device: Any) -> nn.Module:
        raise KeyError("known in the constructor alone")


@pytest.mark.parametrize("build", [Widening, Refusing])
def test_a_factory_that_builds_something_else_or_raises_is_none(build: Any) -> None:
    module = build(6, 2, 3, centralized=False, share_params=False, depth=1, num_cells=8)
    assert build_of(module) is None


def test_a_facade_without_a_factory_has_none() -> None:
    class Own(nn.Module):
        n_agents, share_params, centralized, agent_dim, _empty_net = 3, True, False, -2, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert build_of(Own()) is None
    assert stated_by(Own())["sharing"] is True


def test_our_facade_of_a_convolution_has_a_factory() -> None:
    module = fmnn.MultiAgentConvNet(3, False, False, in_features=2, num_cells=[3], kernel_sizes=3)
    make = build_of(module)
    assert make is not None
    assert make()(torch.zeros(2, 2, 5, 5)).ndim == 2
