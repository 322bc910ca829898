"""TorchRL's multi-agent tutorial with this library's networks: the same program, one import changed.

MAPPO on VMAS navigation: three agents with lidars find their goals without collisions. Actors see their own
observation, the critic sees all of them. Everything except the networks is torchrl's own:
``ProbabilisticActor``, ``Collector``, ``ReplayBuffer``, ``ClipPPOLoss``. The program runs once with torchrl's
``MultiAgentMLP`` and once with ours, from the same seed. Both reward curves are in one picture.

The libraries compute the same sums in different orders. The 450 updates of an iteration amplify a difference in the
seventh digit: torchrl's own curve changes as much if its first weights are changed in that digit. With fewer updates
and in double precision, the two curves have the same numbers.

    pip install -e ".[train]"  # once, at the top of the repository
    python examples/torchrl_mappo.py
    python examples/torchrl_mappo.py --double --epochs 10 --iterations 3
    python examples/torchrl_mappo.py --share independent --library functional_marl

In ``--out`` (default ``runs/torchrl_mappo``): ``curves.png`` and ``metrics.csv``. Ctrl-C stops the program and
keeps the results so far. After the tutorial "Multi-Agent Reinforcement Learning (PPO) with TorchRL"
(pytorch.org/rl, ``multiagent_ppo``).
"""

# torchrl and tensordict have no stub files:
# pyright: reportMissingTypeStubs=false

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from navigation_plots import COLORS, save
from running import make_axes, make_parser, parse, positive, writing
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.collectors import Collector
from torchrl.data.replay_buffers import ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.data.replay_buffers.storages import LazyTensorStorage
from torchrl.envs import Compose, DTypeCastTransform, RewardSum, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss, ValueEstimators
from tqdm import tqdm

LIBRARIES = ("torchrl", "functional_marl")
SHARES = ("shared", "independent")

Metrics = dict[str, float]
Curves = dict[str, list[tuple[int, float]]]  # library -> (frames, reward) of each iteration


@dataclass(frozen=True)
class Settings:
    """Sizes of a training run, as in the tutorial: 6,000 frames per iteration."""

    iterations: int = 10
    agents: int = 3
    envs: int = 60
    steps: int = 100
    epochs: int = 30
    minibatch: int = 400
    width: int = 256
    learning_rate: float = 3e-4
    max_grad_norm: float = 1.0
    gamma: float = 0.9
    lam: float = 0.9
    clip: float = 0.2
    entropy_coeff: float = 1e-4
    double: bool = False  # train in double precision


def multi_agent_mlp(library: str) -> Any:
    """The one line that differs between the two runs."""
    if library == "torchrl":
        from torchrl.modules import MultiAgentMLP
    else:
        from functional_marl.nn import MultiAgentMLP
    return MultiAgentMLP


def make_env(settings: Settings, seed: int) -> Any:
    """Navigation, with each agent's rewards summed over its episode.

    All VMAS environments of a process use one random stream. ``seed`` sets that stream anew, so that both runs
    see the same episodes.
    """
    options = {"num_envs": settings.envs, "max_steps": settings.steps, "n_agents": settings.agents}
    env: Any = VmasEnv("navigation", continuous_actions=True, seed=seed, **options)  # pyright: ignore
    transforms: list[Any] = [RewardSum(in_keys=[env.reward_key], out_keys=[("agents", "episode_reward")])]
    if settings.double:  # VMAS has single precision only
        seen, given = [("agents", "observation"), env.reward_key], [env.action_key]
        transforms.insert(0, DTypeCastTransform(torch.float32, torch.float64, seen, in_keys_inv=given))
    return TransformedEnv(env, Compose(*transforms))


def make_actor(env: Any, library: str, share: str, width: int) -> Any:
    """Each agent's distribution over its own action, from its own observation."""
    action = env.full_action_spec_unbatched[env.action_key]
    net = multi_agent_mlp(library)(
        n_agent_inputs=env.observation_spec["agents", "observation"].shape[-1],
        n_agent_outputs=2 * action.shape[-1],
        n_agents=env.n_agents,
        centralized=False,
        share_params=share == "shared",
        depth=2,
        num_cells=width,
        activation_class=nn.Tanh,
    )
    module: Any = TensorDictModule(
        nn.Sequential(net, NormalParamExtractor()),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "loc"), ("agents", "scale")],
    )
    return ProbabilisticActor(
        module=module,
        spec=env.full_action_spec_unbatched,
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[env.action_key],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action.space.low, "high": action.space.high},
        return_log_prob=True,
        log_prob_key=("agents", "sample_log_prob"),
    )


def make_critic(env: Any, library: str, share: str, width: int) -> Any:
    """Each agent's value, from the observations of all agents, as in MAPPO."""
    net = multi_agent_mlp(library)(
        n_agent_inputs=env.observation_spec["agents", "observation"].shape[-1],
        n_agent_outputs=1,
        n_agents=env.n_agents,
        centralized=True,
        share_params=share == "shared",
        depth=2,
        num_cells=width,
        activation_class=nn.Tanh,
    )
    return TensorDictModule(net, in_keys=[("agents", "observation")], out_keys=[("agents", "state_value")])


