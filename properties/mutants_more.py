"""Mutants with wrong chunks, pooled and masked critics and masked agents, and second mutants of other laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import functional_marl as fm
from functional_marl._lowering.linear_kernels import forced_chunk
from functional_marl._pytrees import Params, Tree, tree_map
from functional_marl._sharing import Sharing
from properties.mutants import Op, applied, index_leaks, late_boundary, mutant, next_slot, slots
from properties.mutants_trees import mean_gradient, merged, reshared

# --- chunks -----------------------------------------------------------------------------------------------


def in_chunks(net: fm.Network, train: bool) -> bool:
    return forced_chunk() is not None


def first_chunk_learns(net: fm.Network, params: Params) -> Params:
    return {name: torch.cat([leaf[:1], leaf[1:].detach()]) for name, leaf in params.items()}


mutant("chunks_make_the_whole", "off by one between chunks", apply=applied(net=slots(late_boundary), when=in_chunks))
mutant("chunks_make_the_whole", "the first chunk learns", apply=applied(params=first_chunk_learns, when=in_chunks))
mutant(
    "chunks_make_the_whole",
    "each chunk of the batch is centred alone",
    apply=applied(inputs=lambda leaf, dim: leaf - leaf.mean(0, keepdim=True) if dim > 0 else leaf),
)
mutant(
    "chunks_make_the_whole",
    "each chunk has its own masks",
    apply=applied(
        how=lambda net, how: how | {"key": fm.fold_in(how["key"], 1)},
        when=lambda net, train: train and in_chunks(net, train),
    ),
)

# --- pooled and masked critics ----------------------------------------------------------------------------


def features_first(leaf: Tensor, dim: int) -> Tensor:
    """Agents are merged after the features: [n, F] is read as [F, n]."""
    return leaf.transpose(dim, dim + 1).reshape(leaf.shape) if dim + 1 < leaf.ndim else leaf


def last_left_out(leaf: Tensor, dim: int) -> Tensor:
    kept = torch.arange(leaf.shape[dim]) < leaf.shape[dim] - 1
    return leaf * kept.view(-1, *[1] * (leaf.ndim - dim - 1)).to(leaf.dtype)


def masks(change: Callable[[Tensor, int], Tensor]) -> Op:
    """``apply`` with another mask of agents: ``change(alive, axis of agents)``."""

    def apply(net: fm.Network, params: Params, seen: Any, *args: Tree, **how: Any) -> Any:
        if isinstance(seen, dict) and "alive" in seen:
            dim: Any = net.agent_dim[0] if isinstance(net.agent_dim, tuple) else net.agent_dim
            seen = {**seen, "alive": change(seen["alive"], dim)}
        return fm.apply(net, params, seen, *args, **how)

    return apply


mutant("pooled_critics_are_symmetric", "features ahead of agents", apply=applied(inputs=features_first))
mutant("pooled_critics_are_symmetric", "the agent's index leaks", apply=applied(inputs=index_leaks))
mutant("pooled_critics_are_symmetric", "the last agent is left out", apply=applied(inputs=last_left_out))
mutant("masked_critics_look_away", "the mask is ignored", apply=masks(lambda alive, dim: torch.ones_like(alive)))
mutant("masked_critics_look_away", "the mask of the next agent", apply=masks(lambda alive, dim: alive.roll(1, dim)))
mutant(
    "masked_critics_look_away",
    "the mask of the first row",
    apply=masks(lambda alive, dim: alive[:1].expand(alive.shape)),
)

mutant(
    "masked_agents_are_inert",
    "mean field: agents see each other's mean",
    apply=applied(inputs=lambda leaf, dim: leaf + 0.1 * leaf.mean(dim, keepdim=True)),
)
mutant("masked_agents_are_inert", "all agents get the mean gradient", apply=applied(params=mean_gradient))
mutant(
    "masked_agents_are_inert",
    "outputs are scaled by the largest",
    apply=applied(outputs=lambda leaf, dim: leaf / (1 + leaf.abs().amax(dim, keepdim=True))),
)


# --- second mutants ---------------------------------------------------------------------------------------


def reversed_agents(sharing: Sharing) -> list[int]:
    return list(sharing)[::-1]


def with_last_slot(net: fm.Network, params: Params) -> Params:
    """A part of the last slot is added to every slot."""
    return {name: leaf + 1e-3 * leaf[-1:] for name, leaf in params.items()}


def renamed(net: fm.Network, params: Params) -> Params:
    """The number of the slot leaks."""
    steps = {name: torch.arange(len(leaf), dtype=leaf.dtype) for name, leaf in params.items()}
    return {name: leaf + 0.1 * steps[name].view(-1, *[1] * (leaf.ndim - 1)) for name, leaf in params.items()}


def first_row_rounded(params: Params, net: fm.Network, new: fm.Network) -> Params:
    return {name: torch.cat([leaf[:1], leaf[1:].float().to(leaf.dtype)]) for name, leaf in params.items()}


mutant("refining_keeps_outputs", "one slot is rounded", reshare=reshared(first_row_rounded))
mutant("refinement_composes", "one slot is rounded", reshare=reshared(first_row_rounded))
mutant(
    "coarsen_after_refine",
    "mean over the wrong members",
    reshare=merged(lambda rows: rows.mean(0), lambda agents: [i + 1 for i in agents]),
)
mutant("relabelling_keeps_outputs", "the number of the slot leaks", apply=applied(params=renamed))
mutant("unused_slots_are_inert", "the last slot leaks", apply=applied(params=with_last_slot))
mutant(
    "shared_equivariance",
    "mean field: the first agent leaks",
    apply=applied(inputs=lambda leaf, dim: leaf + 0.1 * leaf.select(dim, 0).unsqueeze(dim)),
)
mutant(
    "shared_equivariance",
    "outputs of agents are sorted",
    apply=applied(outputs=lambda leaf, dim: leaf.sort(dim).values if leaf.is_floating_point() else leaf),
)
mutant("independent_equivariance", "slots in reverse", apply=applied(net=slots(reversed_agents)))
mutant("independent_equivariance", "the agent's index leaks", apply=applied(outputs=index_leaks))
mutant("cluster_equivariance", "the agent's index leaks", apply=applied(inputs=index_leaks))
mutant("equal_inputs_equal_outputs", "the agent's index leaks", apply=applied(inputs=index_leaks))
mutant("centralized_rows_are_equal", "the agent's index leaks", apply=applied(outputs=index_leaks))
mutant("centralized_sees_all", "the last agent is left out", apply=applied(inputs=last_left_out))
mutant(
    "centralized_sees_all",
    "the joint input is detached",
    apply=applied(inputs=lambda leaf, dim: leaf.detach()),
)
mutant(
    "gradient_reaches_own_slot",
    "off by one in clusters",
    apply=applied(net=slots(late_boundary)),
)
mutant("gradient_reaches_own_slot", "the next slot", apply=applied(net=slots(next_slot)))
mutant(
    "dropped_agents",
    "parameters are divided by the number of agents",
    apply=applied(params=lambda net, params: {name: leaf / net.n_agents for name, leaf in params.items()}),
)
mutant("tied_agents_stay_tied", "off by one in the call", apply=applied(net=slots(late_boundary)))


class Decaying(torch.optim.Adam):
    """Weights decay by the norm of the whole leaf, with all agents."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for leaf in self.param_groups[0]["params"]:
                leaf -= 1e-2 * leaf / (1 + leaf.norm())
        return super().step(closure)


