"""The multi-agent networks of torchrl, built as users build them, each with the claims that torchrl makes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from case import Case, checked
from torch import Tensor, nn
from torchrl.envs.utils import MarlGroupMapType
from torchrl.modules import MultiAgentConvNet, MultiAgentMLP, QMixer, VDNMixer
from torchrl.modules.models.multiagent import MultiAgentNetBase

from functional_marl.laws import Report, check_grouping

N = 3


class Attention(nn.Module):
    """Self-attention over tokens: ``[*B, T, 8] -> [*B, T, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Each token sees the tokens of its own set."""
        return x + self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """Two layers with one weight: ``[*B, 6] -> [*B, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """The weight is used twice."""
        return self.second(torch.tanh(self.first(x)))


class Bare(nn.Module):
    """A parameter created in ``__init__``, such as a log standard deviation: ``[*B, 6] -> [*B, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bare = nn.Linear(6, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """No ``reset_parameters`` resets ``bare``."""
        return self.layer(x) + self.bare


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def _subclass(build: Callable[[], nn.Module], agent_dim: int) -> Callable[..., nn.Module]:
    """A subclass of torchrl's base class with this network for each agent."""

    class Net(MultiAgentNetBase):
        def __init__(self, **how: Any) -> None:
            super().__init__(n_agents=3, centralized=False, agent_dim=agent_dim, device=None, **how)

        def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
            return build()

        def _pre_forward_check(self, inputs: Tensor) -> Tensor:
            return inputs

    return Net


def _checked(build: Callable[[], nn.Module], *shape: int, skip: Sequence[str] = (), **how: Any) -> Callable[[], Report]:
    return checked(build, torch.zeros(shape), n_agents=N, skip=skip, **how)


def _sharings() -> Iterator[tuple[str, dict[str, Any]]]:
    for share, td in itertools.product((True, False), (True, False)):
        yield (
            f"share_params={share}{'' if td else ', use_td_params=False'}",
            {"share_params": share, "use_td_params": td},
        )


def _unchecked(how: dict[str, Any]) -> list[str]:
    """Laws to leave out. Shared parameters in the template are swapped with themselves: only a rare race shows it."""
    return ["threads_agree"] if how["share_params"] and not how["use_td_params"] else []


def _mlp(how: dict[str, Any], inputs: int | None, **more: Any) -> Callable[[], nn.Module]:
    return lambda: MultiAgentMLP(inputs, 2, 3, depth=1, num_cells=16, **how, **more)


def _cnn(how: dict[str, Any], inputs: int | None) -> Callable[[], nn.Module]:
    return lambda: MultiAgentConvNet(3, in_features=inputs, num_cells=[4, 3], kernel_sizes=3, **how)


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""
    for (shown, how), joint in itertools.product(_sharings(), (False, True)):
        words = f"{shown}{', centralized' if joint else ''}"
        how = {**how, "centralized": joint}
        mlp, cnn = partial(_mlp, how), partial(_cnn, how)
        # By a comment in torchrl, a shared network of a joint input is called once for all agents. So agents have one
        # dropout mask under every vmap_randomness by intention.
        skip = _unchecked(how)
        once = [*skip, "randomness_has_one_meaning"] if joint and how["share_params"] else skip
        yield "MultiAgentMLP", words, _checked(mlp(6), 4, 3, 6, skip=skip)
        yield "MultiAgentMLP", f"{words}, lazy", _checked(mlp(None), 4, 3, 6, skip=skip)
        for mode in ("different", "same", "error"):
            about = f"{words}, dropout, vmap_randomness={mode!r}"
            left = once if mode == "different" else skip
            yield (
                "MultiAgentMLP",
                about,
                _checked(mlp(6, dropout=0.5, vmap_randomness=mode), 4, 3, 6, skip=left),
            )
        yield "MultiAgentMLP", f"{words}, dropout, lazy", _checked(mlp(None, dropout=0.5), 4, 3, 6, skip=once)
        yield "MultiAgentConvNet", words, _checked(cnn(2), 4, 3, 2, 9, 9, skip=skip)
        yield "MultiAgentConvNet", f"{words}, lazy", _checked(cnn(None), 4, 3, 2, 9, 9, skip=skip)
    for shown, how in _sharings():
        for name, build, agent_dim, shape in (
            ("subclass with BatchNorm1d", _normed, -2, (4, 3, 6)),
            ("subclass with attention", Attention, -3, (4, 3, 5, 8)),
            ("subclass with a tied weight", Tied, -2, (4, 3, 6)),
            ("subclass with a bare parameter", Bare, -2, (4, 3, 6)),
        ):
            net = _subclass(build, agent_dim)
            yield (
                "MultiAgentNetBase",
                f"{name}, {shown}",
                _checked(lambda net=net, how=how: net(**how), *shape, skip=_unchecked(how)),
            )
    value, of_all = torch.zeros(4, N, 1), {"n_agents": N, "centralized": True, "out_agent_dim": None}
    yield "VDNMixer", "", checked(lambda: VDNMixer(N, "cpu"), value, **of_all)
    mixer = lambda: QMixer((5,), 8, N, "cpu")  # noqa: E731
    yield "QMixer", "", checked(mixer, (value, torch.zeros(4, 5)), agent_dim=(-2, None), **of_all)
    for kind in MarlGroupMapType:
        yield (
            "MarlGroupMapType",
            kind.name,
            lambda kind=kind: check_grouping(
                kind.get_group_map, ["a", "b", "c"], name=f"MarlGroupMapType.{kind.name}.get_group_map"
            ),
        )
