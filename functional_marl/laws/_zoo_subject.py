"""Subjects made of the zoo: a few arguments and a seed make one, so that a failure can be made again from them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from functional_marl._init_params import init_params
from functional_marl._init_state import init_state
from functional_marl._network import Network, network
from functional_marl._network_settings import Randomness, StrategyName
from functional_marl._pytrees import Params, Tree, flatten, tree_map
from functional_marl._sharing import SharingSpec
from functional_marl._strategies import supports
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws.zoo import ZOO, Entry, Spec

__all__ = ["example_of", "leaf_names_of", "moved", "zoo_subject"]


@lru_cache(maxsize=256)
def _single(entry: Entry, joint: int) -> Network:
    """The network of one agent of an entry, which sees ``joint`` agents' first inputs; built once."""
    build = entry.build if joint == 1 or entry.joint is None else _Joint(entry, joint)
    return network(build, 1, example=example_of(entry, joint))


class _Joint:
    """The factory of a joint module: pickles by the name of its entry."""

    def __init__(self, entry: Entry, joint: int) -> None:
        self.entry, self.joint = entry, joint

    def __call__(self) -> Any:
        assert self.entry.joint is not None
        return self.entry.joint(self.joint)


def example_of(entry: Entry, joint: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tree, ...]:
    """One agent's zero inputs, with as few batch axes as the module takes."""
    lead = (entry.batch_size,) * entry.batch_dims[0]

    def zeros(spec: Spec, joint: int = 1) -> Tensor:
        shape = (joint * spec.shape[0], *spec.shape[1:]) if joint > 1 else spec.shape
        return torch.zeros((*lead, *shape), dtype={0: dtype, 2: torch.bool}.get(spec.high, torch.int64))

    first, *rest = entry.inputs
    return (tree_map(lambda spec: zeros(spec, joint), first), *(tree_map(zeros, tree) for tree in rest))


def leaf_names_of(entry: Entry) -> list[str]:
    """The names of the parameters and buffers of one agent."""
    template = _single(entry, 1).module_spec
    return [*template.params, *template.buffers]


def zoo_subject(
    name: str,
    *,
    n_agents: int,
    sharing: SharingSpec = "independent",
    centralized: bool = False,
    batch: tuple[int, ...] = (),
    agent_dims: int | tuple[int | None, ...] | None = None,
    out_agent_dim: int | None = None,
    randomness: Randomness = "different",
    strategy: StrategyName = "auto",
    seed: int = 0,
    ops: Operations = LIBRARY,
) -> NetworkSubject:
    """A subject of the zoo, a function of its arguments: float64, every leaf moved off its initial value.

    Args:
        name: an entry of the zoo.
        n_agents, sharing, centralized, randomness, strategy: as in :func:`functional_marl.network`.
        batch: the sizes of the batch axes.
        agent_dims: where the agents are: one position for all inputs, or one an input (and one more for the
            keyword inputs), None for an input that all agents see whole; by default behind the batch axes.
        out_agent_dim: where outputs carry them; by default where the first input does.
        seed: of the parameters, the state and the inputs.
        ops: the operations under test.
    """
    entry = ZOO[name]
    arguments = {
        "n_agents": n_agents,
        "sharing": sharing,
        "centralized": centralized,
        "batch": batch,
        "agent_dims": agent_dims,
        "out_agent_dim": out_agent_dim,
        "randomness": randomness,
        "strategy": strategy,
        "seed": seed,
    }
    defaults = zoo_subject.__kwdefaults__ or {}
    shown = [f"{k}={v!r}" for k, v in arguments.items() if k not in defaults or v != defaults[k]]
    places = len(entry.inputs) + 1
    given = len(batch) if agent_dims is None else agent_dims
    dims = given if isinstance(given, tuple) else (given % (len(batch) + 1 + _depth(entry)),) * places
    net = _single(entry, n_agents if centralized else 1).replace(
        n_agents=n_agents,
        sharing=sharing,
        centralized=centralized,
        agent_dim=given if entry.kwargs or not isinstance(given, tuple) else given[:-1],
        out_agent_dim=out_agent_dim,
        randomness=randomness,
        strategy=strategy,
    )
    planned = supports(net, "plan")
    strategies = {"auto": True, "loop": True, "vmap": entry.vmap, "plan": planned}
    generator = torch.Generator().manual_seed(seed)

    def draw(tree: Tree, dim: int | None) -> Tree:
        lead = batch if dim is None else (n_agents, *batch)
        return tree_map(lambda spec: spec.draw(lead, generator, torch.float64), tree)

    first = next((dim for dim in dims if dim is not None), -2)
    return NetworkSubject(
        name=f"zoo_subject({', '.join([repr(name), *shown])})",
        net=net,
        params=moved(init_params(net, seed, dtype=torch.float64), generator),
        inputs=tuple(draw(tree, dim) for tree, dim in zip(entry.inputs, dims[:-1], strict=True)),
        dims=dims,
        out_dim=first if out_agent_dim is None else out_agent_dim,
        kwargs=draw(dict(entry.kwargs), dims[-1]),
        state=moved(init_state(net, seed, dtype=torch.float64), generator),
        batch=batch,
        least_batch_dims=entry.batch_dims[0],
        traits=_traits(entry),
        strategies=tuple(name for name, can in strategies.items() if can),
        build=net.module_spec.build,
        seed=seed,
        ops=ops,
    )


def _depth(entry: Entry) -> int:
    """The number of axes of the first leaf of one agent's first input."""
    return len(flatten(entry.inputs[0])[0][0].shape)


def _traits(entry: Entry) -> frozenset[str]:
    about = {
        "responds": not entry.masks_agents,
        "random": entry.random,
        "rows apart": entry.rows_apart,
        "compiles": entry.compiles,
        "exports": entry.exports,
        "vmap": entry.vmap,
        "a mask that shows": entry.shows_mask,
        "pooled": entry.pooled,
        "masks agents": entry.masks_agents,
    }
    return frozenset(trait for trait, true in about.items() if true)


def moved(leaves: Params, generator: torch.Generator) -> Params:
    """Floats a random factor and step from where they start, integers a few up: no two slots agree."""
    moved: Params = {}
    for name, leaf in leaves.items():
        if leaf.is_floating_point():
            factor, step = torch.randn((2, *leaf.shape), generator=generator, dtype=torch.float64)
            moved[name] = leaf * torch.exp(0.25 * factor) + 0.25 * step * step
        else:
            moved[name] = leaf + torch.randint(1, 100, leaf.shape, generator=generator)
    return moved