mutant("optimizer_commutes_with_stacking", "decays by the norm of the stack", optimizer=Decaying)


def flat_batch(leaf: Tensor, dim: int) -> Tensor:
    """With two batch axes, the rows of the batch are reversed."""
    return leaf.flip(0) if dim == 2 else leaf


def no_rows_one_axis(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """An empty batch gives outputs without a batch axis."""
    found = fm.apply(net, params, *args, **how)
    return tree_map(lambda leaf: leaf.flatten(0, 1) if leaf.numel() == 0 and leaf.ndim > 1 else leaf, found)


mutant("batch_is_a_loop", "two batch axes are read backwards", apply=applied(inputs=flat_batch))
mutant("empty_batches", "an empty batch loses an axis", apply=no_rows_one_axis)


def by_slots(net: fm.Network, key: Any, **how: Any) -> Params:
    """The number of slots goes into the key."""
    slots_of = max(sharing.n_slots for sharing in net.sharing.values())
    return fm.init_params(net, fm.fold_in(key, slots_of), **how)


def backwards(net: fm.Network, key: Any, **how: Any) -> Params:
    """Keys go to slots in reverse order."""
    return {name: leaf.flip(0) for name, leaf in fm.init_params(net, key, **how).items()}


mutant("initialization_is_prefix_stable", "the number of slots goes into the key", init_params=by_slots)
mutant("initialization_is_prefix_stable", "keys in reverse order", init_params=backwards)
mutant(
    "initialization_has_the_modules_distribution",
    "everything is shifted a little",
    init_params=lambda net, key, **how: {k: leaf + 0.3 for k, leaf in fm.init_params(net, key, **how).items()},
)


def pairs_alike(net: fm.Network, key: Any, **how: Any) -> Params:
    """Slots 2k and 2k + 1 have the same key."""
    params = fm.init_params(net, key, **how)
    return {name: leaf[[slot - slot % 2 for slot in range(len(leaf))]] for name, leaf in params.items()}


def opposite(leaf: Tensor, dim: int) -> Tensor:
    """Agent 1 keeps what agent 0 drops."""
    if leaf.shape[dim] < 2:
        return leaf
    first, second = leaf.select(dim, 0), leaf.select(dim, 1)
    filled = torch.where(first != 0, torch.zeros_like(first), torch.where(second != 0, second, torch.ones_like(first)))
    return leaf.index_copy(dim, torch.tensor([1]), filled.unsqueeze(dim))


mutant("slots_differ", "two slots have one key", init_params=pairs_alike)
mutant("masks_are_independent", "masks are opposite", apply=applied(outputs=opposite, when=lambda net, train: train))


def keyed_is_training(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """A key switches dropout on."""
    train = how.pop("train", False) or (how.get("key") is not None and not net.module_spec.buffers)
    return fm.apply(net, params, *args, train=train, **how)


mutant("mode_is_irrelevant_in_evaluation", "a key switches dropout on", apply=keyed_is_training)


def one_state(net: fm.Network, key: Any, **how: Any) -> Params:
    """Only the parameters have a population axis."""
    state = fm.init_state(net, key, **how)
    return (
        state
        if key is None or isinstance(key, int) or key.ndim == 1
        else {k: v[:1].expand(v.shape) for k, v in state.items()}
    )


mutant("populations_are_loops", "one state for all", init_state=one_state)
_running: list[Params] = []


def kept_by_thread(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """A call writes its parameters into the network's table and reads them back, key by key."""
    table = net.module_spec.__dict__.setdefault("a mutant's table", {})
    for name, leaf in params.items():
        table[name] = leaf
        fm.split(0, 1)  # here another thread may run
    return fm.apply(net, dict(table), *args, **how)


mutant("threads_agree", "a table in the network", apply=kept_by_thread)


def first_call_wins(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """An inner call uses the parameters of the outer call."""
    _running.append(params)
    try:
        return fm.apply(net, _running[0], *args, **how)
    finally:
        _running.pop()


mutant("calls_are_reentrant", "an inner call uses the outer call's parameters", apply=first_call_wins)
