"""Every layer of torch.nn that a policy may use, under every sharing: values, gradients and buffers of ``apply``
against agents that are ordinary modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._strategies import supports
from tests.builders import FLAT_SHARINGS, N, assert_alike, by_agents, by_apply, double, numbers

B = 4
Build = Callable[[], nn.Module]


class Uses(nn.Module):
    """A layer and how to call it, so that the output is one tensor."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def uses(build: Build, call: Callable[[Any, Tensor], Tensor]) -> Build:
    return lambda: Uses(build(), call)


def layer(name: str, *args: Any, **kwargs: Any) -> Build:
    return lambda: getattr(nn, name)(*args, **kwargs)


def between(activation: Any, **kwargs: Any) -> Build:
    """An activation before, between and after linear layers, also twice in a row if torch can train that."""
    a: Build = lambda: activation(**kwargs)
    again: Build = nn.Identity if kwargs else a
    return lambda: nn.Sequential(a(), nn.Linear(4, 5), a(), again(), nn.Linear(5, 2), a())


def image_layers(d: int, side: int) -> dict[str, tuple[Build, tuple[tuple[int, ...], ...]]]:
    one, many = (4, *[side] * d), (B, 4, *[side] * d)
    conv: Any = getattr(nn, f"Conv{d}d")
    return {
        f"conv {d}": (lambda: nn.Sequential(conv(4, 6, 2, 2, 1), nn.ReLU(), conv(6, 4, 2, groups=2)), (one, many)),
        f"conv same {d}": (layer(f"Conv{d}d", 4, 3, 3, padding="same", dilation=2, bias=False), (one, many)),
        f"conv circular {d}": (layer(f"Conv{d}d", 4, 3, 3, padding=1, padding_mode="circular"), (one, many)),
        f"transposed {d}": (layer(f"ConvTranspose{d}d", 4, 6, 3, 2, output_padding=1, groups=2), (one, many)),
        f"max pool {d}": (layer(f"MaxPool{d}d", 2), (one, many)),
        f"indices {d}": (uses(layer(f"MaxPool{d}d", 2, return_indices=True), lambda m, x: m(x)[0]), (many,)),
        f"average pool {d}": (layer(f"AvgPool{d}d", 2, padding=1), (one, many)),
        f"adaptive {d}": (layer(f"AdaptiveAvgPool{d}d", 2), (one, many, (0, *one))),
        f"batch norm {d}": (layer(f"BatchNorm{d}d", 4), (many,)),
        f"batch norm plain {d}": (layer(f"BatchNorm{d}d", 4, affine=False, momentum=None), (many,)),
        f"batch norm untracked {d}": (layer(f"BatchNorm{d}d", 4, track_running_stats=False), (many,)),
        f"instance norm {d}": (layer(f"InstanceNorm{d}d", 4, affine=True, track_running_stats=True), (many,)),
        f"layer norm {d}": (layer("LayerNorm", [side] * d), (one, many)),
        f"padding {d}": (layer(f"ReflectionPad{d}d", 1), (one, many)),
    }


