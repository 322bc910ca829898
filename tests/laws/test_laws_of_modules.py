"""Each law that only modules from elsewhere can break rejects a wrong module of its own, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrl.modules as rl  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

import functional_marl.nn as fmnn
from functional_marl.laws import LAWS, ModuleSubject, NetworkSubject, Subject, check
from tests.laws.check_cases import claim


class Bare(nn.Linear):
    """A reset that forgets the bias, which the start draws."""

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight)
        if not getattr(self, "made", False):
            torch.nn.init.normal_(self.bias)
            self.made = True


class Drops(nn.Linear):
    """A dropout that does not look at the mode."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(input))


class Remembers(nn.Linear):
    """Half of the last output goes into the next."""

    last: Any = 0.0

    def forward(self, input: Tensor) -> Tensor:
        self.last = super().forward(input) + 0.5 * self.last
        return self.last


class Hidden(nn.Module):
    """Layers in a plain list, which no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = [nn.Linear(6, 4)], nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden[0](x)))


class Batched(fmnn.MultiAgentMLP):
    """The first axis is averaged over, whatever it is."""

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Any = super().forward(*inputs)
        return outputs - 0.5 * outputs.mean(0)


class TwoHops(nn.Module):
    """Messages run twice along the line of agents."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 2)
        self.register_buffer("line", torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        line: Any = self.line
        return line @ (line @ self.net(x))


def linear() -> nn.Module:
    return nn.Linear(6, 2)


def torchrl_template() -> nn.Module:
    words: dict[str, Any] = {"centralized": False, "share_params": False, "use_td_params": False}
    return rl.MultiAgentMLP(6, 2, 3, **words)


def batched() -> nn.Module:
    return Batched(6, 2, 3, centralized=False, share_params=True)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a_reset_redraws": (lambda: Bare(6, 2), claim("shared", single=lambda: Bare(6, 2))),
    "batch_axes_are_free": (batched, claim()),
    "calls_leave_no_memory": (lambda: Remembers(6, 2), claim("shared")),
    "copies_are_whole": (torchrl_template, claim()),
    "evaluation_draws_nothing": (lambda: Drops(6, 2), claim("shared")),
    "ids_tell_agents_apart": (linear, claim("shared", ids=True)),
    "messages_follow_the_graph": (TwoHops, claim("shared", communication=[[1], [0, 2], [1]])),
    "state_dicts_are_whole": (Hidden, claim("shared")),
}


@pytest.mark.parametrize("law", CASES)
def test_rejected(law: str) -> None:
    build, stated = CASES[law]
    report = check(build, **stated, laws=[law], examples=4)
    assert report[law].verdict == "violated", report.text(verbose=True)


def test_every_law_of_modules_alone_has_a_wrong_module() -> None:
    alone = {
        law.name
        for law in LAWS.values()
        if issubclass(law.about, Subject) and law.is_about(ModuleSubject) and not law.is_about(NetworkSubject)
    }
    assert alone == set(CASES)
