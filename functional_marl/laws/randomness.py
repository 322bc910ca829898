"""What calls draw, from which key or seed, and for whom (laws 41, 45 and 46)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from functional_marl._errors import RandomnessError
from functional_marl._pytrees import Params, Tree, flatten
from functional_marl.laws._capabilities import (
    AGENTS_IN_OUTPUTS,
    DRAWS_IN_TRAINING,
    LOCAL,
    MODULE,
    NO_SAMPLER,
    NUMBERS,
    RANDOMNESS_CLAIM,
    RUNS,
    SEVERAL_AGENTS,
    SHOWS_MASK,
    SLOTS,
)
from functional_marl.laws._compare import Broken, agree, broken, gap
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._restore import kept, seeded
from functional_marl.laws._subject import CheckError, Subject

__all__ = [
    "evaluation_draws_nothing",
    "masks_are_independent",
    "mode_is_irrelevant_in_evaluation",
    "randomness_has_one_meaning",
    "results_follow_the_seed",
]


@law(41, RUNS, first=2, own_modes=True)
def results_follow_the_seed(s: Subject) -> None:
    """seed = seed' implies equal outputs, in evaluation and in training.

    Calls draw from torch's generators, or from the key that they get, and from nothing else.
    """
    for train in (False, True):
        try:
            one = s.outputs(train=train)
        except Broken:
            raise
        except Exception as error:
            raise CheckError(f"the module raises in training: {' '.join(str(error).split())[:160]}") from None
        agree(s.outputs(train=train), one, f"two calls under seed {s.seed}, train={train}: outputs", exact=True)
        if isinstance(s, ModuleSubject):
            other = s.outputs(train=train, others=1)
            where = f"torch's seed {s.seed} with other seeds of Python's random and numpy, train={train}: outputs"
            agree(other, one, where, exact=True)
            _leaves_the_seed(s, train)


def _leaves_the_seed(s: ModuleSubject, train: bool) -> None:
    """Raise if a call seeds torch's generator itself, or if a claimed sampler does not depend on the seed."""
    states: list[Tensor] = []
    for seed in (s.seed, s.seed + 1):
        with kept(s.host.module), seeded(seed):
            s.host.call(s.leaves, train)
            states.append(torch.get_rng_state())
    if torch.equal(*states):
        broken(f"torch's generator after calls under two seeds, train={train}: expected different states, got the same")


@law(41, MODULE, RUNS, NO_SAMPLER, first=3, own_modes=True)
def evaluation_draws_nothing(s: ModuleSubject) -> None:
    """y does not depend on the seed where train = False.

    In evaluation nothing is drawn, unless the module is claimed to be a sampler with samples=True.
    """
    one = s.outputs(train=False)
    for fold in (1, 2, 3):
        agree(s.outputs(train=False, fold=fold), one, "two seeds, in evaluation: outputs", exact=True)


# --- what the modes of vmap mean ------------------------------------------------------------------------------


@law(
    45,
    RUNS,
    NUMBERS,
    SEVERAL_AGENTS,
    AGENTS_IN_OUTPUTS,
    DRAWS_IN_TRAINING,
    RANDOMNESS_CLAIM,
    own_modes=True,
    whole_batch=True,
    cost=2,
)
def randomness_has_one_meaning(s: NetworkSubject | ModuleSubject) -> None:
    """'same': m_i = m_j; 'different': m_i ≠ m_j; 'error': raises; under every sharing, with and without a key.

    In training, agents with equal parameters and equal inputs draw as the mode says, whoever shares parameters.
    """
    for where, mode, draw in _modes_of_network(s) if isinstance(s, NetworkSubject) else _mode_of_module(s):
        try:
            draw(0)
        except RuntimeError as error:
            if mode == "error":
                continue
            broken(f"{where}{mode!r}: expected outputs of training, got {' '.join(str(error).split())[:160]}")
        if mode == "error":
            broken(f"{where}'error': expected an error at the first draw, got outputs")
        for i, j in itertools.combinations(s.agents, 2):
            _draws_as_claimed(draw, i, j, mode, f"{where}{mode!r}, agents {i} and {j} alike: output")


