"""Memory layouts of outputs, empty inputs, and sizes that are unknown while torch.compile traces."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import numbers
from tests.lowering.test_plan import N, assert_plan_is_loop, seq

torchrl: Any = pytest.importorskip("torchrl.modules")
MODES: dict[str, Any] = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
BATCHES: list[tuple[int, ...]] = [(), (1,), (4,), (16,), (64,), (2, 3), (60, 100)]
MLPS: dict[str, dict[str, Any]] = {
    "mlp": {"depth": 2, "num_cells": 8},
    "linear": {"depth": 0},
    "norm": {"depth": 1, "num_cells": 8, "norm_class": nn.LayerNorm, "norm_kwargs": {"normalized_shape": 8}},
    "prelu": {"depth": 1, "num_cells": 8, "activation_class": nn.PReLU},
}
CONVNETS: dict[str, dict[str, Any]] = {
    "convnet": {},
    "norm": {"norm_class": nn.GroupNorm, "norm_kwargs": {"num_groups": 2, "num_channels": 4}},
    "images": {"aggregator_class": None},
    "pool": {"aggregator_class": nn.AdaptiveAvgPool2d, "aggregator_kwargs": {"output_size": 1}, "squeeze_output": True},
    "flatten": {"aggregator_class": nn.Flatten, "aggregator_kwargs": {}},
    "tanh": {"activation_class": nn.Tanh, "num_cells": [4]},
    "softmax": {"activation_class": nn.Softmax, "activation_kwargs": {"dim": 1}},
}
REFUSED = r"Expected number of channels|Expected weight"


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """torchrl's class and ours with the same parameters."""
    theirs, ours = (getattr(library, kind)(**options) for library in (torchrl, fm.nn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def compare(theirs: Any, ours: Any, x: Tensor) -> None:
    for mode in MODES.values():
        with mode():
            a, b = theirs(x), ours(x)
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        assert b.is_contiguous() or not a.is_contiguous(), (b.stride(), a.stride())


@pytest.mark.parametrize("use_td_params", [True, False])
@pytest.mark.parametrize("centralized", [True, False])
@pytest.mark.parametrize("share_params", [True, False])
@pytest.mark.parametrize("agents", [1, 3, 20])
@pytest.mark.parametrize("layers", MLPS)
def test_an_mlp_is_contiguous_where_torchrls_is(
    layers: str, agents: int, share_params: bool, centralized: bool, use_td_params: bool
) -> None:
    theirs, ours = pair(
        "MultiAgentMLP",
        n_agent_inputs=4,
        n_agent_outputs=3,
        n_agents=agents,
        share_params=share_params,
        centralized=centralized,
        use_td_params=use_td_params,
        **MLPS[layers],
    )
    for batch in BATCHES:
        compare(theirs, ours, torch.randn(*batch, agents, 4))


@pytest.mark.parametrize("centralized", [True, False])
@pytest.mark.parametrize("share_params", [True, False])
@pytest.mark.parametrize("agents", [1, 3, 20])
@pytest.mark.parametrize("layers", CONVNETS)
def test_a_convnet_is_contiguous_where_torchrls_is(
    layers: str, agents: int, share_params: bool, centralized: bool
) -> None:
    theirs, ours = pair(
        "MultiAgentConvNet",
        n_agents=agents,
        share_params=share_params,
        centralized=centralized,
        **{"in_features": 2, "num_cells": [4, 4], "kernel_sizes": 3, "strides": 1, **CONVNETS[layers]},
    )
    for batch in BATCHES[:-1]:
        if layers == "norm" and not batch and (centralized or not share_params):
            continue  # torchrl raises: see the next test
        compare(theirs, ours, torch.randn(*batch, agents, 2, 7, 7))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("centralized", [True, False])
def test_group_norm_refuses_a_lone_image_as_torchrl_does(centralized: bool, size: int) -> None:
    options: dict[str, Any] = {"n_agents": N, "in_features": 2, "num_cells": [4], "kernel_sizes": 3}
    for net in pair(
        "MultiAgentConvNet", share_params=centralized, centralized=centralized, **options, **CONVNETS["norm"]
    ):
        with pytest.raises(RuntimeError, match=r"Expected number of channels|Expected weight"):
            net(torch.randn(N, 2, size, size))


@pytest.mark.parametrize("share_params", [True, False])
def test_a_lone_image_in_training_is_normalised_alone(share_params: bool) -> None:
    norms: dict[str, Any] = {"norm_class": nn.BatchNorm2d, "norm_kwargs": {"num_features": 4}}
    net = fm.nn.MultiAgentConvNet(N, False, share_params, in_features=2, num_cells=[4], kernel_sizes=3, **norms)
    x = torch.randn(N, 2, 7, 7)
    if share_params:
        torch.testing.assert_close(net(x), net(x[None])[0])
    else:
        with pytest.raises(ValueError, match="expected 4D input"):
            net(x)


@pytest.mark.parametrize("kind", ["torchrl", "ours"])
@pytest.mark.parametrize("layers", CONVNETS)
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_a_convnet_of_one_agent_sees_a_lone_image_as_the_loop_does(layers: str, kind: str, sharing: str) -> None:
    library: Any = torchrl if kind == "torchrl" else fm.nn
    options = {"in_features": 2, "num_cells": [4, 4], "kernel_sizes": 3} | CONVNETS[layers]
    net = fm.network(lambda: library.ConvNet(**options), N, sharing=sharing, agent_dim=0)
    params = fm.init_params(net, 0)
    for size in (7, 8):
        x = torch.randn(N, 2, size, size)
        if layers == "norm":
            with pytest.raises(RuntimeError, match=r"Expected number of channels|Expected weight"):
                fm.apply(net, params, x)
        else:
            torch.testing.assert_close(fm.apply(net, params, x), fm.apply(net.replace(strategy="loop"), params, x))


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("agents", [1, 3, 20])
def test_the_core_is_contiguous_too(agents: int, sharing: str) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), agents, sharing=sharing)
    params = fm.init_params(net, 0)
    for batch in BATCHES:
        if sharing == "shared" or agents == 1 or batch in ((), (1,)):
            assert fm.apply(net, params, torch.randn(*batch, agents, 4)).is_contiguous()


