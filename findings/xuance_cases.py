"""XuanCe's multi-agent policies, with ``use_parameter_sharing=True`` and ``False``, each with that claim.

Its policies take a dict of observations, one entry per network. With shared parameters this is one entry, with the
agents in the batch axis, and one-hot agent ids are a further input; else it is one for each agent. What a joint critic
takes is the same for all agents, so only ids tell them apart: there ``Shared`` adds the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from case import Case, checked
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from xuance.torch.communications.attention_comm import TarMAC
from xuance.torch.communications.comm_net import CommNet
from xuance.torch.communications.ic3net_comm import IC3NetComm
from xuance.torch.policies.categorical_marl import (
    Basic_ISAC_Policy,
    CommNet_Policy,
    IC3Net_Policy,
    MAAC_Policy,
    TarMAC_Policy,
)
from xuance.torch.policies.deterministic_marl import (
    BasicQnetwork,
    Independent_DDPG_Policy,
    Independent_TD3_Policy,
    MADDPG_Policy,
    MATD3_Policy,
)
from xuance.torch.policies.gaussian_marl import Basic_ISAC_Policy as Gaussian_Basic_ISAC_Policy
from xuance.torch.policies.gaussian_marl import MAAC_Policy as Gaussian_MAAC_Policy
from xuance.torch.representations import Basic_MLP, Basic_RNN

N, F, A, H = 3, 6, 2, 8
KEYS = [f"agent_{k}" for k in range(N)]
Call = Callable[..., dict[str, Tensor]]


class Shared(nn.Module):
    """A policy with one network for all agents, as a function of ``[B, n, F]``."""

    def __init__(self, policy: nn.Module, call: Call, joint: bool) -> None:
        super().__init__()
        self.policy, self.call, self.joint = policy, call, joint

    def forward(self, *inputs: Tensor) -> Tensor:
        """``[B, n, F]`` and further inputs per agent, of which the last is the ids, but for joint critics."""
        x = inputs[0]
        ids = torch.eye(N, dtype=x.dtype).expand(len(x), N, N) if self.joint else inputs[-1]
        given = [x.flatten(1) for x in inputs] if self.joint else [{KEYS[0]: x.flatten(0, 1)} for x in inputs[:-1]]
        return self.call(self.policy, *given, agent_ids=ids.flatten(0, 1))[KEYS[0]].unflatten(0, (-1, N))


class Keyed(nn.Module):
    """A policy with a network for each agent, as a function of dicts keyed by agent."""

    def __init__(self, policy: nn.Module, call: Call, joint: bool) -> None:
        super().__init__()
        self.policy, self.call, self.joint = policy, call, joint

    def forward(self, *inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{agent: [B, F]}``; a joint critic gets the inputs of all agents in one row."""
        given = [torch.cat([x[key] for key in KEYS], -1) for x in inputs] if self.joint else inputs
        return self.call(self.policy, *given)


