"""Which factories are refused, and which buffers need a key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, numbers, same
from tests.module.modules import CustomForward


def _holding(**attributes: Any) -> nn.Module:
    return CustomForward(CustomForward.forward, **attributes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, "a function that returns an nn.Module, or a module, got int"),
        (None, "got NoneType"),
        (lambda: torch.relu, "a function that returns an nn.Module, got <built-in"),
        (lambda: nn.Linear, "a function that returns an nn.Module, got <class"),
        (lambda: _holding(lock=threading.Lock()), "CustomForward holds what cannot be copied .*_thread.lock"),
        (_holding(lock=threading.Lock()), "CustomForward holds what cannot be copied .*_thread.lock"),
        (lambda: _holding(noise=torch.randn(3)), r"plain tensor attributes \['noise'\] are random"),
        (lambda: nn.Sequential(_holding(noise=torch.randn(3))), r"plain tensor attributes \['0.noise'\] are random"),
    ],
    ids=["int", "none", "function", "class", "lock", "lock in a module", "noise", "noise inside"],
)
def test_what_cannot_be_a_network_is_refused(build: Any, message: str) -> None:
    with pytest.raises(fm.StructureError, match=message):
        fm.network(build, N)


def test_a_tensor_computed_from_parameters_in_the_constructor_is_refused() -> None:
    def build() -> nn.Module:
        module = CustomForward(lambda self, x: x @ self.doubled)
        module.doubled = module.linear.weight * 2  # pyright: ignore
        return module

    with pytest.raises(fm.StructureError, match=r"plain tensor attributes \['doubled'\].*compute them in forward"):
        fm.network(build, N)


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.BatchNorm1d])
def test_a_factory_that_returns_one_module_again_is_refused(kind: Any, sharing: Any) -> None:
    module = kind(4, 4) if kind is nn.Linear else kind(4)

    def once() -> Any:
        net = fm.network(lambda: module, N, sharing=sharing)
        fm.init_params(net, 0)

    with pytest.raises(fm.StructureError, match=r"returned the same module twice.*or pass the module itself"):
        once()


class Noisy(nn.Module):
    """A random buffer that is not saved, a constant one, and a tied one."""

    noise: Tensor
    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(4, dtype=torch.float64), persistent=False)
        self.register_buffer("again", self.noise)
        self.register_buffer("nan", torch.tensor([float("nan")]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.noise + self.again


def test_random_buffers_need_a_key_and_constant_ones_do_not() -> None:
    net = fm.network(Noisy, N, sharing=[0, 0, 1])
    message = r"samples the buffers \['noise'\]; give fm.init_state\(net, key\), or state="
    x = numbers(2, N, 4)
    calls: list[Callable[[], Any]] = [
        lambda: fm.init_state(net),
        lambda: fm.apply(net, {}, x),
        lambda: fm.agent_module(net, {}, 0),
    ]
    for call in calls:
        with pytest.raises(fm.StructureError, match=message):
            call()
    state = fm.init_state(net, 5)
    assert list(state) == ["noise", "nan"]
    assert not torch.equal(state["noise"][0], state["noise"][1])
    assert same(state, fm.init_state(net, fm.key(5)))
    expected = torch.stack([x[:, i] * state["noise"][s] + state["noise"][s] for i, s in enumerate([0, 0, 1])], 1)
    assert torch.equal(fm.apply(net, {}, x, state=state), expected)
