"""Wrong implementations, each of one operation. Every law has one that it must reject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import functional_marl as fm
from functional_marl._layout.inputs import place_inputs
from functional_marl._pytrees import Params, Tree, tree_map
from functional_marl._sharing import Sharing
from functional_marl.laws import Operations

Op = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """The name of a law, and operations of which one is wrong in a way that violates the law."""

    law: str
    name: str
    ops: Mapping[str, Op]

    def of(self, case: Any) -> Any:
        """The case with the wrong operation."""
        return replace(case, ops=replace(Operations(), **self.ops))


MUTANTS: list[Mutant] = []


def mutant(law: str, name: str, **ops: Op) -> None:
    MUTANTS.append(Mutant(law, name, ops))


# --- wrong evaluations ------------------------------------------------------------------------------------


def same_net(net: fm.Network) -> fm.Network:
    return net


def same_params(net: fm.Network, params: Params) -> Params:
    return params


def same_leaf(leaf: Tensor, dim: int) -> Tensor:
    return leaf


def applied(
    *,
    net: Callable[[fm.Network], fm.Network] = same_net,
    params: Callable[[fm.Network, Params], Params] = same_params,
    inputs: Callable[[Tensor, int], Tensor] = same_leaf,
    outputs: Callable[[Tensor, int], Tensor] = same_leaf,
    how: Callable[[fm.Network, dict[str, Any]], dict[str, Any]] = lambda net, how: how,
    when: Callable[[fm.Network, bool], bool] = lambda net, train: True,
) -> Op:
    """``apply`` with one input or output changed. A function of a leaf also gets the position of its agent axis."""

    def apply(given: fm.Network, leaves: Params, *args: Tree, kwargs: Any = None, **more: Any) -> Any:
        if not when(given, more.get("train", False)):
            return fm.apply(given, leaves, *args, kwargs=kwargs, **more)
        seen = place_inputs(args, dict(kwargs or {}), given.n_agents, given.agent_dim, False)
        changed = [
            leaf if dim is None or not leaf.is_floating_point() else inputs(leaf, dim)
            for leaf, dim in zip(seen.leaves, seen.dims, strict=True)
        ]
        args, kwargs = seen.rebuild(changed)
        result = fm.apply(net(given), params(given, leaves), *args, kwargs=kwargs, **how(given, more))
        y, state = result if more.get("mutable") else (result, None)
        axis = seen.position if given.out_agent_dim is None else given.out_agent_dim
        y = tree_map(lambda leaf: outputs(leaf, axis), y)
        return (y, state) if more.get("mutable") else y

    return apply


def slots(change: Callable[[Sharing], Sequence[int]]) -> Callable[[fm.Network], fm.Network]:
    """Networks whose agents use other slots."""
    return lambda net: net.replace(sharing={k: Sharing(change(s), s.n_slots) for k, s in net.sharing_spec.items()})


def next_slot(sharing: Sharing) -> list[int]:
    return [(slot + 1) % sharing.n_slots for slot in sharing]


def late_boundary(sharing: Sequence[int]) -> list[int]:
    """Off by one in clusters: each agent has the slot of the agent before it."""
    return [sharing[max(i - 1, 0)] for i in range(len(sharing))]


def index_leaks(leaf: Tensor, dim: int) -> Tensor:
    index = torch.arange(leaf.shape[dim], dtype=leaf.dtype)
    return leaf + index.view(-1, *[1] * (leaf.ndim - 1)).movedim(0, dim)


def shared(net: fm.Network, train: bool = True) -> bool:
    return all(sharing.is_shared for sharing in net.sharing_spec.values())


def by_agent(change: Callable[[int, Tensor, int], Tensor]) -> Op:
    """Each agent's row from a call of its own, with the first input changed: ``change(agent, leaf, axis)``."""

    def apply(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
        position = place_inputs(args, dict(how.get("kwargs") or {}), net.n_agents, net.agent_dim, False).position
        axis = position if net.out_agent_dim is None else net.out_agent_dim
        found = [
            fm.apply(net, params, tree_map(lambda leaf, i=i: change(i, leaf, position), args[0]), *args[1:], **how)
            for i in range(net.n_agents)
        ]
        return tree_map(lambda *rows: torch.stack([row.select(axis, i) for i, row in enumerate(rows)], axis), *found)

    return apply


def square(net: fm.Network, params: Params) -> Params:
    """Slots are indexed along the next axis, if it has the same length."""
    return {k: p.transpose(0, 1) if p.ndim > 1 and p.shape[0] == p.shape[1] else p for k, p in params.items()}


def batch_for_agents(net: fm.Network, params: Params, x: Tree, *args: Tree, **how: Any) -> Any:
    """Swapped batch and agent axes, if their sizes allow it."""
    alone = isinstance(x, Tensor) and not args and x.ndim > 2 and x.shape[0] == x.shape[1] == net.n_agents
    if not alone or net.centralized or net.agent_dim not in (0, 1):
        return fm.apply(net, params, x, *args, **how)
    out = net.out_agent_dim if net.out_agent_dim in (0, 1) else net.agent_dim
    return fm.apply(net.replace(agent_dim=1 - net.agent_dim, out_agent_dim=1 - out), params, x, **how)


mutant("agents_are_networks", "wrong gather axis", apply=applied(params=square))
mutant("agents_are_networks", "batch and agent axes are swapped", apply=batch_for_agents)
mutant(
    "agents_are_networks",
    "vmap gathers the slot next to the right one",
    apply=applied(net=slots(next_slot), when=lambda net, train: net.strategy == "vmap"),
)
mutant(
    "strategies_train_alike",
    "the plan takes its masks from elsewhere",
    apply=applied(
        how=lambda net, how: how | {"key": fm.fold_in(how["key"], 1)},
        when=lambda net, train: train and net.strategy == "plan",
    ),
)
mutant(
    "shared_is_tiled",
    "torchrl: randomness is ignored where parameters are shared",
    apply=applied(net=lambda net: net.replace(randomness="same"), when=shared),
)


def summed_state(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    result = fm.apply(net, params, *args, **how)
    if not how.get("mutable"):
        return result
    return result[0], {
        name: torch.stack([leaf[s] * len(net.state_sharing[name].members(s)) for s in range(len(leaf))])
        for name, leaf in result[1].items()
    }


mutant("shared_is_tiled", "sum for mean in shared buffers", apply=summed_state)
mutant(
    "relabelling_keeps_outputs",
    "slots are numbered by first appearance",
    apply=applied(net=slots(lambda sharing: sharing.canonical())),
)
mutant(
    "unused_slots_are_inert",
    "all slots are averaged in, with weight zero",
    apply=applied(params=lambda net, params: {k: p + 0 * p.mean(0, keepdim=True) for k, p in params.items()}),
)
mutant("shared_equivariance", "the agent's index leaks", apply=applied(outputs=index_leaks))
mutant("independent_equivariance", "wrong gather: the next slot", apply=applied(net=slots(next_slot)))
mutant("cluster_equivariance", "off by one in clusters", apply=applied(net=slots(late_boundary)))
mutant("equal_inputs_equal_outputs", "off by one in clusters", apply=applied(net=slots(late_boundary)))
mutant(
    "centralized_rows_are_equal",
    "each agent sees the others in an order of its own",
    apply=by_agent(lambda i, leaf, dim: leaf.roll(i, dim)),
)


def no_ids(x: Tensor, agent_dim: int = -2) -> Tensor:
    return torch.cat((x, x.new_zeros(*x.shape[:-1], x.shape[agent_dim])), -1)


def ids_in_front(x: Tensor, agent_dim: int = -2) -> Tensor:
    return fm.with_agent_ids(x, agent_dim).roll(x.shape[agent_dim], -1)


mutant("ids_break_equivariance", "ids are zero", with_agent_ids=no_ids)
mutant("ids_break_equivariance", "ids come first", with_agent_ids=ids_in_front)
mutant(
    "local_jacobian",
    "mean field: agents see each other's mean",
    apply=applied(inputs=lambda leaf, dim: leaf + 0.1 * leaf.mean(dim, keepdim=True)),
)
mutant(
    "local_jacobian",
    "outputs are detached",
    apply=applied(outputs=lambda leaf, dim: leaf.detach()),
)


def own_block(i: int, leaf: Tensor, dim: int) -> Tensor:
    mask = (torch.arange(leaf.shape[dim]) == i).to(leaf.dtype)
    return leaf * mask.view(-1, *[1] * (leaf.ndim - 1)).movedim(0, dim)


mutant("centralized_sees_all", "the others' blocks are zero", apply=by_agent(own_block))
mutant(
    "gradient_reaches_own_slot",
    "a little of every slot",
    apply=applied(params=lambda net, params: {k: p + 1e-3 * p.mean(0, keepdim=True) for k, p in params.items()}),
)
mutant(
    "dropped_agents",
    "outputs are centred over the agents",
    apply=applied(outputs=lambda leaf, dim: leaf - leaf.mean(dim, keepdim=True)),
)
