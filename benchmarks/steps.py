"""Whole training steps, populations, and a training iteration of the navigation demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import functional_marl as fm
from benchmarks.baselines import FEATURES, OUTPUTS, leaves_of, torchrl_mlp
from benchmarks.setup import Setup, Size, example
from benchmarks.timing import Claim, Contest

__all__ = ["navigation", "population", "steps", "steps_compiled"]

_STEP: dict[Size, float] = {(3, 64, 32): 4.0, (64, 64, 32): 2.0, (512, 64, 32): 1.7}


def _torchrl_step(reference: Any, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(reference(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _step_contest(setup: Setup, size: Size) -> tuple[dict[str, Callable[[], Any]], Any, dict[str, Tensor], Any, Any]:
    recipes = example("training_step")
    agents, width, batch = size
    reference = torchrl_mlp(agents, width, device=setup.device)
    net = fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents)
    params = leaves_of(reference)
    x, y = setup.randn(batch, agents, FEATURES), setup.randn(batch, agents, OUTPUTS)
    loss = recipes.squared_error(net)
    variants: dict[str, Callable[[], Any]] = {
        "torchrl": _torchrl_step(reference, x, y),
        "ours": partial(recipes.eager_step(loss, params), x, y),
    }
    return variants, loss, params, x, y


def steps(setup: Setup) -> Iterator[Contest]:
    """Forward, loss, backward and Adam: torchrl with the default Adam, ours with the fused one."""
    for size in setup.sizes(*_STEP):
        variants, *_ = _step_contest(setup, size)
        yield Contest(_name(size), variants, [Claim("ours", "torchrl", _STEP.get(size))], calls=4, size=size)


def steps_compiled(setup: Setup) -> Iterator[Contest]:
    """The whole step in one graph."""
    for size in setup.sizes(*_STEP):
        torch._dynamo.reset()
        variants, loss, params, x, y = _step_contest(setup, size)
        variants["ours, compiled"] = partial(example("training_step").compiled_step(loss, params), x, y)
        bound = 5.0 if size == (3, 64, 32) else None
        claims = [Claim("ours, compiled", "torchrl", bound), Claim("ours, compiled", "ours")]
        yield Contest(_name(size), variants, claims, calls=4, size=size)


def _name(size: Size) -> str:
    return ",".join(map(str, size))


# --- populations ---------------------------------------------------------------------------------------

Losses = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


def _ppo(policy: fm.Network, critic: fm.Network, seeds: int) -> Losses:
    """PPO's loss, a sum over the seeds: advantages are normalised and ratios clipped for each seed.

    ``batch``: obs [B, S * n, F], actions [B, S * n, 2], and per agent log_probs, advantages, returns [B, S * n].
    """

    def loss(params: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        own = [{k[2:]: leaf for k, leaf in params.items() if k.startswith(part)} for part in ("p.", "c.")]
        mean, log_std = fm.apply(policy, own[0], batch["obs"]).chunk(2, -1)
        log_std = log_std.clamp(-4, 1)
        z = (batch["actions"] - mean) * (-log_std).exp()
        log_prob = (-0.5 * z * z - log_std - 0.9189385332046727).sum(-1)
        value = fm.apply(critic, own[1], batch["obs"]).squeeze(-1)
        # [B, S, n]
        log_prob, value, old, gain, returns, entropy = (
            leaf.unflatten(1, (seeds, -1))
            for leaf in (
                log_prob,
                value,
                batch["log_probs"],
                batch["advantages"],
                batch["returns"],
                log_std.sum(-1),
            )
        )
        gain = (gain - gain.mean((0, 2), keepdim=True)) / (gain.std((0, 2), keepdim=True) + 1e-6)
        ratio = (log_prob - old).exp()
        won = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        terms = -won + (value - returns).square() - 1e-4 * entropy
        return terms.mean((0, 2)).sum()

    return loss


def population(setup: Setup) -> Iterator[Contest]:
    """A PPO update of 8 seeds x 3 agents at once, compared with 8 updates one after the other."""
    seeds, agents, width = (2, 2, 4) if setup.tiny else (8, 3, 64)
    for batch, bound in ((2, None),) if setup.tiny else ((32, 4.0), (400, 1.7)):
        torch._dynamo.reset()
        recipes = example("training_step")

        def nets(n: int) -> tuple[fm.Network, fm.Network]:
            return tuple(fm.network(fm.nets.mlp(FEATURES, width, width, out), n_agents=n) for out in (4, 1))

        policy, critic = nets(agents)
        starts = [
            {f"p.{k}": v.to(setup.device) for k, v in fm.init_params(policy, seed).items()}
            | {f"c.{k}": v.to(setup.device) for k, v in fm.init_params(critic, seed).items()}
            for seed in range(seeds)
        ]
        batches = [
            {
                "obs": setup.randn(batch, agents, FEATURES),
                "actions": setup.randn(batch, agents, 2),
                "log_probs": setup.randn(batch, agents) - 3,
                "advantages": setup.randn(batch, agents),
                "returns": setup.randn(batch, agents),
            }
            for _ in range(seeds)
        ]
        one = _ppo(policy, critic, 1)
        alone = [
            _update(recipes, recipes.eager_step, one, start, own) for start, own in zip(starts, batches, strict=True)
        ]
        whole = {name: torch.cat([own[name] for own in batches], 1) for name in batches[0]}
        loss = _ppo(*nets(seeds * agents), seeds)
        together = recipes.folded(starts)
        variants: dict[str, Callable[[], Any]] = {
            "one by one": lambda alone=alone: torch.stack([update() for update in alone]).sum(),
            "at once, eager": _update(recipes, recipes.eager_step, loss, together, whole),
            "at once": _update(recipes, recipes.compiled_step, loss, together, whole),
        }
        claims = [Claim("at once", "one by one", bound), Claim("at once, eager", "one by one")]
        yield Contest(f"{seeds} seeds x {agents} agents, minibatch {batch}", variants, claims, calls=4)


def _update(recipes: Any, recipe: Any, loss: Losses, params: Any, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A recipe's step on a minibatch that is a dict: it is the first of the two batch arguments."""
    step = recipe(lambda params, batch, _: loss(params, batch), params)
    nothing = torch.zeros(())
    return lambda: step(batch, nothing)


# --- the demo ------------------------------------------------------------------------------------------


def navigation(setup: Setup) -> Iterator[Contest]:
    """A training iteration on VMAS navigation: with the demo's own code, and with torchrl's collector and loss."""
    from benchmarks.torchrl_navigation import iterations

    demo = example("navigation")
    settings = demo.Settings(iterations=10**6)
    if setup.tiny:
        settings = replace(settings, envs=4, steps=5, epochs=1, minibatch=10)
    team = demo.make_team("independent", settings.agents)
    params = demo.init_team(team, fm.key(0))
    ours = demo.train(team, params, settings, fm.key(1))
    reference = iterations(settings)
    variants = {"torchrl": lambda: next(reference), "ours": lambda: next(ours)}
    yield Contest(
        f"{settings.envs} environments x {settings.steps} steps, {settings.epochs} epochs",
        variants,
        [Claim("ours", "torchrl", 2.0)],
        rounds=5,
        compared=False,
    )
