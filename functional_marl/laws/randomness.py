"""Laws 41 to 46: what is drawn, from which key, and for whom."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from functional_marl._errors import RandomnessError
from functional_marl._pytrees import Params, Tree
from functional_marl.laws.law import Broken, agree, broken, differ, law
from functional_marl.laws.subject import Subject

__all__ = [
    "initialisation_has_the_modules_distribution",
    "initialisation_is_prefix_stable",
    "initialisation_is_the_modules_own",
    "masks_are_independent",
    "mode_is_irrelevant_in_evaluation",
    "randomness_has_one_meaning",
    "results_follow_the_key",
    "slots_differ",
]


def built(s: Subject, seed: int) -> tuple[Params, Params]:
    """Parameters and buffers of a module built under a seed of torch's global generator, which is put back."""
    assert s.build is not None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module: nn.Module = s.build()
        if any(nn.parameter.is_lazy(p) for p in module.parameters()):
            module.eval()(*s.net.module_spec.example)
        return dict(module.named_parameters()), dict(module.named_buffers())


def drawn_leaves(s: Subject) -> list[str]:
    """The parameters that a module draws at random, and does not set."""
    one, other = built(s, 0)[0], built(s, 1)[0]
    return [name for name, leaf in one.items() if not torch.equal(leaf, other[name])]


@law(41, "factory", "settings")
def results_follow_the_key(s: Subject) -> None:
    """key = key' implies equal draws, key ≠ key' different ones.

    Initialization and dropouts are functions of the key; an int is the key of that seed.
    """
    one, other = s.key(1), s.key(2)
    params = s.ops.init_params(s.net, one)
    agree(s.ops.init_params(s.net, one.clone()), params, "init_params twice under one key: params", exact=True)
    agree(s.ops.init_state(s.net, one), s.ops.init_state(s.net, one), "init_state under one key: state", exact=True)
    agree(s.ops.init_params(s.net, s.seed), s.ops.init_params(s.net, s.ops.key(s.seed)), "int as key", exact=True)
    changed = s.ops.init_params(s.net, other)
    for name in drawn_leaves(s):
        for slot in range(len(changed[name])):
            differ(changed[name][slot], params[name][slot], f"init_params under two keys, slot {slot}: {name}")
    if s.params is None:
        return
    outputs = s.trained(key=one)
    agree(s.trained(key=one.clone()), outputs, "apply twice under one key: outputs and state", exact=True)
    if "random" in s.traits:
        for i, output in enumerate(s.trained(key=other)[0]):
            differ(output, outputs[0][i], f"training under two keys, agent {i}: output")


@law(42, "factory", "settings")
def initialisation_is_prefix_stable(s: Subject) -> None:
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


@law(43, "factory", "settings")
def initialisation_is_the_modules_own(s: Subject) -> None:
    """P[ℓ][s] = ℓ of f built under split(key, S)[s], to the bit.

    Each slot holds what the factory builds by itself under that slot's seed, buffers too.
    """
    params: Params = s.ops.init_params(s.net, s.key())
    state: Params = s.ops.init_state(s.net, s.key())
    count = max(len(leaf) for leaf in (*params.values(), *state.values()))
    for slot, (high, low) in enumerate(s.ops.split(s.key(), count).tolist()):
        wanted = built(s, high << 32 | low)
        for leaves, own in zip((params, state), wanted, strict=True):
            for name, leaf in leaves.items():
                if slot < len(leaf):
                    agree(leaf[slot], own[name].detach(), f"slot {slot}: fresh {name}", exact=True)


@law(43, "factory", "settings", cost=20)
def initialisation_has_the_modules_distribution(s: Subject) -> None:
    """mean and deviation of P[ℓ] over slots = those of ℓ over builds.

    Many slots have the moments of many modules built one after the other, within six standard errors.
    """
    slots = 64
    many: Params = s.ops.init_params(s.net.replace(n_agents=slots, sharing="independent"), s.key())
    builds = [built(s, s.seed + k)[0] for k in range(slots)]
    for name, leaf in many.items():
        own = torch.stack([build[name].detach() for build in builds])
        error = 6 * float(own.std()) * (2 / own.numel()) ** 0.5
        for what, got, want in (("mean", leaf.mean(), own.mean()), ("deviation", leaf.std(), own.std())):
            if not abs(float(got - want)) <= error:
                broken(f"{what} of fresh {name}: expected {float(want):.4f} ± {error:.4f}, got {float(got):.4f}")


