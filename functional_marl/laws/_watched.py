"""Networks whose modules run an action of a law in the middle of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from functional_marl.laws._network_subject import NetworkSubject

__all__ = ["AFTER", "BEFORE", "Trip", "trip", "watched"]


class Trip(Exception):
    """Raised from inside a module."""


# What the module of a subject does before and after its forward, armed by one law at a time. Plain functions
# and a plain list: a deepcopy of the module keeps them.
BEFORE: list[Callable[[], None]] = []
AFTER: list[Callable[[], None]] = []


def _run_before(module: nn.Module, inputs: Any) -> None:
    for act in tuple(BEFORE):
        act()


def _run_after(module: nn.Module, inputs: Any, output: Any) -> None:
    for act in tuple(AFTER):
        act()


class _Watched:
    """A factory whose modules run ``BEFORE`` and ``AFTER``."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build

    def __call__(self) -> nn.Module:
        module = self.build()
        module.register_forward_pre_hook(_run_before)
        module.register_forward_hook(_run_after)
        return module


def watched(s: NetworkSubject) -> NetworkSubject:
    """The same subject, where the module runs what is armed."""
    settings = ("n_agents", "centralized", "agent_dim", "out_agent_dim", "randomness", "strategy")
    given = {name: getattr(s.net, name) for name in settings}
    assert s.build is not None
    net = s.ops.network(_Watched(s.build), sharing=s.net.sharing_spec, example=s.net.module_spec.example, **given)
    return replace(s, net=net)


def trip() -> None:
    raise Trip
