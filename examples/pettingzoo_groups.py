"""Predators and prey of PettingZoo: one network per group, each group with its own sharing.

In ``simple_tag`` of MPE three slower predators, the group ``adversary``, are rewarded for each touch of two faster
prey, the group ``agent``, which lose the same reward. A group map contains the agents of each group. The predators have
the same observations and the same task, so all three share one set of parameters ("shared"); each prey has its own
("independent"). Both groups learn at the same time, by PPO with pure functions. At the end trained and untrained groups
play against each other: parameters are values, so they can be combined freely.

    pip install -e ".[train]"  # once, at the top of the repository
    python examples/pettingzoo_groups.py
    python examples/pettingzoo_groups.py --iterations 20 --seed 1

In ``--out`` (default ``runs/pettingzoo_groups``): ``curves.png`` and ``metrics.csv``. Ctrl-C stops
the program and keeps the results so far. The task is from Lowe et al., "Multi-Agent Actor-Critic for Mixed
Cooperative-Competitive Environments" (2017), in the package ``mpe2``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from mpe2 import simple_tag_v3  # pyright: ignore[reportMissingTypeStubs]
from navigation_plots import COLORS, save
from running import make_axes, make_parser, parse, writing
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam
from tqdm import tqdm

import functional_marl as fm

SHARINGS = {"adversary": "shared", "agent": "independent"}

Groups = Mapping[str, Sequence[str]]  # group -> its agents
Nets = Mapping[str, fm.Network]
Params = dict[str, dict[str, Tensor]]  # group -> {"0.weight": [S, out, in], ...}


@dataclass(frozen=True)
class Settings:
    """Sizes of a training run: 800 frames per iteration, in minibatches of 200, for four epochs."""

    iterations: int = 60
    envs: int = 32
    steps: int = 25
    epochs: int = 4
    minibatch: int = 200
    width: int = 64
    learning_rate: float = 3e-3
    gamma: float = 0.95
    lam: float = 0.9
    clip: float = 0.2
    entropy_bonus: float = 1e-2
    reward_scale: float = 0.1  # the reward of a touch is ten


class Rollout(NamedTuple):
    """One episode in each of B environments, T steps long, for a group of n agents."""

    obs: Tensor  # [T, B, n, F]
    actions: Tensor  # [T, B, n]
    log_probs: Tensor  # [T, B, n]
    values: Tensor  # [T + 1, B, n]
    rewards: Tensor  # [T, B, n]


class Batch(NamedTuple):
    """N frames of a group, ready for the loss."""

    obs: Tensor  # [N, n, F]
    actions: Tensor  # [N, n]
    log_probs: Tensor  # [N, n]
    advantages: Tensor  # [N, n]
    returns: Tensor  # [N, n]


def make_envs(settings: Settings) -> list[Any]:
    """Parallel environments, stepped one after the other. All episodes have ``steps`` steps."""
    options: Any = {"num_good": 2, "num_adversaries": 3, "max_cycles": settings.steps}
    return [simple_tag_v3.parallel_env(**options) for _ in range(settings.envs)]


def mlp(inputs: int, outputs: int, width: int) -> nn.Module:
    """The network of one agent: the logits of its actions, and its value as the last output."""
    hidden = (nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(width, outputs + 1))


def make_nets(env: Any, groups: Groups, width: int) -> dict[str, fm.Network]:
    """One network per group, with the sizes of its first agent's spaces."""
    nets: dict[str, fm.Network] = {}
    for group, members in groups.items():
        inputs, actions = env.observation_space(members[0]).shape[0], int(env.action_space(members[0]).n)
        factory = partial(mlp, inputs, actions, width)
        nets[group] = fm.network(factory, n_agents=len(members), sharing=SHARINGS[group])
    return nets


def init_groups(nets: Nets, key: Tensor) -> Params:
    """Initial parameters of all groups."""
    return {group: fm.init_params(net, fm.fold_in(key, i)) for i, (group, net) in enumerate(nets.items())}


def split(output: Tensor) -> tuple[Categorical, Tensor]:
    """Output ``[*B, n, A + 1]`` of a group: the agents' policies over ``A`` actions, and values ``[*B, n]``."""
    return Categorical(logits=output[..., :-1], validate_args=False), output[..., -1]


def stack(per_env: Sequence[Mapping[str, Any]], agents: Sequence[str]) -> dict[str, Tensor]:
    """The values that each environment returns for each agent, as one tensor ``[B, ...]`` per agent."""
    return {agent: torch.stack([torch.as_tensor(values[agent]) for values in per_env]) for agent in agents}


