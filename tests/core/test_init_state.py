"""The buffers of a call without ``state=``: on the device of the parameters, in the dtypes of the factory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._init_state import default_state
from tests.builders import N, numbers, same


class Mixed(nn.Module):
    """Buffers of every dtype, in the module itself and in a submodule with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scales: Any = nn.Module()
        self.scales.count = nn.Parameter(torch.arange(4), requires_grad=False)
        self.scales.factor = nn.Parameter(torch.ones(4, dtype=torch.float64))
        for dtype in (torch.float64, torch.bfloat16, torch.int32, torch.bool, torch.complex64):
            self.register_buffer(str(dtype).replace("torch.", "of_"), torch.ones(4, dtype=dtype))
        self.scales.register_buffer("single", torch.ones(4))
        self.register_buffer("empty", torch.ones(0, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.norm(self.linear(x)).double() * self.get_buffer("of_float64")
        return scaled + self.scales.count * self.scales.factor * self.scales.single


def test_the_default_state_keeps_the_dtypes_of_the_factory() -> None:
    net = fm.network(Mixed, N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4).float()
    assert same(default_state(net, params), fm.init_state(net))
    assert same(default_state(net, {k: leaf.to(leaf.dtype) for k, leaf in params.items()}), fm.init_state(net, 0))
    expected = torch.stack([fm.agent_module(net, params, i)(x[:, i]) for i in range(N)], 1)
    assert expected.dtype == torch.float64
    for strategy in ("auto", "loop", "vmap"):
        y = fm.apply(net.replace(strategy=strategy), params, x)
        torch.testing.assert_close(y, expected.detach())


def test_a_buffer_follows_the_nearest_parameter_that_was_cast() -> None:
    net = fm.network(Mixed, N)
    params, initial = fm.init_params(net, 0), fm.init_state(net)
    floats = {name for name, leaf in initial.items() if leaf.is_floating_point()}
    whole = default_state(net, {k: leaf.half() if leaf.is_floating_point() else leaf for k, leaf in params.items()})
    for name, leaf in initial.items():  # as module.half() does
        assert whole[name].dtype == (torch.float16 if name in floats else leaf.dtype)
    for part, beside in {
        "norm.": {"norm.running_mean", "norm.running_var"},
        "scales.": {"scales.single"},
        "linear.": floats - {"norm.running_mean", "norm.running_var", "scales.single"},
    }.items():
        cast = {k: leaf.half() if k.startswith(part) and k != "scales.count" else leaf for k, leaf in params.items()}
        state = default_state(net, cast)
        assert {name for name in state if state[name].dtype != initial[name].dtype} == beside
        moved = default_state(net, {k: leaf.to("meta") if k.startswith(part) else leaf for k, leaf in params.items()})
        assert beside <= {name for name, leaf in moved.items() if leaf.is_meta}


def test_buffers_follow_integer_parameters_where_there_are_no_floats() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Parameter(torch.arange(3), requires_grad=False)
            self.register_buffer("mean", torch.zeros(3))

    net = fm.network(Counts, N)
    state = default_state(net, fm.init_params(net, 0, device="meta"))
    assert (state["mean"].device.type, state["mean"].dtype) == ("meta", torch.float32)
    alone = fm.network(lambda: nn.BatchNorm1d(3, affine=False), N)
    assert same(default_state(alone, {}), fm.init_state(alone))
