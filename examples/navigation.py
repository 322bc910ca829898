"""Navigation: what sharing buys and what it costs, on the smallest task that shows both.

Two VMAS agents see both goals, in the same order, and nothing says whose is whose. PPO trains a team under
three sharings of one and the same network: one slot for all ("shared"), one slot for all with the agent's
index in the input ("shared-ids"), and one slot each ("independent"). The first cannot do better than to
wait between the goals; the other two reach them.

    pip install -e ".[train]"  # once, at the top of the repository
    python examples/navigation.py
    python examples/navigation.py --agents 3 --sharing 0,0,1 --sharing independent --iterations 30

In ``--out`` (default ``runs/navigation``): ``curves.png``, ``metrics.csv`` and, for each sharing,
``rollout_*.png`` and ``parameters_*.safetensors``. Ctrl-C ends early and keeps everything up to there.
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

# Mean episode reward of two agents. But for 0.01 on arrival, an episode's rewards add up to the way made
# towards one's own goal, so nobody can beat the mean distance at the start, 1.08. A policy that cannot tell
# whose goal is whose earns, over the two cases, the mean of the ways made towards both; the best places to be
# are those between the goals, where half the way from goal to goal is still to go: 1.08 - 1.08 / 2 = 0.54.
# Both are expectations: the mean of 60 episodes is off by about 0.04, to either side.
CEILINGS = {"1.08: own goal known": 1.08, "0.54: own goal unknown": 0.54}

Params = dict[str, dict[str, Tensor]]  # {"policy": {"0.weight": [S, out, in], ...}, "critic": {...}}


@dataclass(frozen=True)
class Settings:
    """Sizes of a training: 6,000 frames an iteration, in minibatches of 1,000, ten times over."""

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
    """Networks of one sharing: policy and critic are shared in the same way."""

    policy: fm.Network
    critic: fm.Network
    ids: bool  # whether each agent's index is part of its input


class Rollout(NamedTuple):
    """One episode in each of B environments, n agents, T steps; after its end an episode is not alive."""

    obs: Tensor  # [T + 1, B, n, F]
    values: Tensor  # [T + 1, B, n]
    actions: Tensor  # [T, B, n, 2]
    log_probs: Tensor  # [T, B, n]
    rewards: Tensor  # [T, B, n], zero where not alive
    done: Tensor  # [T, B], the whole team is at its goals
    alive: Tensor  # [T, B]


class Batch(NamedTuple):
    """The N living frames of a rollout, ready for the loss."""

    obs: Tensor  # [N, n, F]
    actions: Tensor  # [N, n, 2]
    log_probs: Tensor  # [N, n]
    advantages: Tensor  # [N, n]
    returns: Tensor  # [N, n]


def make_env(settings: Settings) -> Any:
    """Real VMAS navigation: each agent is paid for its own way, and sees every goal but no other agent."""
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
    inputs = 4 + 2 * agents + ids * agents  # position, velocity, the way from each goal, perhaps the index

    # The critic sees what its agent sees, not the joint input: rewards are each agent's own, and one shared
    # critic of the joint input would have to give all agents one value.
    policy = fm.network(partial(mlp, inputs, 4), n_agents=agents, sharing=slots)
    critic = fm.network(partial(mlp, inputs, 1), n_agents=agents, sharing=slots)
    return Team(policy, critic, ids)


def init_team(team: Team, key: Tensor) -> Params:
    """Fresh parameters, as leaves for the optimizer."""
    keys = fm.split(key, 2)
    params = {"policy": fm.init_params(team.policy, keys[0]), "critic": fm.init_params(team.critic, keys[1])}
    return {part: {name: leaf.requires_grad_() for name, leaf in tree.items()} for part, tree in params.items()}


def act(team: Team, params: Params, obs: Tensor) -> Normal:
    """Distribution over each agent's action, ``[*B, n, 2]``; the environment clamps what is drawn from it."""
    x = fm.with_agent_ids(obs) if team.ids else obs
    mean, log_std = fm.apply(team.policy, params["policy"], x).chunk(2, dim=-1)
    return Normal(mean, log_std.clamp(-4, 1).exp(), validate_args=False)


def judge(team: Team, params: Params, obs: Tensor) -> Tensor:
    """Value of each agent's own observation, ``[*B, n]``."""
    x = fm.with_agent_ids(obs) if team.ids else obs
    return fm.apply(team.critic, params["critic"], x).squeeze(-1)


@torch.no_grad()
def rollout(env: Any, team: Team, params: Params, steps: int, seed: int, noise: torch.Generator | None) -> Rollout:
    """Play one episode in each environment; without ``noise`` the mean action is played.

    All VMAS environments of a process draw from one stream, and only when they are reset. Seeding each reset
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
    """Living frames and their advantages, normalized agent by agent: none sets another's scale."""
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
    """Step ``params`` through the batch ``epochs`` times, in place, and give the mean losses.

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
    """Train ``params`` in place and give the metrics of each iteration; every draw comes from ``key``."""
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
        reward = played.rewards.sum(0).mean().item()  # an episode's sum, mean over environments and agents
        seconds = time.perf_counter() - began
        yield {"iteration": iteration, "frames": frames, "reward": reward, **losses, "seconds": seconds}


def as_seed(key: Tensor) -> int:
    """Seed below 2**32, which torch and numpy (so VMAS) both take."""
    return int(key[0]) % 2**32


def save_params(path: Path, sharing: str, params: Params) -> None:
    """Write ``{"policy/0.weight": [S, out, in], ...}`` as safetensors, which load without pickle."""
    flat = {f"{part}/{name}": leaf.detach() for part, tree in params.items() for name, leaf in tree.items()}
    with replacing(path) as part:
        part.write_bytes(save(flat, metadata={"sharing": sharing}))


def show(path: Path, sharing: str, team: Team, params: Params, settings: Settings, seed: int) -> float:
    """Draw mean actions in six episodes, the same for every sharing; give the mean reward over 600."""
    env = make_env(replace(settings, envs=600))
    played = rollout(env, team, params, settings.steps, seed, noise=None)
    rewards = played.rewards.sum(0).mean(-1)
    positions, ways = played.obs[..., :2], played.obs[0, :, 0, 4:].reshape(600, -1, 2)
    goals = positions[0, :, :1] - ways  # an observation holds the way from each goal
    title = f"{sharing}: mean reward {rewards.mean():.2f} over 600 episodes, six of them here"
    draw_rollout(path, title, positions[:, :6], goals[:6], played.alive[:, :6].sum(0), rewards[:6])
    return rewards.mean().item()


def run(sharings: Sequence[str], settings: Settings, seed: int, out: Path) -> int:
    """Train under each sharing in turn, leave all files in ``out``, and give the exit code."""
    ceilings = CEILINGS if settings.agents == 2 else {}
    curves: dict[str, list[tuple[float, float]]] = {}
    fields = ["sharing", "iteration", "frames", "reward", "policy_loss", "value_loss", "entropy", "seconds"]
    with open(out / "metrics.csv", "w", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        try:
            for sharing in sharings:
                # The key depends on the seed and the sharing's name, not on what was trained before.
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
            print(f"interrupted; what was written so far is in {out}")
            return 130
        finally:
            draw_curves(out / "curves.png", curves, ceilings)
    print(f"curves, metrics, parameters and pictures are in {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and give the exit code."""
    options = parse_options(argv, description=__doc__, iterations=Settings.iterations)
    torch.set_num_threads(1)  # faster for small networks, and no curve depends on the number of cores
    settings = Settings(agents=options.agents, iterations=options.iterations)
    return run(options.sharing, settings, options.seed, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
