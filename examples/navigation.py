"""Navigation: the benefits and the costs of sharing, on the smallest task that shows both.

Two VMAS agents see both goals, in the same order. No input tells an agent which goal is its own. PPO trains a team
under three sharings of the same network: one slot for all ("shared"), one slot for all with the agent's index in the
input ("shared-ids"), and one slot each ("independent"). With the first, the best that agents can do is to wait between
the goals; with the other two they reach them.

    pip install -e ".[train]"  # once, at the top of the repository
    python examples/navigation.py
    python examples/navigation.py --agents 3 --sharing 0,0,1 --sharing independent --iterations 30

In ``--out`` (default ``runs/navigation``): ``curves.png``, ``metrics.csv`` and, for each sharing,
``rollout_*.png`` and ``parameters_*.safetensors``. Ctrl-C stops the program and keeps the results so far.
"""

# torch, tqdm and vmas annotate only some of their parameters:
# pyright: reportUnknownMemberType=false

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from zlib import crc32

import torch
import vmas  # pyright: ignore[reportMissingTypeStubs]
from navigation_options import parse_options
from navigation_plots import draw_curves, draw_rollout, replacing
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Adam
from tqdm import tqdm

import functional_marl as fm

# Mean episode reward of two agents. Apart from 0.01 on arrival, the rewards of an episode add up to the distance that
# an agent gained towards its own goal. So the maximum is the mean distance at the start, 1.08. An agent that does not
# know which goal is its own gains, on average over the two cases, the mean of the distances gained towards both goals.
# The best positions are between the goals, where half the distance between the goals is left: 1.08 - 1.08 / 2 = 0.54.
# Both numbers are expectations: the mean of 60 episodes differs from them by about 0.04.
CEILINGS = {"1.08: own goal known": 1.08, "0.54: own goal unknown": 0.54}

Params = dict[str, dict[str, Tensor]]  # {"policy": {"0.weight": [S, out, in], ...}, "critic": {...}}


@dataclass(frozen=True)
class Settings:
    """Sizes of a training run: 6,000 frames per iteration, in minibatches of 1,000, for ten epochs."""

    agents: int = 2
    iterations: int = 20
    envs: int = 60
    steps: int = 100
    epochs: int = 10
    minibatch: int = 1_000
    learning_rate: float = 5e-4
    gamma: float = 0.9
    lam: float = 0.9
    clip: float = 0.2
    entropy_bonus: float = 1e-4


class Team(NamedTuple):
    """The networks of one sharing: policy and critic have the same sharing."""

    policy: fm.Network
    critic: fm.Network
    ids: bool  # whether each agent's index is part of its input


class Rollout(NamedTuple):
    """One episode in each of B environments, n agents, T steps. After the end of an episode ``alive`` is false."""

    obs: Tensor  # [T + 1, B, n, F]
    values: Tensor  # [T + 1, B, n]
    actions: Tensor  # [T, B, n, 2]
    log_probs: Tensor  # [T, B, n]
    rewards: Tensor  # [T, B, n], zero where not alive
    done: Tensor  # [T, B], all agents are at their goals
    alive: Tensor  # [T, B]


class Batch(NamedTuple):
    """The N frames of a rollout in which the episode is alive, ready for the loss."""

    obs: Tensor  # [N, n, F]
    actions: Tensor  # [N, n, 2]
    log_probs: Tensor  # [N, n]
    advantages: Tensor  # [N, n]
    returns: Tensor  # [N, n]


def make_env(settings: Settings) -> Any:
    """VMAS navigation: each agent is rewarded for its own progress, and sees every goal but no other agent."""
    options: Any = {"collisions": False, "observe_all_goals": True, "shared_rew": False}
    return vmas.make_env("navigation", num_envs=settings.envs, n_agents=settings.agents, **options)