class Talking(nn.Module):
    """A policy whose agents exchange messages, on one step: ``[B, n, F]``, hidden states and ids to logits."""

    def __init__(self, policy: nn.Module, share: bool) -> None:
        super().__init__()
        self.policy, self.share = policy, share

    def forward(self, x: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        """``[B, n, F]``, ``[B, n, H]`` and ``[B, n, n]`` to ``[B, n, A]``."""

        def by_key(leaf: Tensor) -> dict[str, Tensor]:
            if self.share:
                return {KEYS[0]: leaf.flatten(0, 1)[:, None]}
            return {key: leaf[:, k, None] for k, key in enumerate(KEYS)}

        states = {key: (leaf.transpose(0, 1).contiguous(), None) for key, leaf in by_key(hidden).items()}
        alive = {key: x.new_ones(len(x), 1, 1) for key in KEYS}
        own = ids.flatten(0, 1)[:, None] if self.share else None
        dists = self.policy(by_key(x), agent_ids=own, rnn_hidden=states, alive_ally=alive)[1]
        if self.share:
            return dists[KEYS[0]].logits.unflatten(0, (-1, N)).squeeze(2)
        return torch.stack([dists[key].logits.squeeze(1) for key in KEYS], 1)


def _talking(kind: Any, channel: Any, share: bool) -> Talking:
    keys = KEYS[:1] if share else KEYS
    sizes: dict[str, Any] = {"fc_hidden_sizes": [H], "recurrent_hidden_size": H}
    config = SimpleNamespace(use_parameter_sharing=share, gate_hidden_size=[H], use_gate=True, **sizes)

    def recurrent() -> nn.ModuleDict:
        how: dict[str, Any] = {"activation": nn.Tanh, "device": "cpu", "rnn": "GRU", "dropout": 0}
        return nn.ModuleDict({key: Basic_RNN((H,), sizes, N_recurrent_layers=1, **how) for key in keys})

    names: dict[str, Any] = {"model_keys": keys, "agent_keys": KEYS, "n_agents": N}
    talk = nn.ModuleDict(
        {key: channel((F,), sizes, comm_passes=2, device="cpu", config=config, **names) for key in keys}
    )
    policy = kind(
        action_space=dict.fromkeys(keys, Discrete(4)),
        representation_actor=recurrent(),
        representation_critic=recurrent(),
        actor_hidden_size=[H],
        critic_hidden_size=[H],
        activation=nn.Tanh,
        device="cpu",
        use_parameter_sharing=share,
        use_rnn=True,
        rnn="GRU",
        communicator=talk,
        comm_passes=2,
        config=config,
        **names,
    )
    return Talking(policy, share)


def _networks(keys: list[str], inputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({key: Basic_MLP((inputs,), [H], activation=nn.Tanh, device="cpu") for key in keys})


def _of(kind: Any, call: Call, share: bool, space: Any, critic: int = 0, joint: bool = False) -> nn.Module:
    keys = KEYS[:1] if share else KEYS
    how: dict[str, Any] = {
        "action_space": dict.fromkeys(keys, space),
        "n_agents": N,
        "activation": nn.Tanh,
        "device": "cpu",
        "use_parameter_sharing": share,
        "model_keys": keys,
        "use_rnn": False,
        "rnn": None,
    }
    if kind is BasicQnetwork:
        how |= {"representation": _networks(keys, F), "hidden_size": [H]}
    else:
        names = ("representation_actor", "representation_critic")
        names = names if "MAAC" in kind.__name__ else ("actor_representation", "critic_representation")
        how |= dict(zip(names, (_networks(keys, F), _networks(keys, critic or F)), strict=True))
        how |= {"actor_hidden_size": [H], "critic_hidden_size": [H]}
    if kind is Gaussian_Basic_ISAC_Policy:
        how |= {"activation_action": nn.Tanh}
    return (Shared if share else Keyed)(kind(**how), call, joint)


def _second(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return policy(*inputs, **ids)[-1]


def _actions(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return policy(*inputs, **ids)[1]


def _logits(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return {key: dist.logits for key, dist in _second(policy, *inputs, **ids).items()}


def _means(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return {key: dist.mu for key, dist in _second(policy, *inputs, **ids).items()}


def _values(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return policy.get_values(*inputs, **ids)[-1]


def _critic(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return policy.Qpolicy(*inputs, **ids)[-1]


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""
    few, box = Discrete(4), Box(-np.ones(A), np.ones(A))
    parts: list[tuple[str, Any, Call, Any, bool, bool]] = [
        ("values of actions", BasicQnetwork, _second, few, False, False),
        ("actor", MAAC_Policy, _logits, few, False, False),
        ("critic", MAAC_Policy, _values, few, False, False),
        ("actor", Gaussian_MAAC_Policy, _means, box, False, False),
        ("sampled actions", Basic_ISAC_Policy, _actions, few, False, False),
        ("sampled actions", Gaussian_Basic_ISAC_Policy, _actions, box, False, False),
        ("actor", Independent_DDPG_Policy, _second, box, False, False),
        ("critic", Independent_DDPG_Policy, _critic, box, True, False),
        ("actor", Independent_TD3_Policy, _second, box, False, False),
        ("critic", Independent_TD3_Policy, _critic, box, True, False),
        ("critic", MADDPG_Policy, _critic, box, True, True),
        ("critic", MATD3_Policy, _critic, box, True, True),
    ]
    for share in (True, False):
        for part, kind, call, space, actions, joint in parts:
            sizes = [F, *([A] if actions else []), *([N] if share and not joint else [])]
            critic = N * (F + A) if joint else F
            build = lambda kind=kind, call=call, share=share, space=space, critic=critic, joint=joint: _of(  # noqa: E731
                kind, call, share, space, critic, joint
            )
            # With shared parameters an actor is one network: two threads disturb each other only in a race.
            skip = ["threads_agree"] if share and not joint else []
            example: Any = tuple(torch.zeros(2, N, size) for size in sizes)
            if not share:
                example = tuple({key: torch.zeros(2, size) for key in KEYS} for size in sizes)
            how: dict[str, Any] = {
                "n_agents": N,
                "agents": None if share else KEYS,
                "sharing": "shared" if share else "independent",
                "centralized": joint,
                "ids": share and joint,
                "samples": call is _actions,
                "example": example,
                "skip": skip,
            }
            name = f"{'Gaussian ' if 'gaussian' in kind.__module__ else ''}{kind.__name__}"
            yield name, f"{part}, use_parameter_sharing={share}", checked(build, **how)

    talkers = ((CommNet_Policy, CommNet), (IC3Net_Policy, IC3NetComm), (TarMAC_Policy, TarMAC))
    for share in (True, False):
        for kind, channel in talkers:
            build = lambda kind=kind, channel=channel, share=share: _talking(kind, channel, share)  # noqa: E731
            # The gates of IC3Net and TarMAC are drawn, in evaluation too. The actor is one network, as above.
            how = {
                "n_agents": N,
                "sharing": "shared" if share else "independent",
                "communication": True,
                "samples": kind is not CommNet_Policy,
                "example": (torch.zeros(2, N, F), torch.zeros(2, N, H), torch.zeros(2, N, N)),
                "skip": ["threads_agree"] if share else [],
            }
            yield kind.__name__, f"logits, use_parameter_sharing={share}", checked(build, **how)