class Squared(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
def test_a_shared_network_is_contiguous_with_every_strategy(strategy: Any) -> None:
    net = fm.network(lambda: Squared(4, 2), N, sharing="shared", strategy=strategy)
    params = fm.init_params(net, 0)
    for batch in BATCHES:
        for _ in range(2):  # the second call may take a fast path
            assert fm.apply(net, params, torch.randn(*batch, N, 4)).is_contiguous()


def test_gradients_of_shared_weights_are_contiguous() -> None:
    # torch.optim.Adam(fused=True) computes wrong updates from gradients that are not contiguous, if a user sets .grad
    net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing="shared")
    params = fm.init_params(net, 0)
    x = torch.randn(16, N, 4)
    gradients = torch.func.grad(lambda p: fm.apply(net, p, x).square().sum())(params)
    assert all(gradient.is_contiguous() for gradient in gradients.values())


# --- empty inputs ---------------------------------------------------------------------------------------

SIZES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp": (fm.nets.mlp(4, 8, 3), 4),
    "linear": (lambda: nn.Linear(4, 2, bias=False), 4),
    "no outputs": (lambda: nn.Linear(4, 0), 4),
    "no outputs at last": (lambda: seq(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 0)), 4),
    "nothing between": (lambda: seq(nn.Linear(4, 0), nn.Tanh(), nn.Linear(0, 2)), 4),
    "no inputs": (lambda: seq(nn.Linear(0, 3), nn.Tanh(), nn.Linear(3, 2)), 0),
    "norm": (lambda: seq(nn.Linear(4, 3), nn.LayerNorm(3), nn.PReLU(), nn.Linear(3, 2)), 4),
}
FEW: list[tuple[int, ...]] = [(), (0,), (2, 0), (0, 2), (1,), (5,), (3, 2), (20,)]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("agents", [1, 3, 20])
@pytest.mark.parametrize("sharing", ["shared", "independent", "clusters", "uneven", "biases shared"])
@pytest.mark.parametrize("size", SIZES)
def test_no_rows_and_no_features(size: str, sharing: str, agents: int) -> None:
    build, features = SIZES[size]
    slots: Any = {
        "clusters": [k % min(agents, 2) for k in range(agents)],
        "uneven": [0] + [min(agents, 2) - 1] * (agents - 1),
        "biases shared": {"*bias*": "shared", "*": "independent"},
    }.get(sharing, sharing)
    if size == "linear" and sharing == "biases shared":
        slots = "independent"
    net = fm.network(build, agents, sharing=slots)
    for batch in FEW:
        x = numbers(*batch, agents, features) if features else torch.zeros(*batch, agents, 0, dtype=torch.float64)
        assert_plan_is_loop(net, (x,))
        assert_plan_is_loop(net, (torch.stack([x, x], -1)[..., 0],))  # not contiguous
        if features:
            assert_plan_is_loop(net, (numbers(1, features).expand(*batch, agents, features),))


@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]], ids=str)
def test_no_rows_with_every_strategy(sharing: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 3), N, sharing=sharing)
    params = fm.init_params(net, 0)
    for batch, strategy in itertools.product(FEW, ("auto", "vmap", "loop")):
        assert fm.apply(net.replace(strategy=strategy), params, torch.ones(*batch, N, 4)).shape == (*batch, N, 3)  # pyright: ignore


# --- sizes that are unknown while torch.compile traces -----------------------------------------------------

DYNAMIC: dict[str, Callable[[], nn.Module]] = {
    "mlp": fm.nets.mlp(6, 8, 3),
    "batch norm": lambda: seq(nn.Linear(6, 8), nn.BatchNorm1d(8)),
    "group norm": lambda: seq(nn.Linear(6, 8), nn.GroupNorm(2, 8)),
    "prelu": lambda: seq(nn.Linear(6, 8), nn.PReLU(8)),
}


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("layers", DYNAMIC)
def test_batches_of_any_size_compile(layers: str, sharing: str) -> None:
    torch._dynamo.reset()
    net = fm.network(DYNAMIC[layers], N, sharing=sharing)
    params = fm.init_params(net, 0)
    compiled: Any = torch.compile(
        lambda p, x: fm.apply(net, p, x),  # pyright: ignore[reportUnknownLambdaType]
        dynamic=True,
        fullgraph=True,
        backend="eager",
    )
    for batch in (4, 7, 20):
        x = torch.randn(batch, N, 6)
        torch.testing.assert_close(compiled(params, x), fm.apply(net, params, x))


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("batch", [(0,), (2, 0), (1,)])
def test_no_rows_compile(batch: tuple[int, ...], sharing: str) -> None:
    torch._dynamo.reset()
    net = fm.network(fm.nets.mlp(4, 8, 3), 1, sharing=sharing)
    params, x = fm.init_params(net, 0), torch.ones(*batch, 1, 4)
    compiled: Any = torch.compile(fm.apply, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(net, params, x), fm.apply(net, params, x))