@torch.no_grad()
def rollout(envs: Sequence[Any], groups: Groups, nets: Nets, params: Params, noise: torch.Generator) -> Any:
    """Play one episode in each environment: ``{group: Rollout}``."""
    agents = [agent for members in groups.values() for agent in members]
    seeds = torch.randint(2**31, (len(envs),), generator=noise).tolist()
    observed = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    frames: dict[str, list[tuple[Tensor, ...]]] = {group: [] for group in groups}
    while True:
        # {agent: [B, F]} -> {group: [B, n, F]}
        obs: Any = fm.group_agents(groups, stack(observed, agents), batch_dims=1)
        heads = {group: split(out) for group, out in fm.apply_groups(nets, params, obs).items()}
        if not envs[0].agents:  # all episodes end at the same step
            break
        actions = {group: sample(policy.probs, noise) for group, (policy, _) in heads.items()}
        # {group: [B, n]} -> {agent: [B]}
        moves: Any = fm.ungroup_agents(groups, actions, batch_dims=1)
        moves = {agent: move.tolist() for agent, move in moves.items()}
        steps = [env.step({agent: moves[agent][b] for agent in agents}) for b, env in enumerate(envs)]
        observed = [step[0] for step in steps]
        paid = [{agent: float(step[1][agent]) for agent in agents} for step in steps]
        rewards: Any = fm.group_agents(groups, stack(paid, agents), batch_dims=1)
        for group, (policy, values) in heads.items():
            chosen = policy.log_prob(actions[group])
            frames[group].append((obs[group], actions[group], chosen, values, rewards[group]))
    played: dict[str, Rollout] = {}
    for group, rows in frames.items():
        seen, chosen, log_probs, values, rewards = zip(*rows, strict=True)
        last = heads[group][1]
        parts = (seen, chosen, log_probs, (*values, last), rewards)
        played[group] = Rollout(*(torch.stack(part) for part in parts))
    return played


def sample(probs: Any, noise: torch.Generator) -> Tensor:
    """Actions ``[*B, n]``, sampled with the probabilities ``[*B, n, A]``."""
    return torch.multinomial(probs.flatten(0, -2), 1, generator=noise).view(probs.shape[:-1])


def make_batch(played: Rollout, settings: Settings) -> Batch:
    """Generalized advantages (Schulman et al., 2016), each agent's from its own rewards, normalized by agent.

    Episodes end by running out of time, so each is worth its last value beyond the end.
    """
    rewards, values = settings.reward_scale * played.rewards, played.values
    delta = rewards + settings.gamma * values[1:] - values[:-1]
    advantage, advantages = torch.zeros_like(delta[0]), torch.empty_like(delta)
    for t in reversed(range(len(delta))):
        advantage = delta[t] + settings.gamma * settings.lam * advantage
        advantages[t] = advantage
    returns = advantages + values[:-1]
    frames = (played.obs, played.actions, played.log_probs, advantages, returns)
    batch = Batch(*(x.flatten(0, 1) for x in frames))
    mean, std = batch.advantages.mean(0), batch.advantages.std(0, correction=0)
    return batch._replace(advantages=(batch.advantages - mean) / (std + 1e-6))


