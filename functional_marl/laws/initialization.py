"""How parameters start: from which key, for which slot, as the module itself draws them (laws 41 to 44)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from functional_marl._pytrees import Params
from functional_marl.laws._capabilities import (
    FACTORY,
    LINES_UP,
    MODULE,
    RESET,
    RUNS,
    SEVERAL_AGENTS,
    SEVERAL_SLOTS,
    SINGLE,
    SLOTS,
)
from functional_marl.laws._compare import agree, broken, differ
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._restore import kept, seeded

__all__ = [
    "a_reset_redraws",
    "initialization_follows_the_key",
    "initialization_has_the_modules_distribution",
    "initialization_is_prefix_stable",
    "initialization_is_the_modules_own",
    "slots_differ",
]


@law(41, SLOTS, FACTORY)
def initialization_follows_the_key(s: NetworkSubject) -> None:
    """key = key' implies equal draws, key ≠ key' different ones.

    Initialization and dropouts are functions of the key; an int is the key of that seed.
    """
    one, other = s.key(1), s.key(2)
    params = s.ops.init_params(s.net, one)
    agree(s.ops.init_params(s.net, one.clone()), params, "init_params twice under one key: params", exact=True)
    agree(s.ops.init_state(s.net, one), s.ops.init_state(s.net, one), "init_state under one key: state", exact=True)
    agree(s.ops.init_params(s.net, s.seed), s.ops.init_params(s.net, s.ops.key(s.seed)), "int as key", exact=True)
    changed = s.ops.init_params(s.net, other)
    for name in s.drawn_leaves():
        for slot in range(len(changed[name])):
            differ(changed[name][slot], params[name][slot], f"init_params under two keys, slot {slot}: {name}")
    outputs = s.trained(key=one)
    agree(s.trained(key=one.clone()), outputs, "apply twice under one key: outputs and state", exact=True)
    if "random" in s.traits:
        for i, output in enumerate(s.trained(key=other)[0]):
            differ(output, outputs[0][i], f"training under two keys, agent {i}: output")


@law(42, SLOTS, FACTORY)
def initialization_is_prefix_stable(s: NetworkSubject) -> None:
    """init(n, key)[:m] = init(m, key).

    A slot's parameters depend on the key and on the slot, not on how many agents or slots there are.
    """
    more = s.net.replace(n_agents=s.n + 2, sharing="independent")
    wide: Params = s.ops.init_params(more, s.key())
    buffers: Params = s.ops.init_state(more, s.key())
    for slots in ([0], list(range(s.n)), list(range(s.n - 1, -1, -1))):
        fewer = s.net.replace(n_agents=len(slots), sharing=slots)
        for name, leaf in s.ops.init_params(fewer, s.key()).items():
            agree(leaf, wide[name][: len(leaf)], f"{len(leaf)} of {s.n + 2} slots: {name}", exact=True)
        for name, leaf in s.ops.init_state(fewer, s.key()).items():
            agree(leaf, buffers[name][: len(leaf)], f"{len(leaf)} of {s.n + 2} slots: buffer {name}", exact=True)
    clustered: Params = s.ops.init_params(s.net, s.key())
    for name, leaf in clustered.items():
        for slot in range(min(len(leaf), s.n + 2)):
            agree(leaf[slot], wide[name][slot], f"sharing {list(s.net.sharing[name])}, slot {slot}: {name}", exact=True)


@law(43, SLOTS, FACTORY)
def initialization_is_the_modules_own(s: NetworkSubject) -> None:
    """P[ℓ][s] = ℓ of f built under split(key, S)[s], to the bit.

    Each slot holds what the factory builds by itself under that slot's seed, buffers too.
    """
    params: Params = s.ops.init_params(s.net, s.key())
    state: Params = s.ops.init_state(s.net, s.key())
    count = max(len(leaf) for leaf in (*params.values(), *state.values()))
    for slot, (high, low) in enumerate(s.ops.split(s.key(), count).tolist()):
        wanted = s.built(high << 32 | low)
        for leaves, own in zip((params, state), wanted, strict=True):
            for name, leaf in leaves.items():
                if slot < len(leaf):
                    agree(leaf[slot], own[name].detach(), f"slot {slot}: fresh {name}", exact=True)


@law(43, SLOTS, FACTORY, cost=20)
def initialization_has_the_modules_distribution(s: NetworkSubject) -> None:
    """mean and deviation of P[ℓ] over slots = those of ℓ over builds.

    Many slots have the moments of many modules built one after the other, within six standard errors.
    """
    slots = 64
    many: Params = s.ops.init_params(s.net.replace(n_agents=slots, sharing="independent"), s.key())
    builds = [s.built(s.seed + k)[0] for k in range(slots)]
    for name, leaf in many.items():
        own = torch.stack([build[name].detach() for build in builds])
        error = 6 * float(own.std()) * (2 / own.numel()) ** 0.5
        for what, got, want in (("mean", leaf.mean(), own.mean()), ("deviation", leaf.std(), own.std())):
            if not abs(float(got - want)) <= error:
                broken(f"{what} of fresh {name}: expected {float(want):.4f} ± {error:.4f}, got {float(got):.4f}")


@law(44, RUNS, SEVERAL_AGENTS, SEVERAL_SLOTS, LINES_UP)
def slots_differ(s: NetworkSubject | ModuleSubject) -> None:
    """s ≠ s' implies P[s] ≠ P[s'].

    No two slots start as the same network: of our own networks each leaf that the module draws differs, of other
    modules some leaf.
    """
    if isinstance(s, ModuleSubject):
        i, j = s.pair
        if s.share_nothing(i, j):
            pairs = s.counterparts(i, j)
            differ([a for a, _ in pairs], [b for _, b in pairs], f"all parameters of the agents {i} and {j}")
        return
    params: Params = s.ops.init_params(s.net, s.key())
    for name in s.drawn_leaves():
        for one, other in itertools.combinations(range(len(params[name])), 2):
            differ(params[name][one], params[name][other], f"fresh {name} in the slots {one} and {other}")


@law(43, RUNS, MODULE, SINGLE, RESET)
def a_reset_redraws(s: ModuleSubject) -> None:
    """reset under two seeds gives different P[ℓ] for every ℓ that the network of one agent draws.

    ``reset_parameters`` reaches all that was drawn at the start.
    """
    module, was = s.host.module, [dict(s.single(seed).named_parameters()) for seed in (0, 1)]
    drawn = [name for name, leaf in was[0].items() if not torch.equal(leaf, was[1][name])]
    rows: list[dict[str, Tensor]] = []
    for seed in (0, 1):
        with kept(module), seeded(seed):
            reset: Any = module.reset_parameters
            reset()
            rows.append({name: leaf.detach().clone() for name, leaf in module.named_parameters()})
    for name, leaf in rows[0].items():
        if any(name == one or name.endswith(f".{one}") for one in drawn) and torch.equal(leaf, rows[1][name]):
            broken(f"{name}: drawn at the start, and reset_parameters leaves it as it is")
