"""XuanCe's multi-agent policies, with ``use_parameter_sharing=True`` and ``False``, each with that claim.

Its policies take a dict of observations, one entry per network. With shared parameters this is one entry, with the
agents in the batch axis, and one-hot agent ids are a further input. ``Wrapped`` calls the policies as XuanCe's agents
do. What a joint critic takes is the same for all agents, so only ids tell them apart: there the wrapper adds the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from case import Case, checked
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from xuance.torch.policies.categorical_marl import MAAC_Policy
from xuance.torch.policies.deterministic_marl import (
    BasicQnetwork,
    Independent_DDPG_Policy,
    Independent_TD3_Policy,
    MADDPG_Policy,
    MATD3_Policy,
)
from xuance.torch.policies.gaussian_marl import MAAC_Policy as Gaussian_MAAC_Policy
from xuance.torch.representations import Basic_MLP

N, F, A, H = 3, 6, 2, 8
KEYS = [f"agent_{k}" for k in range(N)]
Call = Callable[..., dict[str, Tensor]]


class Wrapped(nn.Module):
    """A policy of XuanCe as a function of ``[B, n, F]``; ``call`` selects the output that is checked."""

    def __init__(self, policy: nn.Module, call: Call, share: bool, joint: bool) -> None:
        super().__init__()
        self.policy, self.call, self.share, self.joint = policy, call, share, joint

    def _by_key(self, x: Tensor) -> dict[str, Tensor]:
        return {KEYS[0]: x.flatten(0, 1)} if self.share else {key: x[:, k] for k, key in enumerate(KEYS)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """``[B, n, F]`` and further inputs per agent. Shared actors and critics of one agent's inputs get ids last."""
        ids, given = {}, inputs
        if self.share:
            x = inputs[0]
            own = torch.eye(N, dtype=x.dtype).expand(len(x), N, N) if self.joint else inputs[-1]
            ids, given = {"agent_ids": own.flatten(0, 1)}, inputs if self.joint else inputs[:-1]
        outputs = self.call(self.policy, *(x.flatten(1) if self.joint else self._by_key(x) for x in given), **ids)
        if self.share:
            return outputs[KEYS[0]].unflatten(0, (-1, N))
        return torch.stack([outputs[key] for key in KEYS], 1)


def _networks(keys: list[str], inputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({key: Basic_MLP((inputs,), [H], activation=nn.Tanh, device="cpu") for key in keys})


def _of(kind: Any, call: Call, share: bool, space: Any, critic: int = 0, joint: bool = False) -> Wrapped:
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
    return Wrapped(kind(**how), call, share, joint)


def _second(policy: Any, *inputs: Any, **ids: Any) -> dict[str, Tensor]:
    return policy(*inputs, **ids)[-1]


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
            how: dict[str, Any] = {
                "n_agents": N,
                "sharing": "shared" if share else "independent",
                "centralized": joint,
                "ids": share and joint,
                "example": tuple(torch.zeros(2, N, size) for size in sizes),
                "skip": skip,
            }
            name = f"{'Gaussian ' if kind is Gaussian_MAAC_Policy else ''}{kind.__name__}"
            yield name, f"{part}, use_parameter_sharing={share}", checked(build, **how)
