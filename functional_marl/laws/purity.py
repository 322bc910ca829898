"""Calls leave nothing behind (laws 33, 48 and 49)."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl._torch_compat import write_count
from functional_marl.laws._capabilities import (
    BUILD,
    EVALUATION,
    FACTORY,
    GRADIENTS,
    MODULE,
    NO_MEMORY,
    NUMBERS,
    RUNS,
    SEEDED,
    SLOTS,
)
from functional_marl.laws._compare import Broken, agree, broken
from functional_marl.laws._held import registered_and_hidden
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._restore import Snapshot, differentiable_attention, kept, seeded
from functional_marl.laws._subject import CheckError, Subject
from functional_marl.laws._watched import AFTER, Trip, trip, watched

__all__ = [
    "calls_leave_no_memory",
    "copies_are_whole",
    "generators_are_untouched",
    "nothing_is_changed",
    "outputs_are_numbers",
    "state_dicts_are_whole",
]


@law(48, RUNS, first=1)
def outputs_are_numbers(s: Subject) -> None:
    """y_i is NaN only where f(θ_i, x_i) is.

    Outputs hold no NaN, unless the network of one agent gives it for the same input.
    """
    outputs = s.outputs()
    for i, output in enumerate(outputs):
        for k, leaf in enumerate(flatten(output)[0]):
            if leaf.is_floating_point() and bool(leaf.isnan().any()) and not _nan_alone(s, i):
                count = f"{int(leaf.isnan().sum())} of {leaf.numel()}"
                broken(f"agent {i}: output[{k}] is nan in {count} numbers, for inputs that are not")


def _nan_alone(s: Subject, agent: int) -> bool:
    if not s.known_alone or s.fault is not None:
        return False
    try:
        found = flatten(s.alone(agent))[0]
    except CheckError:
        return False
    return any(leaf.is_floating_point() and bool(leaf.isnan().any()) for leaf in found)


@law(48, MODULE, RUNS, NUMBERS, NO_MEMORY, first=4, own_modes=True)
def calls_leave_no_memory(s: ModuleSubject) -> None:
    """f(x), f(x'), f(x) give y, y', y in evaluation.

    In evaluation a call leaves nothing that a later call sees, unless memory=True claims it: what it writes into
    attributes, buffers, caches or generators of its own makes no difference. Inputs come in the same tensors,
    refilled, as rollouts give them.
    """
    host, cases = s.host, (s, s.redrawn(s.seed + 1000), s)
    wanted = [host.run(case.leaves, train=False, seed=s.seed) for case in cases[:2]]
    given = [leaf.clone() for leaf in s.leaves]
    with kept(host.module), differentiable_attention(host.module):
        host.module.train(False)
        before = Snapshot(host.module)  # after the flags of training, which are ours
        for k, case in enumerate(cases):
            for leaf, new in zip(given, case.leaves, strict=True):
                leaf.copy_(new)
            with seeded(s.seed):
                found = host.call(given, False)
            left = before.changed()
            try:
                agree(found, wanted[k % 2], f"call {k + 1} of three: outputs")
            except Broken as error:
                kept_in = f"; calls have changed {', '.join(left)}" if left else ""
                raise Broken(f"{error}{kept_in}") from None


@law(48, RUNS, NUMBERS, own_modes=True, cost=2)
def nothing_is_changed(s: NetworkSubject | ModuleSubject) -> None:
    """f(P, B, x) leaves P, x and, in evaluation, B as they are, also where f raises.

    Inputs, parameters, buffers and the module are unchanged after evaluation, after training and after an exception
    in the middle of a call; only training moves buffers, of modules that keep them.
    """
    if isinstance(s, NetworkSubject):
        _apply_changes_nothing(s)
    else:
        _calls_change_nothing(s)


def _calls_change_nothing(s: ModuleSubject) -> None:
    host, module, wanted = s.host, s.host.module, s.outputs(train=False)
    names = [name for name, _ in module.named_parameters()]
    for train, breaks in ((False, False), (True, False), (False, True), (True, True)):
        where = f"train={train}" + (", after an exception in the middle of a call" if breaks else "")
        with kept(module), seeded(s.seed):
            module.train(train)  # some modules' own train() returns nothing
            flags = {name for name, part in module.named_modules() if part.training}
            watched_leaves = {"inputs": list(s.leaves), "parameters": list(module.parameters())}
            watched_leaves |= {} if train else {"buffers": list(module.buffers())}
            given = {what: [leaf for leaf in some if not leaf.is_meta] for what, some in watched_leaves.items()}
            before = {what: [leaf.detach().clone() for leaf in some] for what, some in given.items()}
            with suppress(Exception), _breaking(module) if breaks else _nothing():
                host.call(s.leaves, train)
            for what, some in given.items():
                agree([leaf.detach() for leaf in some], before[what], f"{where}: {what}", exact=True)
            now = {name for name, part in module.named_modules() if part.training}
            if now != flags:
                changed = sorted(name or "the module" for name in now ^ flags)
                broken(f"{where}: the call has changed the flag training of {', '.join(changed)}")
            lost = sorted(set(names) - {name for name, _ in module.named_parameters()})
            if lost:
                broken(f"{where}: the parameters {lost} are gone from the module")
            if breaks:
                _runs_as_before(s, wanted, where, values=not train)


def _runs_as_before(s: ModuleSubject, wanted: list[Tree], where: str, values: bool) -> None:
    try:
        with seeded(s.seed):
            outputs = s.by_agent(s.host.call(s.leaves, False))
    except Exception as error:
        broken(f"{where}, evaluation: expected outputs, got {type(error).__name__}: {error}")
    else:
        if values and s.repeatable:
            agree(outputs, wanted, f"{where}, evaluation: outputs")


@contextmanager
def _nothing() -> Generator[None]:
    yield


@contextmanager
def _breaking(module: nn.Module) -> Generator[None]:
    """Every part of the module raises after its forward, the first one that is called."""

    def stop(_part: nn.Module, _inputs: Any, _output: Any) -> None:
        raise Trip

    parts = [part for part in registered_and_hidden(module) if part is not module]
    hooks = [part.register_forward_hook(stop) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _apply_changes_nothing(s: NetworkSubject) -> None:
    args, kwargs = s.placed()
    given = {"inputs": args, "kwargs": kwargs, "params": s.params, "state": s.state}
    copies = tree_map(torch.clone, given)
    versions = [write_count(leaf) for leaf in flatten(given)[0]]

    def look(where: str) -> None:
        agree(given, copies, where, exact=True)
        now = [write_count(leaf) for leaf in flatten(given)[0]]
        if now != versions:
            broken(f"{where}: written in place, though with the same numbers")

    if s.build is None:
        s.call()
        look("after evaluation")
        return
    t = watched(s)

    def run(**how: Any) -> Any:
        how |= {"state": s.state} if s.state else {}
        return t.ops.apply(t.net, s.params, *args, kwargs=kwargs, **how)

    run()  # the first call of a network may take another kernel than later ones, which differs in the last bit
    before = run()
    look("after evaluation")
    trained = run(train=True, mutable=True, key=s.key())
    look("after training")
    for how in ({}, {"train": True, "mutable": True, "key": s.key()}):
        AFTER.append(trip)
        try:
            run(**how)
        except Trip:
            pass
        else:
            broken("expected the exception of the module, got outputs")
        finally:
            AFTER.remove(trip)
        look("after an exception")
    agree(run(), before, "evaluation after an exception: outputs", exact=True)
    agree(run(train=True, mutable=True, key=s.key()), trained, "training after an exception", exact=True)
    _leaves_a_module(s)


def _leaves_a_module(s: NetworkSubject) -> None:
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


@law(49, SLOTS, FACTORY)
def generators_are_untouched(s: NetworkSubject) -> None:
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

    found: list[list[Tree]] = []
    for seed in (1, 2):
        with seeded(seed):
            before = states()
            found.append(results())
            for name, now, was in zip(("torch", "random", "numpy"), states(), before, strict=False):
                if now != was:
                    broken(f"the global generator of {name} moved during calls with a key")
    agree(found[1], found[0], "results under two seeds of the global generators", exact=True)


@law(33, MODULE, RUNS, NUMBERS, GRADIENTS, EVALUATION, SEEDED)
def copies_are_whole(s: ModuleSubject) -> None:
    """y of deepcopy(f) follows the parameters of the copy, and load_state_dict(f.state_dict()) gives y of f.

    A copy computes with its own parameters and with nobody else's, also the copy of a module that has been called.
    """
    wanted = s.outputs()
    host = copy.copy(s.host)
    try:
        host.module = _copied(s)
    except Exception as error:
        broken(f"deepcopy: {type(error).__name__}: {error}")
    twin = replace(s, host=host)
    numbers = {name: 0.5 * leaf.detach() + 0.25 for name, leaf in s.host.params().items()}
    with torch.no_grad():
        for name, leaf in twin.host.params().items():
            leaf.data.copy_(numbers[name])
    with_numbers = replace(s, numbers=numbers).outputs()
    changed = "parameters of a deepcopy changed: its outputs, against those of the original"
    agree(twin.outputs(), with_numbers, changed, oracle=True)  # the changed numbers may well give NaN
    agree(s.outputs(), wanted, "parameters of a deepcopy changed: outputs of the original", exact=True)
    host.module.load_state_dict(s.host.module.state_dict())
    agree(twin.outputs(), wanted, "state_dict loaded into a deepcopy: outputs", exact=True)


def _copied(s: ModuleSubject) -> nn.Module:
    """A copy of the module as a call leaves it; where memory is claimed, as it is before the call."""
    with kept(s.host.module), seeded(s.seed):
        if not s.host.claims.memory:
            s.host.call(s.leaves, s.train)
        return copy.deepcopy(s.host.module)


@law(33, MODULE, BUILD, RUNS, NUMBERS, EVALUATION, SEEDED, every_case=False)
def state_dicts_are_whole(s: ModuleSubject) -> None:
    """load(g, save(f)) makes y_g = y_f, for f and g built under different seeds.

    A checkpoint has all numbers that outputs, and what samplers draw under one seed, depend on.
    """
    other = s.host.again(s.seed + 1)
    if other.module is s.host.module:
        raise CheckError("the function that builds the module returns the same one again")
    try:
        other.module.load_state_dict(s.host.module.state_dict())
    except Exception as error:
        broken(f"state_dict loaded into a second module: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    twin = replace(s, host=other)
    for fold in range(1 if s.repeatable else 8):  # one draw may hide what another one shows
        agree(twin.outputs(fold=fold), s.outputs(fold=fold), "state_dict loaded into a second module: outputs")