# Under a number: all agents' outputs of one input, under one seed and under another.
_Draw = Callable[[int], tuple[list[Tree], list[Tree]]]


def _modes_of_network(s: NetworkSubject) -> Iterator[tuple[str, str, _Draw]]:
    """Every strategy in every mode, with a key and without one."""
    equal = _alike(s)
    for strategy, keyed, mode in itertools.product(s.strategies, (True, False), ("error", "same", "different")):
        called = replace(equal, net=s.net.replace(strategy=strategy, randomness=mode))

        def once(k: int, called: NetworkSubject = called, keyed: bool = keyed) -> list[Tree]:
            with seeded(s.seed + k):
                return called.trained(key=s.key(k) if keyed else None)[0]

        if strategy == "vmap" and mode == "different" and not keyed:
            try:
                once(0)
            except RuntimeError:
                continue  # torch's vmap refuses to draw in place apart for what it does not map

        @lru_cache
        def draw(k: int, once: Callable[[int], list[Tree]] = once) -> tuple[list[Tree], list[Tree]]:
            return once(2 * k), once(2 * k + 1)

        yield f"strategy {strategy}, {'with' if keyed else 'without'} a key, ", mode, draw


def _mode_of_module(s: ModuleSubject) -> Iterator[tuple[str, str, _Draw]]:
    """What is claimed of the module; where agents differ in parameters, the second gets those of the first."""
    i, j = s.pair
    if j not in s.host.group_of(i):
        raise CheckError("agents of different groups cannot be made alike")
    numbers = s.numbers
    if len(s.classes()) > 1:
        numbers = s.exchanging([i if agent == j else agent for agent in range(s.n)]).numbers

    def draw(k: int) -> tuple[list[Tree], list[Tree]]:
        equal = replace(replace(s, seed=s.seed + k).whole().alike(), numbers=numbers)
        return equal.outputs(train=True), equal.outputs(train=True, fold=1)

    yield "randomness ", str(s.host.claims.randomness), draw


_SEEN = 32  # draws that show, where two agents agree by chance on half of them and on all of them never


def _draws_as_claimed(draw: _Draw, i: int, j: int, mode: str, where: str) -> None:
    """Raise unless two agents always draw the same, or at times not, as the mode says."""
    if mode == "same":
        for k in range(8):
            outputs, _ = draw(k)
            agree(outputs[j], outputs[i], f"{where}, draw {k}")
        return
    seen = 0
    for k in range(8 * _SEEN):
        outputs, again = draw(k)
        if not _equal(outputs[i], outputs[j]):
            return
        # A mask may fall on a unit that is dead for this input, or be the same by chance: that shows nothing.
        seen += not _equal(outputs[i], again[i])
        if k == _SEEN and not seen:
            break
        if seen == _SEEN:
            broken(f"{where}: expected different numbers in one of {seen} draws, got the same")
    raise CheckError(f"draws are seen in an agent's outputs too seldom to tell: {seen} times")


def _equal(one: Tree, other: Tree) -> bool:
    return not any(gap(a, b) for a, b in zip(flatten(one)[0], flatten(other)[0], strict=True))


def _alike(s: NetworkSubject) -> NetworkSubject:
    """All agents with the parameters, buffers and inputs of agent 0: only randomness tells them apart."""

    def rows(leaves: Params) -> Params:
        return {k: leaf[s.slots[k][0]].expand(leaf.shape).clone() for k, leaf in leaves.items()}

    return replace(s.taking([0] * s.n), params=rows(s.params), state=rows(s.state))


@law(45, SHOWS_MASK, SEVERAL_AGENTS, LOCAL)
def masks_are_independent(s: NetworkSubject) -> None:
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


@law(46, SLOTS)
def mode_is_irrelevant_in_evaluation(s: NetworkSubject) -> None:
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
