"""Every rule of the plan against the loop, values and gradients, in float64, under every kind of sharing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_marl as fm
from functional_marl._lowering import dense
from functional_marl._strategies.plan import PlanEvaluator
from functional_marl._strategies.plan_fast_path import PlanFastPath
from tests.builders import numbers

N = 3
SHARINGS: dict[str, Any] = {
    "shared": "shared",
    "independent": "independent",
    "clusters": [0, 1, 0],
    "relabelled": [1, 1, 0],
    "unused slots": fm.Sharing([2, 0, 2], 4),
    "weights shared": {"*weight*": "shared", "*": "independent"},
    "biases shared": {"*bias*": "shared", "*": [0, 0, 1]},
}


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


# name -> (build, the shape of one item that an agent sees, batch axes to try)
ANY, ONE = ([], [4], [2, 3], [0]), ([4], [0])
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "mlp": (fm.nets.mlp(6, 8, 8, 3), (6,), ANY),
    "activations behind activations": (lambda: seq(nn.Linear(6, 8), nn.Tanh(), nn.ReLU(), nn.Sigmoid()), (6,), ANY),
    "activation first": (lambda: seq(nn.ReLU(inplace=True), nn.Linear(6, 3)), (6,), ANY),
    "nested": (lambda: seq(seq(nn.Linear(6, 8), nn.GELU()), seq(nn.ELU(inplace=True), nn.Linear(8, 3))), (6,), ANY),
    "layer norm": (lambda: seq(nn.Linear(6, 8), nn.LayerNorm(8), nn.Softmax(-1)), (6,), ANY),
    "softmax of axis 0": (lambda: seq(nn.Linear(6, 8), nn.LogSoftmax(0)), (6,), ([4], [2, 3])),
    "layer norm of two axes": (
        lambda: seq(nn.Unflatten(-1, torch.Size((2, 3))), nn.LayerNorm([2, 3]), nn.Flatten(-2)),
        (6,),
        ANY,
    ),
    "prelu": (lambda: seq(nn.Linear(6, 3), nn.PReLU()), (6,), ANY),
    "prelu of channels": (lambda: seq(nn.Linear(6, 3), nn.PReLU(3)), (6,), ONE),
    "batch norm": (lambda: seq(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (6,), ONE),
    "convnet": (fm.nets.convnet([2, 3, 4], 3, 1, 1), (2, 5, 5), ANY),
    "conv1d": (
        lambda: seq(nn.Conv1d(2, 4, 3, groups=2), nn.MaxPool1d(2), nn.GroupNorm(2, 4), nn.Flatten()),
        (2, 8),
        ONE,
    ),
    "conv2d": (lambda: seq(nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AvgPool2d(2)), (2, 7, 7), ONE),
    "conv2d of a lone image": (lambda: seq(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1)), (2, 7, 7), ([],)),
    "conv3d": (lambda: seq(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1)), (2, 3, 3, 3), ONE),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 6, 0.2, batch_first=True), 2, nn.LayerNorm(8)),
        (5, 8),
        ([], [4]),
    ),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(8, 4, 6, 0.2, F.gelu, norm_first=True, bias=False),
        (5, 8),
        ([], [4]),
    ),
    "transposed": (lambda: seq(nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.Tanh()), (2, 3, 3), ONE),
}
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanhshrink),
)


def network(build: Callable[[], nn.Module], sharing: Any, **settings: Any) -> fm.Network:
    try:
        return fm.network(build, N, sharing=sharing, **settings)
    except fm.SharingError:
        if not isinstance(sharing, dict):
            raise
        pytest.skip("the network has no leaf for one of the patterns")


def random_state(net: fm.Network) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def value(b: Tensor) -> Tensor:
        return b + torch.rand(b.shape, generator=generator, dtype=b.dtype) if b.is_floating_point() else b

    return {k: value(b) for k, b in fm.init_state(net, 0, dtype=torch.float64).items()}


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for branch in tree for tensor in tensors(branch)]


def assert_plan_is_loop(net: fm.Network, inputs: tuple[Any, ...], **call: Any) -> None:
    params = fm.init_params(net, 1, dtype=torch.float64)
    call["state"] = random_state(net)

    def run(strategy: Any, params: dict[str, Tensor]) -> list[Tensor]:
        return tensors(fm.apply(net.replace(strategy=strategy), params, *inputs, **call))

    def loss(strategy: str, params: dict[str, Tensor]) -> Tensor:
        outs = run(strategy, params)
        weighted = [(t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outs]
        return torch.stack(weighted).sum()

    for ours, loop in zip(run("plan", params), run("loop", params), strict=True):
        torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-10)
    gradients = [torch.func.grad(lambda p, s=s: loss(s, p))(params) for s in ("plan", "loop")]
    for name in params:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(layer: str, sharing: str) -> None:
    build, shape, batches = LAYERS[layer]
    net = network(build, SHARINGS[sharing], agent_dim=-1 - len(shape))
    for batch in batches:
        assert_plan_is_loop(net, (numbers(*batch, N, *shape),))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(kind: type[nn.Module]) -> None:
    net = fm.network(lambda: seq(nn.Linear(6, 5), kind()), N, sharing=[0, 1, 0])
    assert_plan_is_loop(net, (numbers(4, N, 6),))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("layer", ["mlp", "nested", "layer norm"])
def test_centralized(layer: str, sharing: str) -> None:
    build, shape, batches = LAYERS[layer]
    net = network(lambda: seq(nn.Linear(N * 6, 6), build()), SHARINGS[sharing], centralized=True)
    for batch in batches:
        assert_plan_is_loop(net, (numbers(*batch, N, *shape),))


DROPOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (lambda: seq(nn.Linear(6, 4), nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.Linear(4, 2)), (6,)),
    "transformer": (lambda: nn.TransformerEncoderLayer(6, 3, 5, 0.3, nn.GELU(), batch_first=True), (4, 6)),
    "channels": (lambda: seq(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.5), nn.FeatureAlphaDropout(0.3)), (2, 4, 4)),
    "one dimension": (lambda: seq(nn.Conv1d(2, 4, 3), nn.Dropout1d(0.5)), (2, 4)),
    "three dimensions": (lambda: seq(nn.Conv3d(2, 4, 2), nn.Dropout3d(0.5)), (2, 3, 3, 3)),
}


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("layer", DROPOUTS)
def test_keyed_dropout(layer: str, sharing: str, randomness: Any) -> None:
    build, shape = DROPOUTS[layer]
    net = network(build, SHARINGS[sharing], agent_dim=-1 - len(shape), randomness=randomness)
    assert_plan_is_loop(net, (numbers(4, N, *shape),), key=5, train=True)


@pytest.mark.parametrize("centralized", [False, True])
@pytest.mark.parametrize("layer", DROPOUTS)
def test_dropout_without_a_key(layer: str, centralized: bool) -> None:
    build, shape = DROPOUTS[layer]
    if centralized and layer != "dropout":
        pytest.skip("a convolution of the joint input has other channels")
    joint: Callable[[], nn.Module] = (lambda: seq(nn.Linear(N * 6, 6), build())) if centralized else build
    x = numbers(1, 1, *shape).expand(64, N, *shape)
    masks: dict[Any, Tensor] = {}
    for randomness in ("same", "different", "error"):
        net = fm.network(
            joint,
            N,
            sharing="shared",
            centralized=centralized,
            agent_dim=1,
            strategy="plan",
            randomness=randomness,  # pyright: ignore[reportArgumentType]
        )
        params = fm.init_params(net, 0, dtype=torch.float64)
        if randomness == "error":
            with pytest.raises(fm.RandomnessError, match='randomness="error"'):
                fm.apply(net, params, x, train=True)
        else:
            masks[randomness] = fm.apply(net, params, x, train=True)
    assert masks["same"][:, 0].equal(masks["same"][:, 1])
    assert not masks["different"][:, 0].equal(masks["different"][:, 1])


def gru_inputs(batch: list[int]) -> tuple[Any, ...]:
    return numbers(*batch, N, 7, 4), numbers(*batch, N, 5, seed=1), numbers(*batch, N, 7, seed=2) > 0.5


def lstm_inputs(batch: list[int]) -> tuple[Any, ...]:
    x, h, reset = gru_inputs(batch)
    return x, (h, h + 1), reset


def attention_inputs(batch: list[int]) -> tuple[Tensor, ...]:
    return tuple(numbers(*batch, N, length, 8, seed=k) for k, length in enumerate((5, 3, 3)))


def attention_inputs_along_axis_0(batch: list[int]) -> tuple[Tensor, ...]:
    return tuple(x.transpose(0, 2) if batch else x for x in attention_inputs(batch))


CELLS: dict[str, tuple[Callable[[], nn.Module], list[Callable[[list[int]], tuple[Any, ...]]]]] = {
    "gru": (fm.nets.gru(4, 5), [lambda b: gru_inputs(b)[:1], gru_inputs]),
    "lstm": (fm.nets.lstm(4, 5), [lambda b: lstm_inputs(b)[:1], lstm_inputs]),
    "gru cell": (
        lambda: nn.GRUCell(4, 5),
        [lambda b: (numbers(*b, N, 4),), lambda b: (numbers(*b, N, 4), numbers(*b, N, 5, seed=1))],
    ),
    "lstm cell": (
        lambda: nn.LSTMCell(4, 5, bias=False),
        [lambda b: (numbers(*b, N, 4),), lambda b: (numbers(*b, N, 4), lstm_inputs(b)[1])],
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        [attention_inputs, lambda b: (*attention_inputs(b), numbers(*b, N, 3) > 1)],
    ),
    "attention along axis 0": (lambda: nn.MultiheadAttention(8, 4, bias=False), [attention_inputs_along_axis_0]),
    "bilinear": (lambda: nn.Bilinear(4, 3, 5), [lambda b: (numbers(*b, N, 4), numbers(*b, N, 3, seed=1))]),
}


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_cell(cell: str, sharing: str) -> None:
    build, kinds = CELLS[cell]
    for batch in ([], [4], [0]):
        net = network(build, SHARINGS[sharing], agent_dim=len(batch))
        for inputs in kinds:
            assert_plan_is_loop(net, inputs(batch))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("gru", ("x", "h", "reset")),
        ("lstm", ("x", "state", "reset")),
        ("gru cell", ("input", "hx")),
        ("lstm cell", ("input", "hx")),
        ("attention", ("query", "key", "value", "key_padding_mask")),
        ("bilinear", ("input1", "input2")),
    ],
)
def test_inputs_of_cells_may_be_keywords(cell: str, names: tuple[str, ...], sharing: str) -> None:
    build, kinds = CELLS[cell]
    net = network(build, SHARINGS[sharing], agent_dim=1)
    first, *others = kinds[-1]([4])
    assert_plan_is_loop(net, (first,), kwargs=dict(zip(names[1:], others, strict=True)))
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        fm.apply(net, fm.init_params(net, 0, dtype=torch.float64), first, kwargs={"other": others[0]})


@pytest.mark.parametrize("layers", [[], [nn.MaxPool2d(2)]])
def test_images_come_out_in_the_layout_of_the_loop(layers: list[nn.Module]) -> None:
    net = fm.network(lambda: seq(nn.Conv2d(2, 4, 3), *layers), N, agent_dim=1)
    params = fm.init_params(net, 0)
    x = torch.randn(5, N, 2, 8, 8)
    with torch.no_grad():
        assert fm.apply(net, params, x).view(5, N, -1).shape[2] in (4 * 36, 4 * 9)


def test_a_state_that_would_broadcast_is_left_to_the_module() -> None:
    net = fm.network(fm.nets.gru(4, 5), N, agent_dim=(1, 1))
    params = fm.init_params(net, 0)
    x, h = torch.randn(6, N, 7, 4), torch.randn(1, N, 5)
    assert fm.apply(net, params, x, h)[0].shape == (6, N, 7, 5)  # vmap broadcasts as the module does
    with pytest.raises(fm.StructureError, match="beside others"):
        fm.apply(net.replace(strategy="plan"), params, x, h)


# --- size rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["independent", [0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 2], [2, 1, 0, 2, 1, 0]])
@pytest.mark.parametrize("rules", [{"CHUNK_ABOVE": 0, "CHUNK": 1_000}, {"FEATURE_MAJOR_FROM": 1}, {"GATHER_UP_TO": 0}])
def test_size_rules_change_no_number(sharing: Any, rules: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rules.items():
        monkeypatch.setattr(dense, name, value)
    net = fm.network(fm.nets.mlp(6, 8, 3), 6, sharing=sharing)
    assert_plan_is_loop(net, (numbers(9, 6, 6),))


@pytest.mark.parametrize("agents", [2, 20])
@pytest.mark.parametrize("batch", [0, 1, 2, 20])
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_direct_is_the_loop_at_the_edges_of_its_rules(sharing: str, batch: int, agents: int) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), agents, sharing=sharing)
    assert isinstance(net.evaluators[False].single, PlanFastPath)
    assert_plan_is_loop(net, (numbers(batch, agents, 4),))


def test_direct_answers_only_what_it_was_made_for() -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N)
    params = fm.init_params(net, 0)
    x = torch.randn(5, N, 4)
    single = net.evaluators[False].single
    assert isinstance(single, PlanFastPath)
    assert single(params, x) is not None
    assert single(params, x[0]) is None
    assert single(params, x[:, :2]) is None
    assert single({k: p[:2] for k, p in params.items()}, x) is None
    assert single({k: p for k, p in params.items() if k != "0.bias"}, x) is None
    assert single({**params, "more": x}, x) is None
    for settings in ({"centralized": True}, {"agent_dim": 1}, {"out_agent_dim": 0}, {"strategy": "loop"}):
        assert not isinstance(net.replace(**settings).evaluators[False].single, PlanFastPath)


# --- modules without a plan ----------------------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def doubled(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return 2 * out


def hooked() -> nn.Module:
    module = nn.Linear(4, 2)
    module.register_forward_hook(doubled)
    return module


def patched() -> nn.Module:
    module = nn.Linear(4, 2)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)  # pyright: ignore[reportAttributeAccessIssue]
    return module


WITHOUT_PLAN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: Doubled(4, 2), "no rule for Doubled"),
    "hook": (hooked, "hooks"),
    "hook inside": (lambda: seq(nn.Linear(4, 4), hooked()), r"1 \(Linear\): hooks"),
    "patched": (patched, "methods of its own"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(4, 2)), "no rule for ParametrizedLinear"),
    "nothing": (lambda: seq(nn.Identity(), nn.Flatten(-1)), "nothing is computed"),
    "padding": (
        lambda: seq(nn.Unflatten(-1, torch.Size((1, 4))), nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")),
        "padding_mode",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_PLAN)
def test_a_module_without_a_plan_falls_back(case: str) -> None:
    build, why = WITHOUT_PLAN[case]
    net = fm.network(build, N)
    params = fm.init_params(net, 0)
    x = torch.randn(5, N, 4)
    if case != "patched":  # a forward set on an instance computes with that instance's parameters
        torch.testing.assert_close(fm.apply(net, params, x), fm.apply(net.replace(strategy="loop"), params, x))
    with pytest.raises(fm.StructureError, match=why):
        fm.apply(net.replace(strategy="plan"), params, x)


def test_batch_norm_in_training_takes_vmap() -> None:
    net = fm.network(lambda: seq(nn.Linear(4, 4), nn.BatchNorm1d(4)), N)
    assert isinstance(PlanEvaluator.prepare(net, False), PlanEvaluator)
    assert "changes its buffers" in str(PlanEvaluator.prepare(net, True))


def test_a_plan_never_returns_its_input() -> None:
    net = fm.network(lambda: seq(nn.Dropout(0.5), nn.Flatten(-1)), N)
    x = torch.randn(5, N, 4)
    y = fm.apply(net, {}, x)
    y.zero_()
    assert x.any()


def test_the_plan_writes_nothing_into_its_input() -> None:
    net = fm.network(lambda: seq(nn.ReLU(inplace=True), nn.Linear(4, 2), nn.ReLU(inplace=True)), N)
    x = torch.randn(5, N, 4)
    before = x.clone()
    fm.apply(net, fm.init_params(net, 0), x)
    assert x.equal(before)


@pytest.mark.parametrize("sharing", ["shared", "independent", [0, 0, 1]])
def test_a_wrong_feature_size_gets_the_modules_own_error(sharing: Any) -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), N, sharing=sharing)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fm.apply(net, fm.init_params(net, 0), torch.randn(5, N, 3))