def mlp(inputs: int, outputs: int, width: int = 128) -> nn.Module:
    """Network of one agent."""
    hidden = (nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def make_team(sharing: str, agents: int) -> Team:
    """Networks of a team under a named sharing, or under slots such as ``"0,0,1"``."""
    ids = sharing == "shared-ids"
    slots = [int(slot) for slot in sharing.split(",")] if sharing[0].isdigit() else sharing.removesuffix("-ids")
    inputs = 4 + 2 * agents + ids * agents  # position, velocity, offset from each goal, and the index if ids

    # The critic sees its agent's observation, not the joint input: each agent has its own rewards, and a shared critic
    # of the joint input would have to give all agents the same value.
    policy = fm.network(partial(mlp, inputs, 4), n_agents=agents, sharing=slots)
    critic = fm.network(partial(mlp, inputs, 1), n_agents=agents, sharing=slots)
    return Team(policy, critic, ids)


def init_team(team: Team, key: Tensor) -> Params:
    """Initial parameters, as leaves for the optimizer."""
    keys = fm.split(key, 2)
    params = {"policy": fm.init_params(team.policy, keys[0]), "critic": fm.init_params(team.critic, keys[1])}
    return {part: {name: leaf.requires_grad_() for name, leaf in tree.items()} for part, tree in params.items()}


def act(team: Team, params: Params, obs: Tensor) -> Normal:
    """Distribution over each agent's action, ``[*B, n, 2]``; the environment clamps the samples."""
    x = fm.with_agent_ids(obs) if team.ids else obs
    mean, log_std = fm.apply(team.policy, params["policy"], x).chunk(2, dim=-1)
    return Normal(mean, log_std.clamp(-4, 1).exp(), validate_args=False)


def judge(team: Team, params: Params, obs: Tensor) -> Tensor:
    """Value of each agent's own observation, ``[*B, n]``."""
    x = fm.with_agent_ids(obs) if team.ids else obs
    return fm.apply(team.critic, params["critic"], x).squeeze(-1)


@torch.no_grad()
def rollout(env: Any, team: Team, params: Params, steps: int, seed: int, noise: torch.Generator | None) -> Rollout:
    """Play one episode in each environment; without ``noise`` it plays the mean action.

    All VMAS environments of a process use one random stream, and only when they are reset. Seeding each reset
    makes the episodes depend on ``seed`` alone, whatever else ran in the process before.
    """
    obs = torch.stack(env.reset(seed=seed), dim=-2)
    alive = torch.ones(obs.shape[0], dtype=torch.bool)
    seen, frames = [obs], list[tuple[Tensor, ...]]()
    for _ in range(steps):
        policy = act(team, params, obs)
        action = policy.mean if noise is None else torch.normal(policy.mean, policy.stddev, generator=noise)
        next_obs, rewards, done, _ = env.step(list(action.clamp(-1, 1).unbind(-2)))
        reward = torch.stack(rewards, dim=-1) * alive[:, None]
        frames.append((action, policy.log_prob(action).sum(-1), reward, done, alive))
        obs, alive = torch.stack(next_obs, dim=-2), alive & ~done
        seen.append(obs)
    all_obs = torch.stack(seen)
    return Rollout(all_obs, judge(team, params, all_obs), *(torch.stack(x) for x in zip(*frames, strict=True)))


def gae(rewards: Tensor, values: Tensor, done: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al., 2016), each agent's from its own rewards.

    ``rewards: [T, B, n]``, ``values: [T + 1, B, n]``, ``done: [T, B]`` give ``[T, B, n]``. An episode that is
    done is worth nothing more; one that ran out of time is worth its last value.
    """
    going_on = (~done).to(rewards.dtype)[..., None]
    delta = rewards + gamma * going_on * values[1:] - values[:-1]
    advantage, advantages = torch.zeros_like(delta[0]), torch.empty_like(delta)
    for t in reversed(range(len(delta))):
        advantage = delta[t] + gamma * lam * going_on[t] * advantage
        advantages[t] = advantage
    return advantages


def make_batch(played: Rollout, gamma: float, lam: float) -> Batch:
    """The frames that are alive, and their advantages, normalized for each agent separately."""
    advantages = gae(played.rewards, played.values, played.done, gamma, lam)
    returns = advantages + played.values[:-1]
    frames = (played.obs[:-1], played.actions, played.log_probs, advantages, returns)
    batch = Batch(*(x[played.alive] for x in frames))
    mean, std = batch.advantages.mean(0), batch.advantages.std(0, correction=0)
    return batch._replace(advantages=(batch.advantages - mean) / (std + 1e-6))


def ppo_loss(team: Team, params: Params, batch: Batch, clip: float) -> dict[str, Tensor]:
    """Clipped loss of the policy (Schulman et al., 2017), squared error of the critic, and the entropy."""
    policy = act(team, params, batch.obs)
    ratio = (policy.log_prob(batch.actions).sum(-1) - batch.log_probs).exp()
    gain = torch.minimum(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages)
    error = judge(team, params, batch.obs) - batch.returns
    entropy = policy.entropy().sum(-1)
    return {"policy_loss": -gain.mean(), "value_loss": error.square().mean(), "entropy": entropy.mean()}


def update(
    team: Team, params: Params, optimizer: Adam, batch: Batch, settings: Settings, shuffle: torch.Generator
) -> dict[str, float]:
    """Step ``params`` through the batch ``epochs`` times, in place, and return the mean losses.

    Gradients are not clipped by their global norm: that would let one agent's gradient scale another's.
    """
    history: list[dict[str, float]] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(batch.obs), generator=shuffle)
        for index in torch.split(order, settings.minibatch):
            losses = ppo_loss(team, params, Batch(*(x[index] for x in batch)), settings.clip)
            total = losses["policy_loss"] + losses["value_loss"] - settings.entropy_bonus * losses["entropy"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    return {name: fmean(losses[name] for losses in history) for name in history[0]}


def train(team: Team, params: Params, settings: Settings, key: Tensor) -> Iterator[dict[str, float]]:
    """Train ``params`` in place and yield the metrics of each iteration; all random numbers come from ``key``."""
    env = make_env(settings)
    optimizer = Adam([leaf for tree in params.values() for leaf in tree.values()], lr=settings.learning_rate)
    episode_key, generator_key = fm.split(key, 2)
    generator = torch.Generator().manual_seed(as_seed(generator_key))
    for iteration in range(1, settings.iterations + 1):
        began = time.perf_counter()
        seed = as_seed(fm.fold_in(episode_key, iteration))
        played = rollout(env, team, params, settings.steps, seed, generator)
        batch = make_batch(played, settings.gamma, settings.lam)
        losses = update(team, params, optimizer, batch, settings, generator)
        frames = iteration * settings.envs * settings.steps
        reward = played.rewards.sum(0).mean().item()  # sum over an episode, mean over environments and agents
        seconds = time.perf_counter() - began
        yield {"iteration": iteration, "frames": frames, "reward": reward, **losses, "seconds": seconds}


def as_seed(key: Tensor) -> int:
    """A seed below 2**32, which torch and numpy (and so VMAS) accept."""
    return int(key[0]) % 2**32


def save_params(path: Path, sharing: str, params: Params) -> None:
    """Write ``{"policy/0.weight": [S, out, in], ...}`` as safetensors, which load without pickle."""
    flat = {f"{part}/{name}": leaf.detach() for part, tree in params.items() for name, leaf in tree.items()}
    with replacing(path) as part:
        part.write_bytes(save(flat, metadata={"sharing": sharing}))


def show(path: Path, sharing: str, team: Team, params: Params, settings: Settings, seed: int) -> float:
    """Draw a picture of six episodes with mean actions, the same for every sharing; return the mean reward of 600."""
    env = make_env(replace(settings, envs=600))
    played = rollout(env, team, params, settings.steps, seed, noise=None)
    rewards = played.rewards.sum(0).mean(-1)
    positions, offsets = played.obs[..., :2], played.obs[0, :, 0, 4:].reshape(600, -1, 2)
    goals = positions[0, :, :1] - offsets  # an observation has the offset from each goal
    title = f"{sharing}: mean reward {rewards.mean():.2f} over 600 episodes, six of them here"
    draw_rollout(path, title, positions[:, :6], goals[:6], played.alive[:, :6].sum(0), rewards[:6])
    return rewards.mean().item()


def run(sharings: Sequence[str], settings: Settings, seed: int, out: Path) -> int:
    """Train under each sharing in turn, write all files to ``out``, and return the exit code."""
    ceilings = CEILINGS if settings.agents == 2 else {}
    curves: dict[str, list[tuple[float, float]]] = {}
    fields = ["sharing", "iteration", "frames", "reward", "policy_loss", "value_loss", "entropy", "seconds"]
    with open(out / "metrics.csv", "w", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        try:
            for sharing in sharings:
                # The key depends on the seed and the sharing's name alone, not on earlier training runs.
                init_key, train_key = fm.split(fm.fold_in(fm.key(seed), crc32(sharing.encode())), 2)
                team = make_team(sharing, settings.agents)
                params = init_team(team, init_key)
                name = sharing.replace(",", "-")
                iterations = train(team, params, settings, train_key)
                try:
                    with tqdm(iterations, sharing, settings.iterations, unit="iteration") as bar:
                        for metrics in bar:
                            table.writerow({"sharing": sharing, **metrics})
                            file.flush()
                            curves.setdefault(sharing, []).append((metrics["frames"], metrics["reward"]))
                            bar.set_postfix(reward=f"{metrics['reward']:.2f}")
                finally:
                    save_params(out / f"parameters_{name}.safetensors", sharing, params)
                reward = show(out / f"rollout_{name}.png", sharing, team, params, settings, seed)
                print(f"{sharing}: mean reward {reward:.2f} over 600 new episodes", flush=True)
        except KeyboardInterrupt:
            print(f"interrupted; the results so far are in {out}")
            return 130
        finally:
            draw_curves(out / "curves.png", curves, ceilings)
    print(f"curves, metrics, parameters and pictures are in {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    options = parse_options(argv, description=__doc__, iterations=Settings.iterations)
    torch.set_num_threads(1)  # faster for small networks, and the curves do not depend on the number of cores
    settings = Settings(agents=options.agents, iterations=options.iterations)
    return run(options.sharing, settings, options.seed, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