ACTIVATIONS = (
    "Tanh ReLU Sigmoid CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish ReLU6 SELU "
    "SiLU Softplus Softshrink Softsign Tanhshrink PReLU RReLU"
)
flat, row = ((4,), (B, 4), (2, B, 4)), ((4,), (B, 4))
# name -> factory, the shapes that one agent sees
CASES: dict[str, tuple[Build, tuple[tuple[int, ...], ...]]] = {
    **{name: (between(getattr(nn, name)), row) for name in ACTIVATIONS.split()},
    **{
        f"{name} in place": (between(getattr(nn, name), inplace=True), row)
        for name in ("ReLU", "ELU", "Hardtanh", "LeakyReLU", "SiLU", "Mish")
    },
    **image_layers(1, 6),
    **image_layers(2, 5),
    **image_layers(3, 4),
    "mlp": (fm.nets.mlp(4, 8, 8, 2), (*flat, (0, 4), (20, 4))),
    "without bias": (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4)), (*flat, (20, 4))),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(), nn.Tanh(), nn.LayerNorm(4)), row),
    "convnet": (fm.nets.convnet([4, 3, 2]), ((4, 6, 6), (B, 4, 6, 6), (2, B, 4, 6, 6), (0, 4, 6, 6))),
    "flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), ((B, 3, 4), (B, 12))),
    "flatten all": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(0)), ((B, 3), (4,))),
    "flatten back": (lambda: nn.Sequential(nn.Tanh(), nn.Flatten(-2)), ((B, 3, 4), (3, 4))),
    "unflatten": (lambda: nn.Sequential(nn.ReLU(), nn.Unflatten(-1, (2, 2))), flat),
    "unflatten front": (lambda: nn.Sequential(nn.ReLU(), nn.Unflatten(0, (2, 2))), ((4,), (4, 3))),
    "softmax": (lambda: nn.Softmax(-1), flat),
    "log softmax": (lambda: nn.LogSoftmax(0), flat),
    "glu": (lambda: nn.GLU(), row),
    "identity": (lambda: nn.Identity(), row),
    "layer norm": (lambda: nn.LayerNorm(4), flat),
    "layer norm plain": (lambda: nn.LayerNorm(4, elementwise_affine=False), row),
    "rms norm": (lambda: nn.RMSNorm(4), row),
    "group norm": (lambda: nn.GroupNorm(2, 4), ((B, 4), (B, 4, 3), (B, 4, 3, 3))),
    "local response": (lambda: nn.LocalResponseNorm(2), ((B, 4, 3, 3),)),
    "prelu channels": (lambda: nn.PReLU(4), ((B, 4), (B, 4, 3))),
    "prelu number": (lambda: nn.PReLU(), ((), (B, 4))),
    "bilinear": (uses(lambda: nn.Bilinear(4, 4, 2), lambda m, x: m(x, x.sin())), ((B, 4),)),
    "attention": (
        uses(lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda m, x: m(x, x, x)[0]),
        ((B, 5, 4),),
    ),
    "attention, no weights": (
        uses(lambda: nn.MultiheadAttention(4, 2), lambda m, x: m(x, x, x, need_weights=False)[0]),
        ((5, 4), (5, B, 4)),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), ((B, 5, 4),)),
    "decoder": (
        uses(lambda: nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True), lambda m, x: m(x, x.cos())),
        ((B, 5, 4),),
    ),
    "GRUCell": (lambda: nn.GRUCell(4, 3), row),
    "RNNCell": (lambda: nn.RNNCell(4, 3), row),
    "LSTMCell": (uses(lambda: nn.LSTMCell(4, 3), lambda m, x: torch.cat(m(x), -1)), row),
    "GRU": (uses(lambda: nn.GRU(4, 3, 2, bidirectional=True), lambda m, x: m(x)[0]), ((5, 4), (5, B, 4))),
    "LSTM": (uses(lambda: nn.LSTM(4, 3, batch_first=True), lambda m, x: m(x)[0]), ((5, 4), (B, 5, 4))),
    "RNN": (uses(lambda: nn.RNN(4, 3), lambda m, x: m(x)[1]), ((5, B, 4),)),
    "fm gru": (uses(fm.nets.gru(4, 3), lambda m, x: m(x)[0]), ((5, 4), (B, 5, 4))),
    "fm lstm": (uses(fm.nets.lstm(4, 3), lambda m, x: m(x)[0]), ((5, 4), (B, 5, 4))),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), ((B, 2, 3, 3),)),
    "unfold": (lambda: nn.Unfold(2), ((B, 2, 3, 3),)),
    "adaptive softmax": (
        uses(lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2], div_value=2.0), lambda m, x: m.log_prob(x)),
        ((B, 4),),
    ),
}
# inputs are indices below 3
INTEGERS: dict[str, tuple[Build, tuple[tuple[int, ...], ...]]] = {
    "embedding": (lambda: nn.Embedding(3, 2), ((), (B,), (2, B), (0,))),
    "embedding padded": (lambda: nn.Embedding(3, 2, padding_idx=0), ((B,), (2, B))),
    "embedding scaled": (lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), ((B,),)),
    "embedding, tied": (
        uses(lambda: nn.Embedding(3, 2, padding_idx=1), lambda m, x: m(x) @ m.weight.T),
        ((B,),),
    ),
    "bag": (lambda: nn.EmbeddingBag(3, 2, padding_idx=2), ((B, 3),)),
    "bag max": (lambda: nn.EmbeddingBag(3, 2, mode="max"), ((B, 3),)),
    "embedded mlp": (lambda: nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(8, 2)), ((B, 4),)),
}


