"""Mutants with wrong gradients, and with wrong stacking, unstacking and resharing of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

import functional_marl as fm
from functional_marl._parameters import Merge
from functional_marl._pytrees import Params
from functional_marl._sharing import Sharing, resolve
from properties.mutants import Op, applied, late_boundary, mutant

# --- wrong gradients --------------------------------------------------------------------------------------


def mean_gradient(net: fm.Network, params: Params) -> Params:
    """Each slot gets the mean of its agents' gradients."""
    out: Params = {}
    for name, leaf in params.items():
        members = [max(len(net.sharing[name].members(slot)), 1) for slot in range(len(leaf))]
        part = 1 / torch.tensor(members, dtype=leaf.dtype).view(-1, *[1] * (leaf.ndim - 1))
        out[name] = leaf * part + (leaf * (1 - part)).detach()
    return out


def detached_first(net: fm.Network, params: Params) -> Params:
    first = next(iter(params))
    return {name: leaf.detach() if name == first else leaf for name, leaf in params.items()}


mutant("slot_gradient_is_the_sum", "mean for sum", apply=applied(params=mean_gradient))
mutant("slot_gradient_is_the_sum", "a leaf is detached", apply=applied(params=detached_first))


def late_unstack(net: fm.Network, params: Params) -> list[Params]:
    trees = fm.unstack_agents(net, params)
    return [trees[i] for i in late_boundary(range(len(trees)))]


mutant("slots_stay_together", "off by one in unstack", unstack_agents=late_unstack)
mutant(
    "slots_stay_together",
    "unstack rounds",
    unstack_agents=lambda net, params: [
        {name: leaf.float().to(leaf.dtype) for name, leaf in tree.items()} for tree in fm.unstack_agents(net, params)
    ],
)


def gradient_leaks(net: fm.Network, params: Params) -> Params:
    """Every slot gets a part of the gradients of all slots; outputs are right."""
    means = {name: leaf.mean(0, keepdim=True) for name, leaf in params.items()}
    return {name: leaf + means[name] - means[name].detach() for name, leaf in params.items()}


def state_leaks(net: fm.Network, params: Params, *args: Any, **how: Any) -> Any:
    """Running statistics are averaged over all slots."""
    result = fm.apply(net, params, *args, **how)
    if not how.get("mutable"):
        return result
    floats = {name: leaf for name, leaf in result[1].items() if leaf.is_floating_point()}
    means = {name: leaf.mean(0, keepdim=True).expand(leaf.shape).clone() for name, leaf in floats.items()}
    return result[0], result[1] | means


mutant("training_others_changes_nothing", "gradients leak into all slots", apply=applied(params=gradient_leaks))
mutant("training_others_changes_nothing", "statistics are averaged over all slots", apply=state_leaks)


def last_match(params: Params, patterns: Mapping[str, str]) -> dict[str, Params]:
    parts: dict[str, Params] = {label: {} for label in patterns.values()}
    for name, leaf in params.items():
        parts[[label for pattern, label in patterns.items() if fnmatchcase(name, pattern)][-1]][name] = leaf
    return parts


mutant("frozen_stays", "the last pattern decides", partition=last_match)
mutant(
    "frozen_stays",
    "combine rounds",
    combine=lambda *parts: {k: p.float().double() for k, p in fm.combine(*parts).items()},
)


class GloballyClipped(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1e-9)
        return super().step(closure)


mutant("optimizer_commutes_with_stacking", "clips by the global norm", optimizer=GloballyClipped)


# --- wrong trees ------------------------------------------------------------------------------------------


def reshared(change: Callable[[Params, fm.Network, fm.Network], Params]) -> Op:
    """``reshare`` that changes the new parameters."""

    def reshare(net: fm.Network, params: Params, sharing: Any, *, merge: Merge = "error") -> tuple[fm.Network, Params]:
        new, out = fm.reshare(net, params, sharing, merge=merge)
        return new, change(out, net, new)

    return reshare


def rolled(params: Params, net: fm.Network, new: fm.Network) -> Params:
    return {name: leaf.roll(1, 0) for name, leaf in params.items()}


def merged(fold: Callable[[Tensor], Tensor], members: Callable[[list[int]], list[int]] = list) -> Op:
    """``reshare`` with another mean, or the mean over other agents."""

    def reshare(net: fm.Network, params: Params, sharing: Any, *, merge: Merge = "error") -> tuple[fm.Network, Params]:
        new, out = fm.reshare(net, params, sharing, merge=merge)
        if merge == "mean":
            for name, leaf in out.items():
                trees, slots = fm.unstack_agents(net, params), new.sharing_spec[name]
                for slot in range(slots.n_slots):
                    agents = [i % net.n_agents for i in members(list(slots.members(slot)))]
                    rows = torch.stack([trees[i][name] for i in agents])
                    if leaf.is_floating_point():
                        leaf[slot] = fold(rows)
        return new, out

    return reshare