def make_loss(env: Any, actor: Any, critic: Any, settings: Settings) -> Any:
    """The clipped loss of PPO, and generalized advantages from each agent's own rewards."""
    loss: Any = ClipPPOLoss(
        actor_network=actor,
        critic_network=critic,
        clip_epsilon=settings.clip,
        entropy_coeff=settings.entropy_coeff,
        normalize_advantage=False,
    )
    loss.set_keys(
        reward=env.reward_key,
        action=env.action_key,
        sample_log_prob=("agents", "sample_log_prob"),
        value=("agents", "state_value"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=settings.gamma, lmbda=settings.lam)
    return loss


def train(library: str, share: str, settings: Settings, seed: int) -> Iterator[Metrics]:
    """Train from scratch and yield the metrics of each iteration; all random numbers come from ``seed``."""
    env = make_env(settings, seed)
    torch.manual_seed(seed)  # torchrl samples parameters, actions and minibatches with the global generator
    dtype = torch.float64 if settings.double else torch.float32
    actor = make_actor(env, library, share, settings.width).to(dtype)
    critic = make_critic(env, library, share, settings.width).to(dtype)
    loss_module = make_loss(env, actor, critic, settings)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=settings.learning_rate)
    frames = settings.envs * settings.steps
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=settings.minibatch
    )
    sizes: Any = {"frames_per_batch": frames, "total_frames": frames * settings.iterations}
    collector: Any = Collector(env, actor, auto_register_policy_transforms=False, **sizes)
    try:
        batches, began = iter(collector), time.perf_counter()
        for iteration in range(1, settings.iterations + 1):
            batch: Any = next(batches)
            collected = time.perf_counter() - began
            # VMAS has one done for the team; the loss needs one for each agent.
            for key in ("done", "terminated"):
                done = batch["next", key].unsqueeze(-1).expand(batch["next", env.reward_key].shape)
                batch["next", "agents", key] = done
            with torch.no_grad():
                loss_module.value_estimator(
                    batch,
                    params=loss_module.critic_network_params,
                    target_params=loss_module.target_critic_network_params,
                )
            buffer.extend(batch.reshape(-1))
            losses = update(loss_module, optimizer, buffer, frames, settings)
            collector.update_policy_weights_()
            ended = batch["next", "agents", "done"]
            reward = batch["next", "agents", "episode_reward"][ended].mean().item()
            metrics: Metrics = {"iteration": iteration, "frames": frames * iteration, "reward": reward, **losses}
            yield {**metrics, "collect_seconds": collected, "seconds": time.perf_counter() - began}
            began = time.perf_counter()
    finally:
        collector.shutdown()


def update(loss_module: Any, optimizer: Any, buffer: Any, frames: int, settings: Settings) -> Metrics:
    """Step through the buffer ``epochs`` times and return the mean losses."""
    names = ("loss_objective", "loss_critic", "loss_entropy")
    history: list[Metrics] = []
    for _ in range(settings.epochs * (frames // settings.minibatch)):
        losses = loss_module(buffer.sample())
        torch.stack([losses[name] for name in names]).sum().backward()
        nn.utils.clip_grad_norm_(loss_module.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: losses[name].item() for name in names})
    return {name: fmean(losses[name] for losses in history) for name in names}


def draw_curves(path: Path, curves: Curves, title: str) -> None:
    """Mean episode reward against frames: the first curve wide and pale, so that an equal second one is visible."""
    figure, axes = make_axes(title, "mean episode reward")
    looks: Mapping[str, Any] = {
        "torchrl": {"color": "#BFDDF2", "linewidth": 8, "marker": "o", "markersize": 12},
        "functional_marl": {"color": COLORS[1], "linewidth": 2, "marker": "o", "markersize": 5},
    }
    for library, points in curves.items():
        frames, rewards = zip(*points, strict=True)
        axes.plot(frames, rewards, label=library, **looks[library])
    if curves:
        axes.legend(loc="lower right", fontsize=11, frameon=False)
    save(figure, path)


def run(libraries: Sequence[str], share: str, settings: Settings, seed: int, out: Path) -> int:
    """Train with each library in turn, write the files to ``out``, and return the exit code."""
    curves: Curves = {}
    seconds = dict.fromkeys(libraries, 0.0)
    losses = ["loss_objective", "loss_critic", "loss_entropy"]
    fields = ["library", "share", "iteration", "frames", "reward", *losses, "collect_seconds", "seconds"]
    with writing(out / "metrics.csv", fields) as write:
        try:
            for library in libraries:
                iterations = train(library, share, settings, seed)
                with tqdm(iterations, library, settings.iterations, unit="iteration") as bar:
                    for metrics in bar:
                        write({"library": library, "share": share, **metrics})
                        curves.setdefault(library, []).append((int(metrics["frames"]), metrics["reward"]))
                        seconds[library] += metrics["seconds"]
                        bar.set_postfix(reward=f"{metrics['reward']:.3f}")
        except KeyboardInterrupt:
            print(f"interrupted; the results so far are in {out}")
            return 130
        finally:
            precision = "double" if settings.double else "single"
            title = f"VMAS navigation by MAPPO: {share} parameters, {precision} precision, one seed"
            draw_curves(out / "curves.png", curves, title)
    for library, points in curves.items():
        print(f"{library}: {', '.join(f'{reward:.4f}' for _, reward in points)} in {seconds[library]:.0f} s")
    print(f"curves and metrics are in {out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return the exit code."""
    parser = make_parser(__doc__, iterations=Settings.iterations, out="runs/torchrl_mappo")
    parser.add_argument("--library", choices=(*LIBRARIES, "both"), default="both", help="default: %(default)s")
    parser.add_argument("--share", choices=SHARES, default=SHARES[0], help="default: %(default)s")
    parser.add_argument("--epochs", type=positive, default=Settings.epochs, help="default: %(default)s")
    parser.add_argument("--double", action="store_true", help="train in double precision")
    options = parse(parser, argv)
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # its messages would break the progress bar
    torch.set_num_threads(1)  # faster for small networks, and the curves do not depend on the number of cores
    libraries = LIBRARIES if options.library == "both" else (options.library,)
    settings = Settings(iterations=options.iterations, epochs=options.epochs, double=options.double)
    return run(libraries, options.share, settings, options.seed, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
