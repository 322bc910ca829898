"""Laws 48 to 50: calls leave nothing behind, and nobody else's call shows in them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl._torch_compat import write_count
from functional_marl.laws.law import agree, broken, law
from functional_marl.laws.subject import Subject
from functional_marl.laws.threads import agree_in_threads

__all__ = [
    "calls_are_reentrant",
    "generators_are_untouched",
    "networks_pickle",
    "nothing_is_changed",
    "populations_are_loops",
    "threads_agree",
]


class Trip(Exception):
    """Raised from inside a module."""


# What the module of a subject does before and after its forward, armed by one law at a time. Plain functions
# and a plain list: a deepcopy of the module keeps them.
_before: list[Callable[[], None]] = []
_after: list[Callable[[], None]] = []


def _run_before(module: nn.Module, inputs: Any) -> None:
    for act in tuple(_before):
        act()


def _run_after(module: nn.Module, inputs: Any, output: Any) -> None:
    for act in tuple(_after):
        act()


class _Watched:
    """A factory whose modules run ``_before`` and ``_after``."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build

    def __call__(self) -> nn.Module:
        module = self.build()
        module.register_forward_pre_hook(_run_before)
        module.register_forward_hook(_run_after)
        return module


def _watched(s: Subject) -> Subject:
    """The same subject, where the module runs what is armed."""
    settings = ("n_agents", "centralized", "agent_dim", "out_agent_dim", "randomness", "strategy")
    given = {name: getattr(s.net, name) for name in settings}
    assert s.build is not None
    net = s.ops.network(_Watched(s.build), sharing=s.net.sharing_spec, example=s.net.module_spec.example, **given)
    return replace(s, net=net)


def _trip() -> None:
    raise Trip


@law(48, "parameters", "factory", "settings", cost=2)
def nothing_is_changed(s: Subject) -> None:
    """apply(P, B, x) leaves P, B, x and f as they are, also where f raises.

    Inputs, parameters, buffers and the module are unchanged after evaluation, after training and after an
    exception in the middle of the module.
    """
    args, kwargs = s.placed()
    given = {"inputs": args, "kwargs": kwargs, "params": s.own, "state": s.state}
    copies = tree_map(torch.clone, given)
    versions = [write_count(leaf) for leaf in flatten(given)[0]]

    def look(where: str) -> None:
        agree(given, copies, where, exact=True)
        now = [write_count(leaf) for leaf in flatten(given)[0]]
        if now != versions:
            broken(f"{where}: written in place, though with the same numbers")

    t = _watched(s)

    def run(**how: Any) -> Any:
        how |= {"state": s.state} if s.state else {}
        return t.ops.apply(t.net, s.own, *args, kwargs=kwargs, **how)

    before = run()
    look("after evaluation")
    trained = run(train=True, mutable=True, key=s.key())
    look("after training")
    for how in ({}, {"train": True, "mutable": True, "key": s.key()}):
        _after.append(_trip)
        try:
            run(**how)
        except Trip:
            pass
        else:
            broken("expected the exception of the module, got outputs")
        finally:
            _after.remove(_trip)
        look("after an exception")
    agree(run(), before, "evaluation after an exception: outputs", exact=True)
    agree(run(train=True, mutable=True, key=s.key()), trained, "training after an exception", exact=True)
    _leaves_a_module(s)


def _leaves_a_module(s: Subject) -> None:
    """The same for a module that is given instead of a factory, where its reset can redraw it."""
    assert s.build is not None
    with torch.random.fork_rng(devices=[]):
        module = s.build()
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        return
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        net = s.ops.network(
            module, s.n, sharing=s.net.sharing_spec, centralized=s.net.centralized, agent_dim=s.net.agent_dim
        )
    except StructureError:
        return
    s.ops.init_params(net, s.key())
    replace(s, net=net, out_dim=next(dim for dim in s.dims if dim is not None)).trained(key=s.key())
    agree(dict(module.state_dict()), before, "the module given as build", exact=True)


@law(49, "parameters", "factory", "settings")
def generators_are_untouched(s: Subject) -> None:
    """With a key, no global generator is written or read.

    Torch's, Python's and numpy's generators are where they were, and their seed makes no difference.
    """
    numpy: Any = sys.modules.get("numpy")

    def states() -> list[Any]:
        found = [torch.get_rng_state().tolist(), random.getstate()]
        return [*found, [str(part) for part in numpy.random.get_state()]] if numpy else found

    def results() -> list[Tree]:
        fresh = [s.ops.init_params(s.net, s.key()), s.ops.init_state(s.net, s.key())]
        keys = [s.ops.split(s.key(), 3), s.ops.fold_in(s.key(), 5)]
        return [*fresh, *keys, s.call(), s.call(key=s.key()), s.trained(key=s.key())]

    with torch.random.fork_rng(devices=[]):
        found: list[list[Tree]] = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = states()
            found.append(results())
            for name, now, was in zip(("torch", "random", "numpy"), states(), before, strict=False):
                if now != was:
                    broken(f"the global generator of {name} moved during calls with a key")
    agree(found[1], found[0], "results under two seeds of torch's generator", exact=True)


@law(50, "parameters", "settings", foreign=False, cost=8)
def threads_agree(s: Subject) -> None:
    """y in any thread = y alone.

    Threads that call one network at once, each with parameters of its own, get what they would get alone.
    """
    many = [replace(s, params={k: leaf + t for k, leaf in s.own.items()}) for t in range(4)]

    def call(one: Subject) -> Tree:
        return one.outputs(), one.trained(key=s.key())

    agree_in_threads([partial(call, one) for one in many], [call(one) for one in many], rounds=5, pause=1e-5)


@law(50, "parameters", "factory", "settings", foreign=False)
def calls_are_reentrant(s: Subject) -> None:
    """y is the same where f itself calls apply on its own network with other parameters.

    A call in the middle of a call sees its own parameters, and so does the outer one afterwards.
    """
    t = _watched(s)
    other = replace(t, params={name: leaf + 1 for name, leaf in s.own.items()})
    outer, inner, found = t.outputs(), other.outputs(), list[Any]()

    def call_again() -> None:
        _before.remove(call_again)
        found.append(other.outputs())
        _before.append(call_again)

    _before.append(call_again)
    try:
        again = t.outputs()
    finally:
        _before.remove(call_again)
    if not found:
        broken("expected the module to be called, and it was not")
    agree(found[0], inner, "the call inside: outputs", exact=True)
    agree(again, outer, "the call around it: outputs", exact=True)


@law(50, "parameters", "factory", "settings", foreign=False)
def networks_pickle(s: Subject) -> None:
    """unpickle(pickle(net)) is net: settings, outputs and fresh parameters.

    A network goes to another process and means the same there.
    """
    copied = s.ops.copied(s.net)
    settings = ("n_agents", "sharing_spec", "centralized", "agent_dim", "out_agent_dim", "randomness", "strategy")
    for name in settings:
        if getattr(copied, name) != getattr(s.net, name):
            broken(f"{name}: expected {getattr(s.net, name)!r}, got {getattr(copied, name)!r}")
    agree(replace(s, net=copied).outputs(), s.outputs(), "outputs", exact=True)
    fresh = s.ops.init_params(copied, s.key())
    agree(fresh, s.ops.init_params(s.net, s.key()), "fresh parameters", exact=True)


@law(50, "parameters", "factory", "settings", "vmap", foreign=False)
def populations_are_loops(s: Subject) -> None:
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
