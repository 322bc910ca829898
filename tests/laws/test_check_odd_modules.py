"""Modules with odd leaves, outputs, batches and methods under the laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import check, infer_sharing

X = torch.zeros(4, 3, 6)


class Scaled(nn.Module):
    """A parameter without axes, and with ``running`` a buffer without axes that training writes."""

    mean: Tensor

    def __init__(self, running: bool = False) -> None:
        super().__init__()
        self.layer, self.scale, self.running = nn.Linear(6, 2), nn.Parameter(torch.tensor(0.5)), running
        self.register_buffer("mean", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.running:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean())
        return self.scale * self.layer(x - self.mean)


class Normed(nn.Module):
    """A batch norm, of which agents are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.norm(h.flatten(0, -2)).reshape(h.shape)


class Spectrum(nn.Linear):
    """Complex outputs."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.fft.rfft(super().forward(input))


class Silent(nn.Linear):
    """Its ``train`` returns nothing."""

    def train(self, mode: bool = True) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().train(mode)


class Untrained(nn.Linear):
    """It raises in training."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no training here")
        return super().forward(input)


class Logarithm(nn.Linear):
    """Numbers that copies_are_whole changes give NaN."""

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.rate = nn.Parameter(torch.tensor([-0.4]))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (-self.rate).log()


class Masked(nn.Linear):
    """Logits of an action that is not available are infinite."""

    def forward(self, input: Tensor) -> Tensor:
        mask = torch.tensor([0.0, -torch.inf])
        return super().forward(input) + mask


class Autocast(nn.Linear):
    """It computes in bfloat16 with float32 parameters."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(input)


class Gaussian(nn.Linear):
    """One of its outputs is a view of a parameter."""

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean = super().forward(input)
        return mean, self.log_std.expand_as(mean)


class Gaussians(nn.Module):
    """The same for agents with parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.log_std = nn.Parameter(torch.randn(3, 6, 2)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.einsum("bnf,nfo->bno", x, self.weight)
        return mean, self.log_std.expand_as(mean)


ODD: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a parameter without axes": (Scaled, X),
    "a buffer without axes": (lambda: Scaled(running=True), X),
    "a batch norm, a batch of one": (Normed, X[:1]),
    "complex outputs": (lambda: Spectrum(6, 8), X),
    "train returns None": (lambda: Silent(6, 2), X),
    "raises in training": (lambda: Untrained(6, 2), X),
    "logarithms": (Logarithm, X),
    "a masked action": (lambda: Masked(6, 2), X),
    "a view of a parameter": (Gaussian, X),
    "autocast": (lambda: Autocast(6, 2), X),
}


@pytest.mark.parametrize("name", ODD)
def test_right_modules_break_no_law(name: str) -> None:
    build, example = ODD[name]
    report = check(build, n_agents=3, sharing="shared", example=example, examples=4)
    assert not report.violated, report
    assert not [verdict for verdict in report if "it raised Attribute" in verdict.why], report
    held = {verdict.law for verdict in report if verdict.verdict == "holds"}
    assert {"shared_equivariance", "gradient_reaches_own_slot", "nothing_is_changed", "copies_are_whole"} <= held


def test_outputs_may_be_views_of_parameters() -> None:
    report = check(Gaussians, n_agents=3, sharing="independent", example=X)
    assert not report.violated, report
    assert report["independent_equivariance"].verdict == "holds"


@pytest.mark.parametrize("name", ["a parameter without axes", "a buffer without axes"])
def test_leaves_without_axes_belong_to_all(name: str) -> None:
    build, example = ODD[name]
    found = infer_sharing(build(), n_agents=3, example=example)
    assert found.sharing == "shared"
    assert found["scale"].sets == {(0, 1, 2): 1}
    if name == "a buffer without axes":
        assert found["mean"].sets == {(0, 1, 2): 1}


def test_one_value_for_all_sees_all() -> None:
    class Value(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input[..., : self.seen, :].flatten(-2))

        seen = 3

    class Blind(Value):
        seen = 1

    for build, verdict in ((lambda: Value(18, 1), "holds"), (lambda: Blind(6, 1), "violated")):
        given: dict[str, Any] = {"n_agents": 3, "sharing": "shared", "centralized": True, "out_agent_dim": None}
        report = check(build, example=X, laws="centralized_sees_all", **given)
        assert report["centralized_sees_all"].verdict == verdict


def test_a_state_dict_is_no_evidence_where_the_function_returns_one_module() -> None:
    module = nn.Linear(6, 2)
    report = check(lambda: module, n_agents=3, sharing="shared", example=X, laws="state_dicts_are_whole")
    assert "the same one" in report["state_dicts_are_whole"].why


def test_a_call_that_keeps_something_is_named_without_the_flags_of_training() -> None:
    class Last(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            before, self.last = getattr(self, "last", 0.0), input.sum()
            return super().forward(input) + before

    found = check(lambda: Last(6, 2), n_agents=3, sharing="shared", example=X, laws="calls_leave_no_memory")
    assert found["calls_leave_no_memory"].why.splitlines()[0].endswith("calls have changed attribute last")