@pytest.mark.parametrize("sharing", ["shared", "independent", "apart", "unused"])
@pytest.mark.parametrize("name", [*CASES, *INTEGERS])
def test_values_and_gradients_equal_those_of_single_agents(name: str, sharing: str) -> None:
    build, shapes = (CASES | INTEGERS)[name]
    net = fm.network(double(build), N, sharing=FLAT_SHARINGS[sharing], agent_dim=0)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    for shape in shapes:
        x = numbers(N, *shape)
        if name in INTEGERS:
            x = torch.randint(0, 3, (N, *shape), generator=torch.Generator().manual_seed(0))
        expected = by_agents(net, params, x, state=state)
        # "auto" uses the plan if there is one; then vmap is tested too.
        for strategy in ("auto", "loop", *(("vmap",) if supports(net, "plan") else ())):
            assert_alike(by_apply(net.replace(strategy=strategy), params, x, state=state), expected)


@pytest.mark.parametrize("sharing", ["independent", [0, 0, 1]], ids=str)
@pytest.mark.parametrize("name", [n for n in CASES if "RReLU" not in n])
def test_buffers_after_training_equal_those_of_single_agents(name: str, sharing: Any) -> None:
    build, shapes = CASES[name]
    net = fm.network(double(build), N, sharing=sharing, agent_dim=0)
    params, shape = fm.init_params(net, 0), shapes[-1]
    # Each agent has its own buffers, so that none are merged.
    net = net.replace(sharing={**net.sharing_spec, **dict.fromkeys(net.state_sharing, "independent")})
    x = numbers(N, *shape)
    expected = by_agents(net, params, x, train=True)
    assert_alike(by_apply(net, params, x, train=True), expected)


@pytest.mark.parametrize("sharing", ["shared", "independent", "apart"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_takes_an_input_without_an_agent_axis(name: str, sharing: str) -> None:
    build, shapes = CASES[name]
    net = fm.network(double(build), N, sharing=FLAT_SHARINGS[sharing], agent_dim=0)
    params, whole = fm.init_params(net, 0), net.replace(agent_dim=None, out_agent_dim=0)
    for shape in shapes:
        x = numbers(*shape)
        expected = by_agents(net, params, torch.stack([x] * N))
        torch.testing.assert_close(fm.apply(whole, params, x), expected.y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("build", "shape", "error"),
    [
        (lambda: nn.Linear(4, 2), (5,), RuntimeError),
        (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), (4,), IndexError),
        (lambda: nn.Sequential(nn.ReLU(), nn.Unflatten(-2, (3, 1))), (4,), IndexError),
        (lambda: nn.BatchNorm1d(4), (4,), ValueError),
        (lambda: nn.LayerNorm(4), (5,), RuntimeError),
        (lambda: nn.Conv1d(4, 2, 3), (5, 6), RuntimeError),
        (lambda: nn.Softmax(1), (4,), IndexError),
        (lambda: nn.Unflatten(-1, (3, 2)), (4,), RuntimeError),
    ],
)
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_an_input_that_raises_for_a_single_agent_raises(build: Any, shape: Any, error: Any, sharing: str) -> None:
    net = fm.network(double(build), N, sharing=sharing, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, *shape)
    with pytest.raises(error):
        fm.agent_module(net, params, 0)(x[0])
    for strategy in ("auto", "loop"):
        with pytest.raises(error):
            fm.apply(net.replace(strategy=strategy), params, x)
