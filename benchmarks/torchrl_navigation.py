"""The navigation demo's training iteration with torchrl's collector, PPO loss and buffer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import MultiAgentMLP, ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss, ValueEstimators

__all__ = ["iterations"]


def iterations(settings: Any) -> Iterator[float]:
    """One training iteration a ``next``: the same frames, epochs, minibatches and widths as the demo's.

    After torchrl's tutorial "Multi-Agent Reinforcement Learning (PPO) with TorchRL".
    """
    env: Any = TransformedEnv(
        VmasEnv(
            scenario="navigation",
            num_envs=settings.envs,
            continuous_actions=True,
            max_steps=settings.steps,
            n_agents=settings.agents,
            collisions=False,
            observe_all_goals=True,
            shared_rew=False,
        ),
        RewardSum(in_keys=[("agents", "reward")], out_keys=[("agents", "episode_reward")]),
    )
    inputs = env.observation_spec["agents", "observation"].shape[-1]

    def mlp(outputs: int) -> nn.Module:
        return MultiAgentMLP(
            inputs, outputs, settings.agents, centralized=False, share_params=False, depth=2, num_cells=128
        )

    parameters = TensorDictModule(
        nn.Sequential(mlp(4), NormalParamExtractor()),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "loc"), ("agents", "scale")],
    )
    policy = ProbabilisticActor(
        parameters,
        spec=env.full_action_spec_unbatched,
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[env.action_key],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0},
        return_log_prob=True,
    )
    critic = TensorDictModule(mlp(1), in_keys=[("agents", "observation")], out_keys=[("agents", "state_value")])
    frames = settings.envs * settings.steps
    collector = Collector(env, policy, frames_per_batch=frames, total_frames=-1)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=settings.minibatch
    )
    loss = ClipPPOLoss(
        policy, critic, clip_epsilon=settings.clip, entropy_coeff=settings.entropy_bonus, normalize_advantage=False
    )
    loss.set_keys(
        reward=env.reward_key,
        action=env.action_key,
        value=("agents", "state_value"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=settings.gamma, lmbda=settings.lam)
    optimizer = torch.optim.Adam(loss.parameters(), settings.learning_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in collector:
            yield _update(loss, optimizer, buffer, data, settings)


def _update(loss: Any, optimizer: torch.optim.Optimizer, buffer: Any, data: Any, settings: Any) -> float:
    shape = data["next", "agents", "reward"].shape
    for flag in ("done", "terminated"):  # one per agent, like the rewards
        data["next", "agents", flag] = data["next", flag].unsqueeze(-1).expand(shape)
    with torch.no_grad():
        loss.value_estimator(data, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
    buffer.empty()
    buffer.extend(data.reshape(-1))
    total = torch.zeros(())
    for _ in range(settings.epochs):
        for _ in range(-(-len(buffer) // settings.minibatch)):
            losses = loss(buffer.sample())
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return total.item()