mutant("refining_keeps_outputs", "permuted slots", reshare=reshared(rolled))
mutant("coarsen_after_refine", "sum for mean", reshare=merged(lambda rows: rows.sum(0)))
mutant("coarsen_after_refine", "permuted slots", reshare=reshared(rolled))
mutant(
    "refine_after_coarsen",
    "mean over the wrong members",
    reshare=merged(lambda rows: rows.mean(0), lambda agents: [i + 1 for i in agents]),
)
mutant("refine_after_coarsen", "sum for mean", reshare=merged(lambda rows: rows.sum(0)))
mutant("refinement_composes", "slots are shifted at each step", reshare=reshared(rolled))


def resolved(change: Callable[[dict[str, Any], int, list[str]], dict[str, Any]]) -> Op:
    def wrong(spec: dict[str, Any], n_agents: int, names: Sequence[str]) -> dict[str, Sharing]:
        return resolve(change(spec, n_agents, list(names)), n_agents, names)

    return wrong


def forgive_leaves(spec: dict[str, Any], n_agents: int, names: list[str]) -> dict[str, Any]:
    left = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in spec)]
    return {**spec, **dict.fromkeys(left, "independent")}


def forgive_patterns(spec: dict[str, Any], n_agents: int, names: list[str]) -> dict[str, Any]:
    first = {next((p for p in spec if fnmatchcase(name, p)), None) for name in names}
    return {pattern: sharing for pattern, sharing in spec.items() if pattern in first}


mutant(
    "patterns_are_total",
    "the last pattern wins",
    resolve=resolved(lambda spec, n, names: dict(reversed(list(spec.items())))),
)
mutant("patterns_are_total", "leaves without a pattern are independent", resolve=resolved(forgive_leaves))
mutant("patterns_are_total", "patterns without a leaf are ignored", resolve=resolved(forgive_patterns))


def reversed_stack(trees: Any, **how: Any) -> Params:
    return fm.stack_agents(trees[::-1] if isinstance(trees, list) else trees, **how)


mutant("stack_round_trip", "agents are stacked in reverse", stack_agents=reversed_stack)
mutant("stack_round_trip", "off by one in unstack", unstack_agents=late_unstack)


def preset(name: str, sharing: Callable[[int], Any]) -> Op:
    def network(build: Any, n_agents: int, **how: Any) -> fm.Network:
        if how["sharing"] == name:
            how["sharing"] = sharing(n_agents)
        return fm.network(build, n_agents, **how)

    return network


mutant(
    "presets_are_explicit_maps",
    "independent in reverse",
    network=preset("independent", lambda n: list(range(n))[::-1]),
)
mutant("presets_are_explicit_maps", "shared has n slots", network=preset("shared", lambda n: Sharing([0] * n, n + 1)))


def expanded_stack(trees: Any, *, n_agents: int | None = None, **how: Any) -> Params:
    if n_agents is None:
        return fm.stack_agents(trees, **how)
    return {name: leaf.expand(n_agents, *leaf.shape) for name, leaf in trees.items()}


def lazy_reshare(net: fm.Network, params: Params, sharing: Any, **how: Any) -> Any:
    new, out = fm.reshare(net, params, sharing, **how)
    return (new, params) if new == net else (new, out)


def kept_state(net: fm.Network, key: Any = None, **how: Any) -> Params:
    kept = net.module_spec.__dict__.setdefault("a mutant's state", {})
    at = str((key, net.sharing_spec))
    if at not in kept:
        kept[at] = fm.init_state(net, key, **how)
    return kept[at]


mutant("nothing_is_aliased", "one tree is stacked by a view", stack_agents=expanded_stack)
mutant("nothing_is_aliased", "an unchanged sharing returns the given parameters", reshare=lazy_reshare)
mutant("nothing_is_aliased", "the initial state is cached and returned again", init_state=kept_state)
mutant(
    "nothing_is_aliased",
    "a module keeps the given parameters, not copies",
    agent_module=lambda net, params, agent, state=None: _holding(net, params, agent, state),
)


def _holding(net: fm.Network, params: Params, agent: int, state: Params | None) -> torch.nn.Module:
    module = fm.agent_module(net, params, agent, state)
    own = fm.agent_params(net, params, agent)
    for name, parameter in module.named_parameters():
        parameter.data = own[name]
    return module


def untied(net: fm.Network, key: Any, **how: Any) -> Params:
    params = fm.init_params(net, key, **how)
    return params | {alias: params[name].clone() for alias, name in net.module_spec.aliases.items() if name in params}


def one_an_agent(net: fm.Network, key: Any, **how: Any) -> Params:
    params = fm.init_params(net, key, **how)
    return {name: leaf[list(net.sharing[name])] for name, leaf in params.items()}


mutant("number_of_parameters", "torchrl: tied weights are untied", init_params=untied)
mutant("number_of_parameters", "a copy for each agent", init_params=one_an_agent)