@law(44, "factory", "settings")
def slots_differ(s: Subject) -> None:
    """s ≠ s' implies P[ℓ][s] ≠ P[ℓ][s'] for every ℓ that the module draws.

    No two slots start as the same network.
    """
    params: Params = s.ops.init_params(s.net, s.key())
    for name in drawn_leaves(s):
        for one, other in itertools.combinations(range(len(params[name])), 2):
            differ(params[name][one], params[name][other], f"fresh {name} in the slots {one} and {other}")


def _alike(s: Subject) -> Subject:
    """All agents with the parameters, buffers and inputs of agent 0: only randomness tells them apart."""

    def rows(leaves: Params) -> Params:
        return {k: leaf[s.slots[k][0]].expand(leaf.shape).clone() for k, leaf in leaves.items()}

    return replace(s.taking([0] * s.n), params=rows(s.own), state=rows(s.state))


@law(45, "random", "several agents", "parameters", "settings")
def randomness_has_one_meaning(s: Subject) -> None:
    """'same': m_i = m_j; 'different': m_i ≠ m_j; 'error': raises; under every sharing, with and without a key.

    The words mean what they mean in ``torch.func.vmap``, whoever shares parameters.
    """
    alike = _alike(s)

    def draw(way: str, mode: str, keyed: bool) -> list[Tree]:
        called = replace(alike, net=s.net.replace(strategy=way, randomness=mode))
        return called.trained(key=s.key() if keyed else None)[0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        for way, keyed in itertools.product(s.ways, (True, False)):
            where = f"strategy {way}, {'with' if keyed else 'without'} a key"
            _must_raise(lambda way=way, keyed=keyed: draw(way, "error", keyed), f"{where}, 'error'")
            same = draw(way, "same", keyed)
            try:
                different = draw(way, "different", keyed)
            except RuntimeError:
                if way != "vmap" or keyed:
                    raise
                continue  # torch's vmap refuses to draw in place apart for what it does not map
            for i, j in itertools.combinations(range(s.n), 2):
                agree(same[j], same[i], f"{where}, 'same', agents {i} and {j} alike: output")
                differ(different[j], different[i], f"{where}, 'different', agents {i} and {j} alike: output")


def _must_raise(call: Callable[[], object], where: str) -> None:
    try:
        call()
    except RuntimeError:
        return
    broken(f"{where}: expected an error at the first draw, got outputs")


@law(45, "a mask that shows", "several agents", "local", "parameters", "settings")
def masks_are_independent(s: Subject) -> None:
    """P(m_i = m_j) = 1/2 for each element of the masks of two agents, P(m_i = 0) = 1/2.

    Different masks are independent ones: they agree on half of the elements, within six standard errors.
    """
    alike = _alike(s)
    called = replace(alike, net=s.net.replace(randomness="different"))
    masks = [output != 0 for output in called.trained(key=s.key())[0]]
    error = 3 * masks[0].numel() ** -0.5
    for i, j in itertools.combinations(range(s.n), 2):
        rate = float((masks[i] == masks[j]).double().mean())
        if abs(rate - 0.5) > error:
            broken(f"agents {i} and {j}: expected masks that agree on 0.5 ± {error:.3f}, got {rate:.3f}")
    for i, mask in enumerate(masks):
        rate = float(mask.double().mean())
        if abs(rate - 0.5) > error:
            broken(f"agent {i}: expected to keep 0.5 ± {error:.3f}, got {rate:.3f}")


@law(46, "parameters", "settings")
def mode_is_irrelevant_in_evaluation(s: Subject) -> None:
    """y does not depend on the randomness mode or on the key where train = False.

    In evaluation nothing is drawn.
    """
    wanted = s.outputs()
    for mode, key in itertools.product(("error", "same", "different"), (None, s.key(1), s.key(2))):
        called = replace(s, net=s.net.replace(randomness=mode))
        where = f"'{mode}', key {None if key is None else key.tolist()}"
        try:
            outputs = called.outputs(key=key)
        except RandomnessError as error:
            raise Broken(f"{where}: expected outputs in evaluation, got {error}") from None
        for i, output in enumerate(outputs):
            agree(output, wanted[i], f"{where}, agent {i}: output")
