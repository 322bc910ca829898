"""Trees in and out of slots, names of slot maps, memory, and counting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from functional_marl._errors import SharingError
from functional_marl._pytrees import Tree, flatten, leaf_names, tree_map
from functional_marl._sharing import Sharing
from functional_marl.laws._capabilities import (
    ANY_FACTORY,
    FACTORY,
    NO_SPARE_SLOTS,
    ONE_SHARING,
    SLOTS,
)
from functional_marl.laws._compare import Broken, agree, broken
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject

__all__ = [
    "nothing_is_aliased",
    "number_of_parameters",
    "presets_are_explicit_maps",
    "stack_round_trip",
]


@law(28, SLOTS, NO_SPARE_SLOTS)
def stack_round_trip(s: NetworkSubject) -> None:
    """stack(unstack(P)) = P and unstack(stack(θ)) = θ.

    Taking all agents out and putting them together again changes no bit, for parameters and state.
    """
    for what, leaves, slots in (("params", s.params, s.net.sharing), ("state", s.state, s.net.state_sharing)):
        if not leaves:
            continue
        trees: list[dict[str, Tensor]] = s.ops.unstack_agents(s.net, leaves)
        if len(trees) != s.n:
            broken(f"unstack_agents: expected {s.n} trees, got {len(trees)}")
        for i, tree in enumerate(trees):
            agree(tree, s.of_agent(i, leaves), f"unstack_agents, agent {i}: {what}", exact=True)
            agree(s.ops.agent_params(s.net, leaves, i), tree, f"agent_params of agent {i}: {what}", exact=True)
        for merge in ("error", "first"):
            try:
                back = s.ops.stack_agents(trees, sharing=slots, merge=merge)
            except SharingError as error:
                raise Broken(f"stack_agents of agents that agree, merge={merge!r}: {error}") from None
            agree(back, leaves, f"stack_agents of all agents: {what}", exact=True)
    one = s.of_agent(0)
    tiled = s.ops.stack_agents(one, n_agents=s.n)
    for name, leaf in one.items():
        agree(tiled[name], leaf.expand(s.n, *leaf.shape), f"stack_agents of one tree: {name}", exact=True)


@law(31, SLOTS, FACTORY)
def presets_are_explicit_maps(s: NetworkSubject) -> None:
    """'shared' = [0, ..., 0] and 'independent' = [0, 1, ..., n - 1].

    The named sharings are these slot maps: the same network, parameters and outputs.
    """
    for preset, slots in (("shared", [0] * s.n), ("independent", list(range(s.n)))):
        settings = {"centralized": s.net.centralized, "example": s.net.module_spec.example}
        named, explicit = (s.ops.network(s.build, s.n, sharing=each, **settings) for each in (preset, slots))
        if named.sharing_spec != explicit.sharing_spec:
            broken(f"sharing={preset!r}: expected {explicit.sharing_spec}, got {named.sharing_spec}")
        if any(sharing != Sharing(slots) for sharing in named.sharing_spec.values()):
            broken(f"sharing={preset!r}: expected {slots}, got {named.sharing_spec}")
        by_name, by_map = s.ops.init_params(named, s.key()), s.ops.init_params(explicit, s.key())
        agree(by_name, by_map, f"init_params of {preset!r} and {slots}: params", exact=True)


def _memory(tree: Tree, root: str) -> Iterator[tuple[str, int]]:
    for name, leaf in zip(leaf_names(tree, root), flatten(tree)[0], strict=True):
        if isinstance(leaf, Tensor) and leaf.numel():
            yield name, leaf.untyped_storage().data_ptr()


def _apart(made: Tree, given: Tree, what: str) -> None:
    """Raise if a tensor that was made lives in the memory of one that was given."""
    owners = {where: name for name, where in _memory(given, "given")}
    for name, where in _memory(made, what):
        if where in owners:
            broken(f"{name} lives in the memory of {owners[where]}")


@law(32, SLOTS, NO_SPARE_SLOTS)
def nothing_is_aliased(s: NetworkSubject) -> None:
    """memory(made) ∩ memory(given) = ∅.

    What is returned as new shares no memory with what was given, nor one call with the next.
    """
    args, kwargs = s.placed()
    _apart(s.call(), (args, kwargs, s.params, s.state), "outputs")
    _apart(s.trained(key=s.key()), (args, kwargs, s.params, s.state), "outputs and state of training")
    trees = [s.of_agent(i) for i in range(s.n)]
    _apart(s.ops.stack_agents(trees, sharing=s.net.sharing), trees, "stack_agents")
    _apart(s.ops.stack_agents(trees[0], n_agents=s.n), trees, "stack_agents")
    for new in (s.net.sharing_spec, "independent"):
        _apart(s.ops.reshare(s.net, s.params, new)[1], s.params, f"reshare to {new}")
    module: nn.Module = s.ops.agent_module(s.net, s.params, 0, s.state if s.state else None)
    _apart([*module.parameters(), *module.buffers()], (s.params, s.state), "agent_module")
    if s.build is not None:
        _apart(s.ops.init_params(s.net, s.key()), s.ops.init_params(s.net, s.key()), "init_params")
        keyed = s.ops.init_state(s.net, s.key())
        tree_map(lambda leaf: leaf.fill_(1), keyed)
        again: dict[str, Tensor] = s.ops.init_state(s.net, s.key())
        _apart(again, keyed, "init_state")
        slots = [list(range(s.n))]
        net: Any = s.ops.network(s.build, s.n, sharing=slots[0], example=s.net.module_spec.example)
        slots[0][:] = [0] * s.n
        if any(list(sharing) != list(range(s.n)) for sharing in net.sharing_spec.values()):
            broken(f"network: its slot maps changed with the caller's list: {net.sharing_spec}")


@law(35, ANY_FACTORY, ONE_SHARING)
def number_of_parameters(s: NetworkSubject | ModuleSubject) -> None:
    """|P| = Σ_ℓ S_ℓ · |ℓ|.

    A leaf is stored once a slot, a tied weight once for all its names.
    """
    found, wanted = _of_network(s) if isinstance(s, NetworkSubject) else _of_module(s)
    if found != wanted:
        broken(f"parameters: expected {wanted}, together {sum(wanted.values())}, got {found}")


def _of_network(s: NetworkSubject) -> tuple[dict[str, int], dict[str, int]]:
    """For every leaf: the numbers of a fresh one, and one agent's in every slot."""
    found = {name: leaf.numel() for name, leaf in s.ops.init_params(s.net, s.key()).items()}
    one = s.built(s.seed)[0]
    return found, {name: s.net.sharing[name].n_slots * leaf.numel() for name, leaf in one.items()}


def _of_module(s: ModuleSubject) -> tuple[dict[str, int], dict[str, int]]:
    """All parameters together: those of the module, and those of the networks of all slots."""
    one = sum(leaf.numel() for leaf in s.single(0).parameters())
    slots = len(set(next(iter(s.slots.values()))))
    name = f"{slots} slots of {one}"
    return {name: sum(leaf.numel() for leaf in s.host.module.parameters())}, {name: slots * one}
