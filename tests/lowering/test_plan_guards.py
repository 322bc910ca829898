"""Modules and calls for which the class of a layer is not enough: changed leaves, parts, hooks, devices, dtypes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

import functional_marl as fm
from functional_marl._strategies.plan import PlanEvaluator
from functional_marl.nn._single_agent_mlp import MLP
from tests.builders import numbers
from tests.lowering.test_plan import CELLS, LAYERS, SHARINGS, N, assert_plan_is_loop, network, seq

Build = Callable[[], nn.Module]


def alike(net: fm.Network, *inputs: Any, **call: Any) -> None:
    """``auto`` gives the outputs or the error of the loop. The parameters are other than any initialization gives."""
    params = {name: numbers(*shape) for name, shape in net.param_shapes.items()}
    call["state"] = {name: leaf.double() for name, leaf in fm.init_state(net, 0).items()}
    try:
        expected = fm.apply(net.replace(strategy="loop"), params, *inputs, **call)
    except Exception as error:
        with pytest.raises(type(error)):
            fm.apply(net, params, *inputs, **call)
    else:
        torch.testing.assert_close(fm.apply(net, params, *inputs, **call), expected)


# --- layers with other leaves than their class registers -------------------------------------------------

LEAVES: dict[str, tuple[Build, str]] = {
    "linear": (lambda: nn.Linear(4, 4), "weight"),
    "linear bias": (lambda: nn.Linear(4, 4), "bias"),
    "conv": (lambda: nn.Conv1d(4, 4, 1), "weight"),
    "layer norm": (lambda: nn.LayerNorm(4), "weight"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "bias"),
    "prelu": (lambda: nn.PReLU(), "weight"),
    "batch norm": (lambda: nn.BatchNorm1d(4), "weight"),
    "running mean": (lambda: nn.BatchNorm1d(4), "running_mean"),
    "gru cell": (lambda: nn.GRUCell(4, 4), "weight_ih"),
    "gru": (fm.nets.gru(4, 4), "bias_hh"),
    "a slope": (lambda: nn.LeakyReLU(), "negative_slope"),
    "a threshold": (lambda: nn.Softshrink(), "lambd"),
}


def replaced(case: str, how: str) -> nn.Module:
    build, attribute = LEAVES[case]
    module: Any = build()
    old = getattr(module, attribute)
    new = torch.linspace(0.2, 0.9, old.numel() if isinstance(old, Tensor) else 1).double()
    new = new.view(old.shape) if isinstance(old, Tensor) else new.squeeze()
    delattr(module, attribute)
    if how == "plain":
        setattr(module, attribute, new)
    elif how == "buffer":
        module.register_buffer(attribute, new)
    else:
        module.register_parameter(attribute, nn.Parameter(new))
    return module


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("how", ["plain", "buffer", "parameter"])
@pytest.mark.parametrize("case", LEAVES)
def test_a_leaf_of_another_kind_is_used_as_the_module_uses_it(case: str, how: str, sharing: str) -> None:
    net = fm.network(lambda: replaced(case, how), N, sharing=sharing, agent_dim=0)
    alike(net, numbers(N, 5, 4) if case != "conv" else numbers(N, 5, 4, 3))
    param = isinstance(getattr(LEAVES[case][0](), LEAVES[case][1]), nn.Parameter)
    buffer = LEAVES[case][1] == "running_mean"
    assert isinstance(PlanEvaluator.prepare(net, False), PlanEvaluator) == (
        (how == "parameter" and param) or (how == "buffer" and buffer)
    )


SHAPES: dict[str, tuple[Build, str, tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm(4), "weight", (1,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), "weight", (1,)),
    "bias": (lambda: nn.Linear(4, 4), "bias", (1,)),
    "prelu": (lambda: nn.PReLU(4), "weight", (1,)),
    "batch norm": (lambda: nn.BatchNorm1d(4), "weight", (1,)),
    "embedding": (lambda: nn.Embedding(4, 2), "weight", (9, 2)),
    "gru cell": (lambda: nn.GRUCell(4, 4), "bias_ih", (1,)),
}


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("case", SHAPES)
def test_a_leaf_of_another_shape_is_used_or_refused_as_by_the_module(case: str, sharing: str) -> None:
    build, attribute, shape = SHAPES[case]

    def other() -> nn.Module:
        module = build()
        setattr(module, attribute, nn.Parameter(torch.ones(shape)))
        return module

    net = fm.network(other, N, sharing=sharing, agent_dim=0)
    assert "another shape" in str(PlanEvaluator.prepare(net, False))
    alike(net, torch.arange(15).view(N, 5) % 9 if case == "embedding" else numbers(N, 5, 4))


@pytest.mark.parametrize(
    ("build", "attribute"), [(lambda: nn.Linear(4, 4), "weight"), (lambda: nn.LayerNorm(4), "weight")]
)
def test_a_leaf_that_was_removed(build: Build, attribute: str) -> None:
    def without() -> nn.Module:
        module = build()
        setattr(module, attribute, None)
        return seq(nn.Linear(4, 4), module)

    alike(fm.network(without, N, agent_dim=0), numbers(N, 5, 4))


# --- parts ----------------------------------------------------------------------------------------------


class Empty(nn.Module):
    def __len__(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def with_none() -> nn.Module:
    module = seq(nn.Linear(4, 4))
    module.add_module("1", None)
    return module


def repeated(shared: nn.Module) -> nn.Module:
    module = MLP(4, 4, depth=2, num_cells=4)
    module[1] = module[3] = shared
    return module


def renamed() -> nn.Module:
    module = MLP(4, 4, depth=1, num_cells=4)
    del module._modules["2"]
    module.add_module("last", nn.Linear(4, 4))
    return module


@pytest.mark.parametrize(
    "build",
    [
        lambda: seq(nn.Linear(4, 4), Empty()),
        lambda: seq(nn.Linear(4, 4), nn.Sequential(), nn.Tanh()),
        with_none,
        lambda: repeated(nn.ReLU()),
        lambda: repeated(nn.Linear(4, 4)),
        renamed,
    ],
    ids=["length 0", "nothing inside", "None", "an activation twice", "a layer twice", "another name"],
)
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_every_part_runs(build: Build, sharing: str) -> None:
    alike(fm.network(build, N, sharing=sharing), numbers(5, N, 4))


# --- leaves that no layer uses, and hooks for all modules -------------------------------------------------


def unused() -> nn.Module:
    module = seq(nn.Linear(4, 2))
    module.register_parameter("extra", nn.Parameter(torch.ones(3)))
    return module


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("other", [{"extra": torch.ones(1, 2)}, {"extra": "a string"}, {"more": torch.ones(1, 3)}])
def test_leaves_that_no_layer_uses_are_checked(other: dict[str, Any], sharing: str) -> None:
    net = fm.network(unused, N, sharing=sharing)
    params = fm.init_params(net, 0)
    fm.apply(net, params, torch.ones(5, N, 4))
    wrong: dict[str, Any] = {k: leaf for k, leaf in params.items() if k != "extra"} | other
    with pytest.raises(fm.StructureError, match="extra"):
        fm.apply(net, wrong, torch.ones(5, N, 4))


REGISTER: dict[str, Any] = {
    "forward": hooks.register_module_forward_hook,
    "forward pre": hooks.register_module_forward_pre_hook,
    "backward": hooks.register_module_full_backward_hook,
    "backward pre": hooks.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_no_plan_ignores_hooks_for_all_modules(kind: str, sharing: str) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing=sharing)
    params = {k: leaf.requires_grad_() for k, leaf in fm.init_params(net, 0).items()}
    x = torch.ones(5, N, 4, requires_grad=True)
    seen: list[str] = []

    def hook(module: nn.Module, *rest: Any) -> None:
        seen.append(type(module).__name__)

    handle = REGISTER[kind](hook)
    try:
        with pytest.raises(fm.StructureError, match="hooks for all modules"):
            fm.apply(net.replace(strategy="plan"), params, x)
        for strategy in ("auto", "loop") if "forward" in kind else ("loop",):
            seen.clear()
            fm.apply(net.replace(strategy=strategy), params, x).sum().backward()  # pyright: ignore
            assert "Linear" in seen
    finally:
        handle.remove()
    fm.apply(net.replace(strategy="plan"), params, x)


# --- devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "plan", "vmap", "loop"])
@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]], ids=str)
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias", "inputs"])
def test_a_meta_tensor_among_others_is_refused(name: str, sharing: Any, strategy: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing=sharing, strategy=strategy)
    params, x = fm.init_params(net, 0), torch.ones(5, N, 4)
    fm.apply(net, params, x)  # the next call may take a fast path
    if name == "inputs":
        x = x.to("meta")
    else:
        params[name] = params[name].to("meta")
    with pytest.raises(fm.StructureError, match="meta device"):
        fm.apply(net, params, x)


@pytest.mark.parametrize("strategy", ["auto", "plan", "vmap", "loop"])
def test_all_on_the_meta_device_gives_shapes(strategy: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N, strategy=strategy)
    params = {k: leaf.to("meta") for k, leaf in fm.init_params(net, 0).items()}
    out = fm.apply(net, params, torch.ones(5, N, 4, device="meta"))
    assert out.is_meta
    assert out.shape == (5, N, 2)


# --- dtypes -----------------------------------------------------------------------------------------------


def dtypes(tree: Any) -> list[torch.dtype]:
    return [tree.dtype] if isinstance(tree, Tensor) else [dtype for branch in tree for dtype in dtypes(branch)]


def single(tree: Any) -> Any:
    if isinstance(tree, tuple):
        return tuple(map(single, tree))  # pyright: ignore
    return tree.float() if isinstance(tree, Tensor) and tree.is_floating_point() else tree


@pytest.mark.parametrize("sharing", ["shared", "independent", "clusters"])
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "transformer"])
def test_autocast_leaves_the_dtype_that_the_loop_leaves(layer: str, sharing: str) -> None:
    # nn.TransformerEncoder uses a kernel of its own under torch.no_grad, to which autocast on the CPU does not apply
    build, shape, batches = LAYERS[layer]
    net = network(build, SHARINGS[sharing], agent_dim=-1 - len(shape))
    params, x = fm.init_params(net, 0), single(numbers(*batches[0], N, *shape))
    with torch.autocast("cpu", torch.bfloat16):
        ours, loop = (fm.apply(net.replace(strategy=s), params, x) for s in ("plan", "loop"))
    assert ours.dtype is loop.dtype
    torch.testing.assert_close(ours, loop, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_run_under_autocast_as_the_loop(cell: str, sharing: str) -> None:
    build, kinds = CELLS[cell]
    net = network(build, SHARINGS[sharing], agent_dim=1)
    for inputs in kinds:
        arguments = single(inputs([4]))
        with torch.autocast("cpu", torch.bfloat16):
            outs = [fm.apply(net.replace(strategy=s), fm.init_params(net, 0), *arguments) for s in ("plan", "loop")]
        assert dtypes(outs[0]) == dtypes(outs[1])


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "build", [lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 4), lambda: nn.PReLU(), lambda: nn.PReLU(4)]
)
@pytest.mark.parametrize("params_too", [True, False])
def test_low_precision(build: Build, low: torch.dtype, sharing: str, params_too: bool) -> None:
    net = fm.network(build, N, sharing=sharing, agent_dim=0)
    params = fm.init_params(net, 0, dtype=low if params_too else torch.float32)
    x = numbers(N, 5, 4).to(low)
    try:
        expected = fm.apply(net.replace(strategy="loop"), params, x)
    except RuntimeError:
        with pytest.raises((RuntimeError, fm.StructureError)):
            fm.apply(net.replace(strategy="plan"), params, x)
    else:
        torch.testing.assert_close(fm.apply(net.replace(strategy="plan"), params, x), expected, rtol=0.02, atol=0.02)


# --- activations in place ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, -0.3, 0.0, 2.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_elu_of_any_alpha(alpha: float, inplace: bool) -> None:
    # torch itself cannot train ELU in place with a negative alpha
    build: Build = lambda: seq(nn.Linear(6, 5), nn.ELU(alpha, inplace and alpha >= 0))
    assert_plan_is_loop(fm.network(build, N), (numbers(4, N, 6),))
