"""QMIX on VMAS navigation with discrete actions: our agents and our mixer in torchrl's ``QMixerLoss``.

Two agents share one network of action values, and ``QMixer`` computes the team's value from them and from the
observations of both. The reward is that of the team as a whole.

    pip install -e ".[train]"  # once, at the top of the repository
    python examples/qmix.py

In ``--out`` (default ``runs/qmix``): ``curves.png`` and ``metrics.csv``. Ctrl-C stops the program and keeps the
results so far. QMIX: Rashid et al., "Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement
Learning" (2018).
"""

# torchrl and tensordict have no stub files:
# pyright: reportMissingTypeStubs=false

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from navigation_plots import COLORS, save
from running import make_axes, make_parser, parse, writing
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data.replay_buffers import LazyTensorStorage, ReplayBuffer
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import EGreedyModule, QValueModule
from torchrl.objectives import SoftUpdate
from torchrl.objectives.multiagent import QMixerLoss
from tqdm import tqdm

from functional_marl.nn import MultiAgentMLP, QMixer


@dataclass(frozen=True)
class Settings:
    """Sizes of a training run: 3,000 frames and 60 updates per iteration."""

    iterations: int = 24
    envs: int = 60
    steps: int = 50
    updates: int = 60
    minibatch: int = 256
    memory: int = 30_000
    width: int = 64
    learning_rate: float = 1e-3
    gamma: float = 0.9
    reward_scale: float = 10.0  # the reward of a step is about a hundredth
    tau: float = 0.01  # the share of the networks' weights in the targets' at each update


def make_env(settings: Settings, seed: int) -> Any:
    """Navigation with nine actions per agent, without collisions; each agent sees its own goal."""
    options: Any = {"n_agents": 2, "collisions": False, "shared_rew": True, "max_steps": settings.steps}
    env: Any = VmasEnv("navigation", num_envs=settings.envs, continuous_actions=False, seed=seed, **options)
    return TransformedEnv(env, RewardSum(in_keys=[env.reward_key], out_keys=[("agents", "episode_reward")]))


def make_agents(env: Any, width: int) -> Any:
    """The action values of all agents, and the best action of each."""
    net = MultiAgentMLP(
        env.observation_spec["agents", "observation"].shape[-1],
        env.full_action_spec_unbatched[env.action_key].space.n,
        n_agents=env.n_agents,
        centralized=False,
        share_params=True,
        depth=2,
        num_cells=width,
        activation_class=nn.ReLU,
    )
    values: Any = TensorDictModule(net, in_keys=[("agents", "observation")], out_keys=[("agents", "action_value")])
    out_keys: Any = [env.action_key, ("agents", "action_value"), ("agents", "chosen_action_value")]
    best: Any = QValueModule(
        action_value_key=("agents", "action_value"),
        out_keys=out_keys,
        spec=env.full_action_spec_unbatched,
        action_space=None,
    )
    return TensorDictSequential(values, best)


def make_mixer(env: Any) -> Any:
    """The team's value, from the values of the chosen actions and from both observations."""
    state = env.observation_spec["agents", "observation"].shape[-2:]
    mixer = QMixer(state_shape=state, mixing_embed_dim=32, n_agents=env.n_agents, device="cpu")
    in_keys: Any = [("agents", "chosen_action_value"), ("agents", "observation")]
    return TensorDictModule(mixer, in_keys=in_keys, out_keys=["chosen_action_value"])


def train(settings: Settings, seed: int) -> Iterator[dict[str, float]]:
    """Train from scratch and yield the metrics of each iteration; all random numbers come from ``seed``."""
    env = make_env(settings, seed)
    torch.manual_seed(seed)
    agents = make_agents(env, settings.width)
    action_space = env.full_action_spec_unbatched[env.action_key]
    loss_module: Any = QMixerLoss(agents, make_mixer(env), action_space=action_space, delay_value=True)
    loss_module.set_keys(
        action_value=("agents", "action_value"),
        local_value=("agents", "chosen_action_value"),
        global_value="chosen_action_value",
        action=env.action_key,
    )
    loss_module.make_value_estimator(gamma=settings.gamma)
    targets = SoftUpdate(loss_module, tau=settings.tau)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=settings.learning_rate)

    frames = settings.envs * settings.steps
    steps = settings.steps * settings.iterations // 2  # exploration decreases over the first half of the training
    explore: Any = EGreedyModule(
        env.full_action_spec_unbatched, 1.0, 0.05, annealing_num_steps=steps, action_key=env.action_key
    )
    buffer = ReplayBuffer(storage=LazyTensorStorage(settings.memory), batch_size=settings.minibatch)
    sizes: Any = {"frames_per_batch": frames, "total_frames": frames * settings.iterations}
    policy = TensorDictSequential(agents, explore)
    collector: Any = Collector(env, policy, auto_register_policy_transforms=False, **sizes)
    try:
        for iteration, batch in enumerate(collector, start=1):
            batch["next", "reward"] = settings.reward_scale * batch["next", env.reward_key].mean(-2)  # the team's
            ended = batch["next", "done"].squeeze(-1)
            reward = batch["next", "agents", "episode_reward"][ended].mean().item()
            buffer.extend(batch.reshape(-1))
            losses: list[float] = []
            for _ in range(settings.updates):
                loss = loss_module(buffer.sample())["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                targets.step()
                losses.append(loss.item())
            explored = explore.eps.item()
            explore.step(settings.steps)
            metrics = {"iteration": iteration, "frames": frames * iteration, "reward": reward}
            yield metrics | {"loss": fmean(losses), "exploration": explored}
    finally:
        collector.shutdown()


def run(settings: Settings, seed: int, out: Path) -> int:
    """Train, write the files to ``out``, and return the exit code."""
    points: list[tuple[float, float]] = []
    with writing(out / "metrics.csv", ["iteration", "frames", "reward", "loss", "exploration"]) as write:
        try:
            with tqdm(train(settings, seed), "qmix", settings.iterations, unit="iteration") as bar:
                for metrics in bar:
                    write(metrics)
                    points.append((metrics["frames"], metrics["reward"]))
                    bar.set_postfix(reward=f"{metrics['reward']:.2f}", exploration=f"{metrics['exploration']:.2f}")
        except KeyboardInterrupt:
            print(f"interrupted; the results so far are in {out}")
            return 130
        finally:
            figure, axes = make_axes("VMAS navigation by QMIX, exploring ever less", "mean episode reward")
            axes.plot(*zip(*points, strict=True), color=COLORS[0], linewidth=2.2, marker="o", markersize=4.5)
            save(figure, out / "curves.png")
    print(f"curves and metrics are in {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return the exit code."""
    options = parse(make_parser(__doc__, iterations=Settings.iterations, out="runs/qmix"), argv)
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # its messages would break the progress bar
    torch.set_num_threads(1)  # faster for small networks, and the curves do not depend on the number of cores
    return run(Settings(iterations=options.iterations), options.seed, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
