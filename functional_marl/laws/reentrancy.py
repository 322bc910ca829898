"""Nobody else's call shows in a call: threads, calls inside calls, copies in other processes, populations (law 50)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from functional_marl._pytrees import Tree, tree_map
from functional_marl.laws._capabilities import EVALUATION, FACTORY, NUMBERS, REPEATABLE, RUNS, SLOTS, VMAP
from functional_marl.laws._compare import agree, broken
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._restore import kept
from functional_marl.laws._turns import agree_in_turns
from functional_marl.laws._watched import BEFORE, watched

__all__ = ["calls_are_reentrant", "networks_pickle", "populations_are_loops", "threads_agree"]


@law(50, RUNS, NUMBERS, EVALUATION, REPEATABLE, default=False, cost=8)
def threads_agree(s: NetworkSubject | ModuleSubject) -> None:
    """y in any thread = y alone.

    Threads that call one network at once, our own each with parameters of its own, get what they would get alone.
    """
    if isinstance(s, NetworkSubject):
        many = [s.with_parameters({k: leaf + t for k, leaf in s.params.items()}) for t in range(2)]
        agree_in_turns([partial(_all_of, one) for one in many], seed=s.seed)
        return
    cases, module = [s, s.redrawn(s.seed + 1)], s.host.module
    with kept(module):
        module.eval()
        agree_in_turns([partial(_evaluated, case) for case in cases], seed=s.seed)


def _all_of(s: NetworkSubject) -> Tree:
    return s.outputs(), s.trained(key=s.key())


def _evaluated(s: ModuleSubject) -> Tree:
    args, kwargs = s.host.rebuild(s.leaves)
    with torch.no_grad():
        return s.host.read(s.host.module(*args, **kwargs))


@law(50, SLOTS, FACTORY)
def calls_are_reentrant(s: NetworkSubject) -> None:
    """y is the same where f itself calls apply on its own network with other parameters.

    A call in the middle of a call sees its own parameters, and so does the outer one afterwards.
    """
    t = watched(s)
    other = replace(t, params={name: leaf + 1 for name, leaf in s.params.items()})
    outer, inner, found = t.outputs(), other.outputs(), list[Any]()

    def call_again() -> None:
        BEFORE.remove(call_again)
        found.append(other.outputs())
        BEFORE.append(call_again)

    BEFORE.append(call_again)
    try:
        again = t.outputs()
    finally:
        BEFORE.remove(call_again)
    if not found:
        broken("expected the module to be called, and it was not")
    agree(found[0], inner, "the call inside: outputs", exact=True)
    agree(again, outer, "the call around it: outputs", exact=True)


@law(50, SLOTS, FACTORY)
def networks_pickle(s: NetworkSubject) -> None:
    """unpickle(pickle(net)) is net: settings, outputs and fresh parameters.

    A network goes to another process and means the same there.
    """
    copied = s.ops.copied(s.net)
    settings = ("n_agents", "sharing_spec", "centralized", "agent_dim", "out_agent_dim", "randomness", "strategy")
    for name in settings:
        if getattr(copied, name) != getattr(s.net, name):
            broken(f"{name}: expected {getattr(s.net, name)!r}, got {getattr(copied, name)!r}")
    # The first call of a network may take another kernel than later ones, which differs in the last bit.
    twins = (replace(s, net=copied), s)
    found, wanted = [[one.outputs() for one in twins] for _ in range(2)][-1]
    agree(found, wanted, "outputs", exact=True)
    fresh = s.ops.init_params(copied, s.key())
    agree(fresh, s.ops.init_params(s.net, s.key()), "fresh parameters", exact=True)


@law(50, SLOTS, FACTORY, VMAP)
def populations_are_loops(s: NetworkSubject) -> None:
    """init(keys)[p] = init(keys[p]) and vmap(apply)(P)[p] = apply(P[p]).

    A batch of keys gives a population of parameters, and one mapped call evaluates it.
    """
    keys: Tensor = s.ops.split(s.key(), 3)
    many = s.ops.init_params(s.net, keys, dtype=torch.float64)
    states = s.ops.init_state(s.net, keys, dtype=torch.float64)
    args, kwargs = s.placed()

    def run(params: Any, state: Any, key: Tensor, train: bool) -> Any:
        how: dict[str, Any] = {"key": key, "train": True, "mutable": True} if train else {}
        return s.ops.apply(s.net, params, *args, kwargs=kwargs, state=state, **how)

    for p in range(3):
        one = s.ops.init_params(s.net, keys[p], dtype=torch.float64)
        agree({k: leaf[p] for k, leaf in many.items()}, one, f"member {p}: fresh parameters", exact=True)
        one = s.ops.init_state(s.net, keys[p], dtype=torch.float64)
        agree({k: leaf[p] for k, leaf in states.items()}, one, f"member {p}: fresh state", exact=True)
    for train in (False, True):

        def member(params: Any, state: Any, key: Tensor, train: bool = train) -> Any:
            return run(params, state, key, train)

        # With a key nothing is drawn, so vmap's own word on randomness is "error".
        together = vmap(member)(many, states, keys)
        for p in range(3):
            params, state = ({k: leaf[p] for k, leaf in leaves.items()} for leaves in (many, states))
            got = tree_map(lambda leaf, p=p: leaf[p], together)
            agree(got, run(params, state, keys[p], train), f"member {p}, train={train}: outputs")
