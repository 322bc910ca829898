"""What torchrl users rely on, tested on both libraries: construction, seeds, checkpoints, calls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tests.nn.facade_cases import OURS, TORCHRL, both, cnn, joint, mlp, shared, stored, subclass

NORMED: dict[str, Any] = {"dropout": 0.1, "norm_class": nn.LayerNorm, "norm_kwargs": {"normalized_shape": 8}}
EIGHT = list(itertools.product([True, False], repeat=3))


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}  # tensordict 0.11 adds sizes


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize(("td", "share", "centralized"), EIGHT)
def test_one_seed_gives_the_same_checkpoint(make: Any, td: bool, share: bool, centralized: bool) -> None:
    options: dict[str, Any] = {"use_td_params": td, "share_params": share, "centralized": centralized}
    theirs, ours = make(TORCHRL, **options), make(OURS, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    old, new = tensors(theirs.state_dict()), tensors(ours.state_dict())
    assert all(torch.equal(old[k], new[k]) for k in old)
    assert [n for n, _ in theirs.named_modules()] == [n for n, _ in ours.named_modules()]
    assert str(theirs) == str(ours)
    x = torch.randn(5, 3, 6) if make is mlp else torch.randn(5, 3, 2, 9, 9)
    torch.testing.assert_close(theirs(x), ours(x))


def test_keys_and_shapes_are_as_torchrl_documents() -> None:
    assert mlp(OURS).state_dict()["params.0.weight"].shape == (3, 8, 6)
    assert mlp(OURS, share_params=True).state_dict()["params.0.weight"].shape == (8, 6)
    assert mlp(OURS, use_td_params=False).state_dict()["_empty_net.0.weight"].shape == (3, 8, 6)
    assert mlp(OURS, centralized=True).state_dict()["params.0.weight"].shape == (3, 8, 18)


@pytest.mark.parametrize(("td", "share", "centralized"), EIGHT)
def test_checkpoints_load_in_both_directions(td: bool, share: bool, centralized: bool) -> None:
    options: dict[str, Any] = {"use_td_params": td, "share_params": share, "centralized": centralized}
    x = torch.randn(5, 3, 6)
    for giver, taker in ((TORCHRL, OURS), (OURS, TORCHRL)):
        a, b = mlp(giver, **options), mlp(taker, **options)
        b.reset_parameters()
        assert not torch.allclose(a(x), b(x))
        b.load_state_dict(a.state_dict())
        torch.testing.assert_close(a(x), b(x))


@pytest.mark.parametrize("n_agents", [1, 2, 5, 9])
@pytest.mark.parametrize("options", [{}, NORMED])
def test_one_seed_gives_the_same_parameters_for_any_number_of_agents(n_agents: int, options: dict[str, Any]) -> None:
    made: list[Any] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(3)
        made.append(lib.MultiAgentMLP(6, 2, n_agents, centralized=False, share_params=False, num_cells=[8], **options))
        made.append(torch.rand(1))  # the generator is in the same state
    theirs, ours = tensors(made[0].state_dict()), tensors(made[2].state_dict())
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs)
    assert torch.equal(made[1], made[3])


@pytest.mark.parametrize(
    "options",
    [
        {"in_features": 4, "out_features": 3},
        {"in_features": 4, "out_features": (3, 2), "depth": 2},
        {"in_features": 4, "out_features": 3, "num_cells": [5, 6], "activation_class": nn.ReLU, "dropout": 0.0},
        {"in_features": 4, "out_features": 3, "depth": 1, "num_cells": 7, "bias_last_layer": False},
        {"in_features": 4, "out_features": 3, "depth": 1, "activate_last_layer": True, "layer_kwargs": {"bias": False}},
        {"in_features": 4, "out_features": 3, "depth": 1, "single_bias_last_layer": True},
        {"in_features": 4, "out_features": 3, "depth": 1, "activation_class": nn.LeakyReLU}
        | {"activation_kwargs": {"negative_slope": 0.3}},
        {"in_features": 4, "out_features": 3, "num_cells": [8], "norm_class": nn.LayerNorm}
        | {"norm_kwargs": [{"normalized_shape": 8}]},
        {"in_features": None, "out_features": 3, "depth": 1},
        {"in_features": 4, "out_features": 3, "num_cells": [8], "activation_class": lambda: torch.tanh},
    ],
)
def test_one_agent_mlp(options: dict[str, Any]) -> None:
    nets: list[Any] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        nets.append(lib.MLP(**options))
    assert str(nets[0]).split(" at 0x")[0] == str(nets[1]).split(" at 0x")[0]
    x = torch.randn(5, 4)
    torch.manual_seed(1)
    y = nets[0](x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, nets[1](x))
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())
    torch.testing.assert_close(nets[0](x[:, :1], x[:, 1:]), nets[1](x[:, :1], x[:, 1:]))


@pytest.mark.parametrize(
    "options",
    [
        {"in_features": 2},
        {"in_features": None, "num_cells": [3, 4], "kernel_sizes": [3, 2], "strides": [2, 1], "paddings": 1},
        {"in_features": 2, "depth": 2, "num_cells": 4, "activation_class": nn.ReLU, "aggregator_class": None},
        {"in_features": 2, "num_cells": [4], "norm_class": nn.BatchNorm2d, "norm_kwargs": {"num_features": 4}},
        {"in_features": 2, "num_cells": [4], "kernel_sizes": 9, "aggregator_class": None, "squeeze_output": True},
    ],
)
def test_one_agent_convnet(options: dict[str, Any]) -> None:
    nets: list[Any] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        nets.append(lib.ConvNet(**options))
    assert str(nets[0]) == str(nets[1])
    for shape in ((2, 9, 9), (5, 2, 9, 9), (5, 3, 2, 9, 9)):
        if len(shape) > 3 or options.get("norm_class") is None:
            x = torch.randn(*shape)
            torch.manual_seed(1)
            y = nets[0](x)
            torch.manual_seed(1)
            torch.testing.assert_close(y, nets[1](x))
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


@both
def test_wrong_arguments_of_one_agent_nets_raise(lib: Any) -> None:
    with pytest.raises(ValueError, match="out_features"):
        lib.MLP(in_features=2)
    with pytest.raises(RuntimeError, match="depth"):
        lib.MLP(in_features=2, out_features=2, num_cells=3)
    with pytest.raises(RuntimeError, match="depth"):
        lib.MLP(in_features=2, out_features=2, depth=3, num_cells=[3])
    with pytest.raises(KeyError, match="lazy version"):
        lib.MLP(out_features=2, layer_class=nn.Bilinear)
    with pytest.raises(ValueError, match="depth"):
        lib.ConvNet(in_features=2, num_cells=3)
    with pytest.raises(ValueError, match="depth"):
        lib.ConvNet(in_features=2, num_cells=[])
    with pytest.raises(RuntimeError, match="depth"):
        lib.ConvNet(in_features=2, num_cells=[2, 3], strides=[1])


@both
def test_missing_arguments_are_named(lib: Any) -> None:
    for name, given in (
        ("centralized", {"share_params": True}),
        ("share_params", {"centralized": True}),
    ):
        with pytest.raises(TypeError, match=name):
            lib.MultiAgentMLP(6, 2, 3, **given)
    with pytest.raises(TypeError, match="agent_dim"):
        subclass(lib)(True, agent_dim=None)


@both
def test_centralised_is_accepted(lib: Any) -> None:
    net = lib.MultiAgentMLP(6, 2, 3, centralised=True, share_params=True)
    assert net.centralized is True
    assert net(torch.zeros(3, 6)).shape == (3, 2)


@both
@shared
@joint
def test_attributes(lib: Any, share: bool, centralized: bool) -> None:
    net = mlp(lib, share_params=share, centralized=centralized, vmap_randomness="same")
    assert (net.n_agents, net.share_params, net.centralized, net.agent_dim) == (3, share, centralized, -2)
    assert (net.use_td_params, net.initialized, net.vmap_randomness) == (True, True, "same")
    assert cnn(lib).agent_dim == -4
    assert isinstance(net._empty_net, nn.Module)


@both
@shared
@joint
@pytest.mark.parametrize("batch", [(), (4,), (4, 2)])
def test_calls(lib: Any, share: bool, centralized: bool, batch: tuple[int, ...]) -> None:
    net = mlp(lib, share_params=share, centralized=centralized)
    x = torch.randn(*batch, 3, 6)
    y = net(x)
    assert y.shape == (*batch, 3, 2)
    torch.testing.assert_close(net(x[..., :4], x[..., 4:]), y)  # several inputs are concatenated
    moved = x.clone()
    moved[..., 0, :] += 1
    others = (net(moved) - y)[..., 1:, :].abs().sum()
    assert bool(others > 0) == centralized
    y_equal = net(x[..., :1, :].expand(*batch, 3, 6))  # equal inputs for all agents
    assert torch.allclose(y_equal, y_equal[..., :1, :].expand_as(y_equal)) == share
    if share and centralized:
        assert torch.equal(y, y[..., :1, :].expand_as(y))


@both
@joint
def test_the_wrong_number_of_agents_is_named(lib: Any, centralized: bool) -> None:
    with pytest.raises(ValueError, match=r"3.*2") as error:
        mlp(lib, centralized=centralized)(torch.zeros(4, 2, 6))
    assert "-2" in str(error.value)
    assert "[4, 2, 6]" in str(error.value)
    with pytest.raises(ValueError, match=r"3.*5"):
        cnn(lib, centralized=centralized)(torch.zeros(4, 5, 2, 9, 9))
    with pytest.raises(ValueError, match=r"3|batch_size"):
        cnn(lib, centralized=centralized)(torch.zeros(2, 9, 9))


@both
@shared
@pytest.mark.parametrize("agent_dim", [1, -3])
def test_the_agent_axis_keeps_its_position_when_other_axes_change(lib: Any, share: bool, agent_dim: int) -> None:
    """``[B, n, T, F]``, with agents before time, through networks that keep, drop and add axes."""
    for build, tail in (
        (lambda: nn.Linear(6, 2), (5, 2)),
        (lambda: nn.Sequential(nn.Linear(6, 2), nn.Flatten(-2)), (10,)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Unflatten(-1, (2, 2))), (5, 2, 2)),
    ):
        net = subclass(lib, build)(share, agent_dim)
        assert net(torch.randn(4, 3, 5, 6)).shape == (4, 3, *tail)
        assert net.seen == 1


@both
@shared
def test_a_subclass_may_merge_agents_itself(lib: Any, share: bool) -> None:
    net = subclass(lib, lambda: nn.Linear(18, 2))(share, centralized=True)
    assert net(torch.randn(4, 3, 6)).shape == (4, 3, 2)


def test_a_subclass_has_torchrls_numbers() -> None:
    x = torch.randn(4, 3, 6)
    for share in (True, False):
        nets = [subclass(lib, lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()))(share) for lib in (TORCHRL, OURS)]
        torch.manual_seed(0)
        torch.testing.assert_close(nets[0](x).shape, nets[1](x).shape)
        nets[1].load_state_dict(nets[0].state_dict())
        torch.testing.assert_close(nets[0](x), nets[1](x))


@both
@shared
def test_vmap_func_module_exists(lib: Any, share: bool) -> None:
    net = mlp(lib)
    mapped = net.vmap_func_module(net._empty_net, (0, 1), (1,), "error")
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(mapped(net.params, x), net(x))


# --- stateful nets, params, reset --------------------------------------------------------------------------


@both
@stored
@shared
def test_a_stateful_net_aliases_the_parameters(lib: Any, td: bool, share: bool) -> None:
    net = mlp(lib, use_td_params=td, share_params=share)
    stateful = net.get_stateful_net()
    assert stateful is not net._empty_net

    def zero(part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    stateful.apply(zero)
    assert bool((net.params == 0).all())
    assert bool((net(torch.ones(4, 3, 6)) == 0).all())
    for part in stateful.modules():  # not in place: only from_stateful_net brings them into the net
        if isinstance(part, nn.Linear):
            part.weight = nn.Parameter(torch.ones_like(part.weight))
            part.bias = nn.Parameter(torch.ones_like(part.bias))
    assert bool((net.params == 0).all())
    net.from_stateful_net(stateful)
    assert bool((net.params == 1).all())
    with pytest.raises(RuntimeError, match="bias"):
        net.from_stateful_net(nn.Sequential(nn.Linear(6, 2, bias=False)))
    assert net.get_stateful_net(copy=False) is net._empty_net


@both
def test_params_of_both_storages(lib: Any) -> None:
    from tensordict import TensorDictParams  # pyright: ignore[reportMissingTypeStubs]

    net = mlp(lib)
    assert TensorDictParams in type(net.params).__mro__
    assert list(net._empty_net.parameters()) == []
    assert [id(p) for p in net.params.parameters()] == [id(p) for p in net.parameters()]
    assert net.params[0]["0", "weight"].shape == (8, 6)
    assert net.params.batch_size == (3,)
    assert ("0", "weight") in net.params.keys(True, True)
    assert net.params.numel() == 3
    assert bool((net.params.clone() == net.params).all())
    assert bool((net.params.apply(lambda p: p * 0) == 0).all())
    template = net._empty_net[0].weight
    assert template.device.type == "meta"
    assert not isinstance(template, nn.Parameter)
    net = mlp(lib, use_td_params=False)
    assert not hasattr(net.params, "parameters")
    assert [id(p) for p in net._empty_net.parameters()] == [id(p) for p in net.parameters()]
    assert net.params["0", "weight"] is net._empty_net[0].weight
    assert mlp(lib, share_params=True).params.batch_size == ()


@both
@stored
@shared
def test_reset_samples_every_number_again(lib: Any, td: bool, share: bool) -> None:
    net = mlp(lib, use_td_params=td, share_params=share)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    kept = dict(net.named_parameters())
    net.reset_parameters()
    for name, p in net.named_parameters():
        assert p is kept[name]
        assert not bool((p == before[name]).any())
        if not share:
            assert not torch.equal(p[0], p[1])


@both
@stored
@shared
@joint
def test_lazy_layers_with_an_optimizer_made_before(lib: Any, td: bool, share: bool, centralized: bool) -> None:
    torch.manual_seed(0)
    net = lib.MultiAgentMLP(None, 2, 3, centralized=centralized, share_params=share, depth=1, use_td_params=td)
    assert net.initialized is False
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    held = optimizer.param_groups[0]["params"]
    assert any(isinstance(p, UninitializedParameter) for p in held)
    x = torch.randn(4, 3, 6)
    for _ in range(2):
        net(x).square().mean().backward()
        before = [p.detach().clone() for p in held]
        optimizer.step()
        assert all(not torch.equal(p, q) for p, q in zip(held, before, strict=True))
    assert [id(p) for p in held] == [id(p) for p in net.parameters()]
    assert not any(isinstance(p, UninitializedParameter) for p in held)
    assert "Linear(in_features=18" in str(net) if centralized else "Linear(in_features=6" in str(net)
    if not share:
        weight = net.params["0", "weight"]
        assert weight.shape == (3, 32, 18 if centralized else 6)
        assert not torch.isclose(weight[0], weight[1]).all()


def test_lazy_shared_layers_have_torchrls_parameters() -> None:
    x = torch.randn(4, 3, 6)
    nets: list[Any] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        nets.append(lib.MultiAgentMLP(None, 2, 3, centralized=False, share_params=True, depth=1))
        nets[-1](x)
    assert torch.equal(nets[0].params["0", "weight"], nets[1].params["0", "weight"])