def ppo_loss(output: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """Clipped loss of a group's policies (Schulman et al., 2017), with values and entropy."""
    policy, values = split(output)
    ratio = (policy.log_prob(batch.actions) - batch.log_probs).exp()
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    error = nn.functional.smooth_l1_loss(values, batch.returns)
    return error - gain.mean() - settings.entropy_bonus * policy.entropy().mean()


def update(
    nets: Nets,
    params: Params,
    optimizer: Adam,
    batches: Mapping[str, Batch],
    settings: Settings,
    noise: torch.Generator,
) -> dict[str, float]:
    """Step ``params`` through the batches ``epochs`` times, in place, and return each group's mean loss.

    The groups share neither parameters nor losses: the sum of their losses trains each on its own.
    """
    history: dict[str, list[float]] = {group: [] for group in nets}
    frames = len(next(iter(batches.values())).obs)
    for _ in range(settings.epochs):
        for index in torch.randperm(frames, generator=noise).split(settings.minibatch):
            parts = {group: Batch(*(x[index] for x in batch)) for group, batch in batches.items()}
            outputs = fm.apply_groups(nets, params, {group: part.obs for group, part in parts.items()})
            losses = {group: ppo_loss(outputs[group], part, settings) for group, part in parts.items()}
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            for group, loss in losses.items():
                history[group].append(loss.item())
    return {group: fmean(losses) for group, losses in history.items()}


def episode_rewards(played: Mapping[str, Rollout]) -> dict[str, float]:
    """Each group's mean reward of an episode, over environments and agents."""
    return {group: part.rewards.sum(0).mean().item() for group, part in played.items()}


def train(
    envs: Sequence[Any], groups: Groups, nets: Nets, params: Params, settings: Settings, noise: torch.Generator
) -> Iterator[dict[str, float]]:
    """Train ``params`` in place and yield the metrics of each iteration."""
    leaves = [leaf.requires_grad_() for tree in params.values() for leaf in tree.values()]
    optimizer = Adam(leaves, lr=settings.learning_rate)
    for iteration in range(1, settings.iterations + 1):
        played = rollout(envs, groups, nets, params, noise)
        batches = {group: make_batch(part, settings) for group, part in played.items()}
        losses = update(nets, params, optimizer, batches, settings, noise)
        metrics: dict[str, float] = {"iteration": iteration, "frames": iteration * settings.envs * settings.steps}
        metrics |= {f"{group}_reward": reward for group, reward in episode_rewards(played).items()}
        yield metrics | {f"{group}_loss": loss for group, loss in losses.items()}


def matches(
    envs: Sequence[Any], groups: Groups, nets: Nets, untrained: Params, trained: Params, seed: int
) -> dict[str, dict[str, float]]:
    """Mean episode rewards of trained against untrained groups, in the same 4 B episodes."""
    found: dict[str, dict[str, float]] = {}
    sides = {"untrained": untrained, "trained": trained}
    for one in sides:
        for other in sides:
            params = {"adversary": sides[one]["adversary"], "agent": sides[other]["agent"]}
            noise = torch.Generator().manual_seed(seed)
            games = [episode_rewards(rollout(envs, groups, nets, params, noise)) for _ in range(4)]
            means = {group: fmean(game[group] for game in games) for group in groups}
            found[f"{one} predators, {other} prey:"] = means
    return found


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Each group's mean episode reward against frames, as it is (pale) and over the last eight iterations."""
    title = "PettingZoo simple_tag: two groups learn against each other"
    figure, axes = make_axes(title, "mean episode reward of an agent")
    names = {"adversary": "predators (shared)", "agent": "prey (independent)"}
    for color, (group, name) in zip((COLORS[1], COLORS[0]), names.items(), strict=True):
        frames = [metrics["frames"] for metrics in history]
        rewards = [metrics[f"{group}_reward"] for metrics in history]
        smooth = [fmean(rewards[max(0, i - 7) : i + 1]) for i in range(len(rewards))]
        axes.plot(frames, rewards, color=color, alpha=0.35, linewidth=1.3, marker="o", markersize=3.5)
        axes.plot(frames, smooth, color=color, linewidth=2.6, label=name)
    axes.axhline(0, color="#777777", linewidth=1, zorder=1)
    axes.legend(loc="upper left", fontsize=11, frameon=False)
    save(figure, path)


def run(settings: Settings, seed: int, out: Path) -> int:
    """Train both groups, write the files to ``out``, and return the exit code."""
    envs = make_envs(settings)
    groups = fm.group_map(envs[0].possible_agents, fm.by_prefix)
    nets = make_nets(envs[0], groups, settings.width)
    params = init_groups(nets, fm.key(seed))
    untrained = {group: {name: leaf.clone() for name, leaf in tree.items()} for group, tree in params.items()}
    noise = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    fields = ["iteration", "frames", *(f"{group}_{what}" for what in ("reward", "loss") for group in groups)]
    with writing(out / "metrics.csv", fields) as write:
        try:
            iterations = train(envs, groups, nets, params, settings, noise)
            with tqdm(iterations, "simple_tag", settings.iterations, unit="iteration") as bar:
                for metrics in bar:
                    write(metrics)
                    history.append(metrics)
                    bar.set_postfix({group: f"{metrics[f'{group}_reward']:.1f}" for group in groups})
            for name, rewards in matches(envs, groups, nets, untrained, params, seed).items():
                print(name, ", ".join(f"{group} {reward:.1f}" for group, reward in rewards.items()), flush=True)
        except KeyboardInterrupt:
            print(f"interrupted; the results so far are in {out}")
            return 130
        finally:
            draw_curves(out / "curves.png", history)
    print(f"curves and metrics are in {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return the exit code."""
    options = parse(make_parser(__doc__, iterations=Settings.iterations, out="runs/pettingzoo_groups"), argv)
    torch.set_num_threads(1)  # faster for small networks, and the curves do not depend on the number of cores
    return run(Settings(iterations=options.iterations), options.seed, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
