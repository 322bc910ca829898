"""The mode of the first call decides nothing: after it a network computes and trains as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import functional_marl as fm
from functional_marl._clean_context import no_active_modes
from tests.builders import N, numbers

Params = dict[str, Tensor]
First = Callable[[fm.Network, Params, Tensor], object]


class Constants(nn.Module):
    """No plan: plain tensors as attribute and in containers, which the gradient of the weights needs."""

    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.table = torch.arange(1.0, 5.0, dtype=torch.float64)
        self.nested = {"tables": [torch.ones(4, dtype=torch.float64)]}
        if buffer:
            self.register_buffer("shift", torch.ones(4, dtype=torch.float64))
        else:
            self.shift = torch.ones(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x * self.table) * self.table) * self.nested["tables"][0] + self.shift


class Applied(nn.Module):
    def __init__(self, net: fm.Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, params: Params, x: Tensor) -> Any:
        return fm.apply(self.net, params, x)


def inference(net: fm.Network, params: Params, x: Tensor) -> object:
    with torch.inference_mode():
        return fm.apply(net, params, x)


def fake(net: fm.Network, params: Params, x: Tensor) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return fm.apply(net, {k: mode.from_tensor(p) for k, p in params.items()}, mode.from_tensor(x))


def autocast(net: fm.Network, params: Params, x: Tensor) -> object:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return fm.apply(net, params, x)


def compiled(net: fm.Network, params: Params, x: Tensor) -> object:
    torch._dynamo.reset()
    return torch.compile(Applied(net), backend="aot_eager", fullgraph=True)(params, x)


def compiled_in_inference(net: fm.Network, params: Params, x: Tensor) -> object:
    with torch.inference_mode():
        return compiled(net, params, x)


def transformed(transform: Callable[..., Any], *more: Any) -> First:
    return lambda net, params, x: transform(lambda x: fm.apply(net, params, x).sum(), *more)(x)


FIRST: dict[str, First] = {
    "inference": inference,
    "vmap": lambda net, params, x: torch.vmap(lambda x: fm.apply(net, params, x))(torch.stack([x, x])),
    "grad": transformed(torch.func.grad),
    "hessian": transformed(lambda f: torch.func.jacrev(torch.func.grad(f))),
    "functionalize": transformed(torch.func.functionalize),
    "make_fx": lambda net, params, x: make_fx(lambda p, x: fm.apply(net, p, x))(params, x),
    "fake": fake,
    "autocast": autocast,
    "export": lambda net, params, x: torch.export.export(Applied(net), (params, x), strict=False),
    "strict export": lambda net, params, x: torch.export.export(Applied(net), (params, x), strict=True),
    "compile": compiled,
    "compile in inference": compiled_in_inference,
}


def trained(net: fm.Network, params: Params, x: Tensor) -> list[Tensor]:
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    y = fm.apply(net, leaves, x)
    assert type(y) is Tensor
    return [y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))]


# Strict export warns that functional_call puts tensors into the stateless module and removes them again.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize(("strategy", "buffer"), [("auto", True), ("loop", False)])
@pytest.mark.parametrize("first", FIRST)
def test_a_network_trains_after_any_first_call(first: str, buffer: bool, strategy: Any) -> None:
    net = fm.network(lambda: Constants(buffer), N, sharing=[0, 0, 1], strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    wanted = trained(fm.network(lambda: Constants(buffer), N, sharing=[0, 0, 1], strategy="loop"), params, x)
    FIRST[first](net, params, x)
    for _ in range(3):
        torch.testing.assert_close(trained(net, params, x), wanted, rtol=1e-11, atol=1e-11)
    assert "loop (" not in fm.tabulate(net)
    if first in ("inference", "compile in inference"):  # and by dynamo
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        y: Any = compiled(net, leaves, x)
        grads = torch.autograd.grad(y.square().sum(), list(leaves.values()))
        torch.testing.assert_close([y, *grads], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_a_program_exported_first_computes_what_the_network_does(strategy: Any, strict: bool) -> None:
    net = fm.network(Constants, N, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    program = torch.export.export(Applied(net), (params, x), strict=strict).module()
    other = {name: leaf + 1 for name, leaf in params.items()}
    wanted = fm.apply(net.replace(strategy="loop"), other, x + 1)
    torch.testing.assert_close(program(other, x + 1), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["inference", "grad", "fake"])
def test_a_network_made_in_a_mode_is_like_others(mode: str) -> None:
    made: list[fm.Network] = []

    def make(x: Tensor) -> Tensor:
        made.append(fm.network(lambda: Constants(True), N))
        return x.sum()

    if mode == "grad":
        torch.func.grad(make)(numbers(2))
    else:
        with torch.inference_mode() if mode == "inference" else FakeTensorMode():
            make(torch.ones(2))
    params, x = fm.init_params(made[0], 0), numbers(5, N, 4)
    wanted = trained(fm.network(lambda: Constants(True), N, strategy="loop"), params, x)
    torch.testing.assert_close(trained(made[0], params, x), wanted, rtol=1e-11, atol=1e-11)


def test_a_first_init_params_inside_a_mode_leaves_a_trace_for_later_calls() -> None:
    net, other = (fm.network(lambda: nn.Linear(4, 2), N) for _ in range(2))
    with torch.inference_mode():
        fm.init_params(net, 0)
    trace = net.module_spec.init_trace()
    assert trace is not None
    assert not any(value.is_inference() for value in (*trace.values, *trace.constants.values()) if value is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fm.init_params(other, 0)
    assert other.module_spec.init_trace() is not None
    torch.testing.assert_close(fm.init_params(net, 1), fm.init_params(other, 1), rtol=0, atol=0)


def test_neutral_takes_all_modes_off_and_puts_them_back() -> None:
    from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack  # pyright: ignore

    def inside(x: Tensor) -> Tensor:
        before = _get_current_function_mode_stack()
        with no_active_modes():
            made = torch.ones(2)
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch._C._len_torch_dispatch_stack() == 0
            assert torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore
            assert len(_get_current_function_mode_stack()) == 1  # the default device
            assert made.device.type == "meta"
        assert _get_current_function_mode_stack() == before
        assert torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
        assert torch.is_autocast_enabled("cpu")
        return x.sum()

    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.device("cpu"),
        torch.device("meta"),
        BaseTorchFunctionMode(),
    ):
        torch.func.grad(inside)(torch.ones(2, device="cpu"))
