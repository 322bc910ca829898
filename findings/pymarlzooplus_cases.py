"""PyMARLzoo+ (EPyMARL's networks and more): agents and critics that document which parameters agents share.

Its names end in NS where agents do not share. Such classes keep a list of one-agent networks. Some critics keep a plain
list, in which PyTorch finds no parameters: for these the wrapper registers the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from case import Case, checked
from pymarlzooplus.modules.agents import RNNAgentCDS, RNNNSAgent
from pymarlzooplus.modules.critics import ACCriticNS, CentralVCriticNS, COMACriticNS, MADDPGCriticNS, MATCritic
from torch import Tensor, nn

N, F, A, H = 3, 6, 4, 8


class Batch(dict[str, Any]):
    """The part of an episode batch that critics read: entries ``[B, T, ...]`` and the two sizes."""

    device = "cpu"

    def __init__(self, **entries: Tensor) -> None:
        self.batch_size, self.max_seq_length = next(iter(entries.values())).shape[:2]
        super().__init__(entries, batch_size=self.batch_size, max_seq_length=self.max_seq_length, device=self.device)


def _args(**more: Any) -> SimpleNamespace:
    usual = {
        "name": "qmix",
        "n_agents": N,
        "n_actions": A,
        "hidden_dim": H,
        "use_rnn": True,
        "obs_agent_id": False,
        "obs_last_action": False,
        "obs_individual_obs": False,
        "cnn_features_dim": 8,
        "critic_type": "",
    }
    return SimpleNamespace(**usual | more)


SCHEME = {"obs": {"vshape": F}, "state": {"vshape": 5}, "actions_onehot": {"vshape": (A,)}}


class Agents(nn.Module):
    """``RNNNSAgent`` as its controller calls it, with agents and batch in one axis."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.agent = RNNNSAgent(F, _args(**more))

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, n, F]`` and ``[B, n, H]`` to values and hidden states."""
        values, hidden = self.agent(x.reshape(-1, F), hidden)
        return values.reshape(len(x), N, A), hidden


class Critic(nn.Module):
    """A critic, with its list of networks registered, and the batch that it needs."""

    def __init__(self, critic: Any, entries: Callable[..., Any]) -> None:
        super().__init__()
        object.__setattr__(self, "critic", critic)  # its parameters() and state_dict() take no arguments
        self.critics, self.entries = nn.ModuleList(critic.critics), entries

    def forward(self, *inputs: Tensor) -> Tensor:
        """One value per agent: ``[B, T, n, 1]``."""
        critic: Any = self.critic
        critic.critics = list(self.critics)  # so that a copy computes with its own networks
        return critic(*self.entries(*inputs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Critic:
        import copy

        critic: Any = copy.copy(self.critic)
        critic.critics = [copy.deepcopy(net, memo) for net in self.critics]
        return Critic(critic, self.entries)


class Mat(nn.Module):
    """``MATCritic`` on one step."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = MATCritic(SCHEME, _args(n_block=1, n_embd=H, n_head=2))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """``[B, n, F]`` and ``[B, n, A]`` to ``[B, n, 1]``."""
        return self.critic(Batch(obs=obs[:, None], actions_onehot=actions[:, None]))


class Cds(nn.Module):
    """``RNNAgentCDS`` over time: the sum of a network that all agents share and of each agent's own head."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = RNNAgentCDS(F, _args())

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, T, F] -> [B, T, n, A]``."""
        return self.agent(x, torch.zeros(1, len(x) * N, H))[0]


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""

    def of(build: Callable[[], nn.Module], *shapes: tuple[int, ...], **how: Any) -> Any:
        return checked(build, tuple(torch.zeros(shape) for shape in shapes), n_agents=N, **how)

    alone: dict[str, Any] = {"sharing": "independent"}
    for rnn in (True, False):
        build = lambda rnn=rnn: Agents(use_rnn=rnn)  # noqa: E731
        yield "RNNNSAgent", f"use_rnn={rnn}", of(build, (2, N, F), (2, N, H), **alone)
    steps: dict[str, Any] = {"agent_dim": 2, **alone}
    build = lambda: Critic(ACCriticNS(SCHEME, _args()), lambda obs: (Batch(obs=obs),))  # noqa: E731
    yield "ACCriticNS", "", of(build, (2, 3, N, F), **steps)
    build = lambda: Critic(MADDPGCriticNS(SCHEME, _args()), lambda x, a: (x, a))  # noqa: E731
    yield "MADDPGCriticNS", "", of(build, (2, 3, N, 5), (2, 3, N, N * A), **steps)
    state: dict[str, Any] = {"agent_dim": (2, None), "centralized": True, "out_agent_dim": 2, **alone}
    build = lambda: Critic(  # noqa: E731
        COMACriticNS(SCHEME, _args()), lambda actions, state: (Batch(actions_onehot=actions, state=state),)
    )
    yield "COMACriticNS", "", of(build, (2, 3, N, A), (2, 3, 5), **state)
    build = lambda: Critic(  # noqa: E731
        CentralVCriticNS(SCHEME, _args()), lambda actions, state: (Batch(actions_onehot=actions, state=state),)
    )
    yield "CentralVCriticNS", "", of(build, (2, 3, N, A), (2, 3, 5), **state)
    # Each agent sees the actions of all, its own as zeros: that place tells the agents apart.
    places: dict[str, Any] = {"sharing": "shared", "communication": True, "ids": True}
    yield "MATCritic", "", of(Mat, (2, N, F), (2, N, A), **places)
    heads = {"agent.mlp.*": "independent", "*": "shared"}
    yield "RNNAgentCDS", "", of(Cds, (2, N, 4, F), agent_dim=1, out_agent_dim=2, sharing=heads)
