"""Mutants with wrong axes, wrong randomness, side effects of calls, wrong compilation, wrong groups."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import functional_marl as fm
from functional_marl._pytrees import Params, Tree, flatten, tree_map
from properties.mutants import applied, mutant, next_slot, shared, slots

# --- axes, sizes, dtypes ----------------------------------------------------------------------------------


def negative_for_outputs(net: fm.Network) -> fm.Network:
    """A negative agent_dim is resolved again on the outputs, which may have other axes."""
    negative = isinstance(net.agent_dim, int) and net.agent_dim < 0 and net.out_agent_dim is None
    return net.replace(out_agent_dim=net.agent_dim) if negative else net


mutant("agent_dim_is_a_place", "a negative axis is resolved on the outputs", apply=applied(net=negative_for_outputs))
mutant("agent_dim_is_a_place", "outputs stay in front", apply=applied(net=lambda net: net.replace(out_agent_dim=0)))
mutant(
    "batch_is_a_loop",
    "rows are centred over the batch",
    apply=applied(inputs=lambda leaf, dim: leaf - leaf.mean(0, keepdim=True) if dim > 0 else leaf),
)
mutant(
    "one_agent_is_the_network",
    "a single agent loses its axis",
    apply=lambda net, params, *args, **how: _squeezed(fm.apply(net, params, *args, **how)),
)
mutant(
    "one_agent_is_the_network",
    "a single agent is averaged with an agent that does not exist",
    apply=applied(outputs=lambda leaf, dim: leaf / 2, when=lambda net, train: net.n_agents == 1),
)


def _squeezed(outputs: Any) -> Any:
    return tree_map(torch.squeeze, outputs)


def empty_batch_raises(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    if any(leaf.numel() == 0 for leaf in flatten(args)[0]):
        raise ValueError("nothing to do")
    return fm.apply(net, params, *args, **how)


mutant("empty_batches", "an empty batch raises", apply=empty_batch_raises)
mutant("kinds_are_kept", "computes in float32", apply=applied(outputs=lambda leaf, dim: leaf.float()))
mutant(
    "kinds_are_kept",
    "outputs move to the CPU",
    apply=applied(outputs=lambda leaf, dim: torch.zeros(leaf.shape, dtype=leaf.dtype)),
)
mutant(
    "fresh_leaves_keep_kinds",
    "init_params ignores dtype=",
    init_params=lambda net, key, dtype=None, device=None: fm.init_params(net, key, device=device),
)

# --- randomness -------------------------------------------------------------------------------------------


def initialized_by(key: Callable[[fm.Network, Tensor], Any]) -> Callable[..., Params]:
    """``init_params`` under another key."""
    return lambda net, given, **how: fm.init_params(
        net, key(net, fm.key(given) if isinstance(given, int) else given), **how
    )


def in_sequence(net: fm.Network, key: Any, **how: Any) -> Params:
    """One generator for all slots, one after the other."""
    params = fm.init_params(net, key, **how)
    assert net.module_spec.build is not None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(fm.split(key, 1)[0, 1]))
        for slot in range(max(len(leaf) for leaf in params.values())):
            built = dict(net.module_spec.build().named_parameters())
            for name, leaf in params.items():
                if slot < len(leaf) and built[name].shape == leaf.shape[1:]:
                    leaf[slot] = built[name]
    return params


def one_for_all(net: fm.Network, key: Any, **how: Any) -> Params:
    return {k: leaf[:1].expand(leaf.shape).clone() for k, leaf in fm.init_params(net, key, **how).items()}


def global_key(key: Tensor) -> Tensor:
    return fm.fold_in(key, int(torch.randint(2**31, ())))


mutant("initialization_follows_the_key", "the key is not used", init_params=initialized_by(lambda net, key: 0))
mutant(
    "initialization_follows_the_key",
    "torch's generator changes the result",
    init_params=initialized_by(lambda net, key: global_key(key)),
)
mutant(
    "initialization_follows_the_key",
    "training samples from a key of its own",
    apply=applied(how=lambda net, how: how | {"key": 0}, when=lambda net, train: train),
)
mutant(
    "initialization_is_prefix_stable",
    "the number of agents goes into the key",
    init_params=initialized_by(lambda net, key: fm.fold_in(key, net.n_agents)),
)
mutant("initialization_is_the_modules_own", "one generator for all slots", init_params=in_sequence)
mutant(
    "initialization_is_the_modules_own",
    "slots in reverse",
    init_params=lambda net, key, **how: {k: leaf.flip(0) for k, leaf in fm.init_params(net, key, **how).items()},
)
mutant(
    "initialization_has_the_modules_distribution",
    "fans are those of the stacked tensor",
    init_params=lambda net, key, **how: {k: 0.2 * leaf for k, leaf in fm.init_params(net, key, **how).items()},
)
mutant("slots_differ", "one sample for all slots", init_params=one_for_all)


def mode(word: str, when: Callable[[fm.Network, bool], bool] = lambda net, train: True) -> Callable[..., Any]:
    return applied(net=lambda net: net.replace(randomness=word), when=when)


mutant("randomness_has_one_meaning", "torchrl: always the same if shared", apply=mode("same", shared))
mutant(
    "randomness_has_one_meaning",
    "torchrl: a lazy network keeps the same",
    apply=mode("same", lambda net, train: net.randomness == "different"),
)
mutant(
    "randomness_has_one_meaning",
    "same is different",
    apply=mode("different", lambda net, train: net.randomness == "same"),
)
mutant(
    "randomness_has_one_meaning",
    "error does not raise",
    apply=mode("same", lambda net, train: net.randomness == "error"),
)


def half_a_mask(leaf: Tensor, dim: int) -> Tensor:
    """Half of the features have agent 0's mask."""
    first = leaf.select(dim, 0).unsqueeze(dim).expand_as(leaf)
    return torch.cat((first[..., :128], leaf[..., 128:]), -1)


mutant(
    "masks_are_independent",
    "masks overlap",
    apply=applied(outputs=half_a_mask, when=lambda net, train: train),
)
mutant(
    "mode_is_irrelevant_in_evaluation",
    "dropout stays on if the mode is different",
    apply=applied(
        how=lambda net, how: how | {"train": True},
        when=lambda net, train: net.randomness == "different" and not net.module_spec.buffers,
    ),
)

_calls = itertools.count()

mutant("results_follow_the_seed", "calls are counted", apply=applied(outputs=lambda leaf, dim: leaf + next(_calls)))
mutant(
    "results_follow_the_seed",
    "the key is lost",
    apply=applied(
        how=lambda net, how: {name: value for name, value in how.items() if name != "key"},
        when=lambda net, train: train,
    ),
)

# --- purity -----------------------------------------------------------------------------------------------


def writing_inputs(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    for leaf in flatten(args)[0]:
        leaf += 0
    return fm.apply(net, params, *args, **how)


def writing_state(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    result = fm.apply(net, params, *args, **how)
    if how.get("mutable"):
        for name, leaf in how.get("state", {}).items():
            leaf.copy_(result[1][name])
    return result


def remembering(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """After an exception the parameters of that call stay in place."""
    kept = net.module_spec.__dict__.setdefault("a mutant's parameters", [])
    try:
        return fm.apply(net, kept[0] if kept else params, *args, **how)
    except Exception:
        kept.append({name: leaf + 1 for name, leaf in params.items()})
        raise


def stateful(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """Buffers as in an nn.Module: the next call starts with those of the last training call."""
    kept = net.module_spec.__dict__.setdefault("a mutant's state", {})
    result = fm.apply(net, params, *args, **how | ({"state": kept["state"]} if kept else {}))
    if how.get("mutable") and result[1]:
        kept["state"] = result[1]
    return result


def reinitializing(build: Any, n_agents: int, **how: Any) -> fm.Network:
    """The given module is initialized again, not copied."""
    if isinstance(build, torch.nn.Module):
        for parameter in build.parameters():
            torch.nn.init.zeros_(parameter)
    return fm.network(build, n_agents, **how)


def standardized(leaf: Tensor, dim: int) -> Tensor:
    """By the deviation over the agents, which is zero for one agent."""
    rest = leaf - leaf.mean(dim, keepdim=True)
    return rest / (rest * rest).mean(dim, keepdim=True).sqrt()


mutant("outputs_are_numbers", "divided by the deviation over the agents", apply=applied(outputs=standardized))
mutant("outputs_are_numbers", "the root of negative numbers", apply=applied(outputs=lambda leaf, dim: leaf.sqrt()))
mutant("nothing_is_changed", "the given module is initialized again", network=reinitializing)
mutant("nothing_is_changed", "inputs are written in place", apply=writing_inputs)
mutant("nothing_is_changed", "the state is written in place", apply=writing_state)
mutant("nothing_is_changed", "a failed call leaks into the next", apply=remembering)
mutant("nothing_is_changed", "the state stays in the network", apply=stateful)


def moves_the_generator(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    torch.rand(())
    return fm.apply(net, params, *args, **how)


def reads_the_generator(net: fm.Network, key: Any, **how: Any) -> Params:
    with torch.random.fork_rng(devices=[]):
        key = global_key(key)
    return fm.init_params(net, key, **how)


mutant("generators_are_untouched", "torch's generator moves", apply=moves_the_generator)
mutant("generators_are_untouched", "torch's generator is read and restored", init_params=reads_the_generator)

_scratch: dict[str, Params] = {}


def one_scratch(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """The parameters are stored in one place for all threads, as in a module."""
    _scratch["params"] = params
    time.sleep(1e-4)
    return fm.apply(net, _scratch["params"], *args, **how)


def scratch_after_the_call(net: fm.Network, params: Params, *args: Tree, **how: Any) -> Any:
    """An inner call overwrites the parameters of the outer one."""
    _scratch["params"] = params
    fm.apply(net, params, *args, **how)
    return fm.apply(net, _scratch["params"], *args, **how)


mutant("threads_agree", "one place for all threads", apply=one_scratch)
mutant("calls_are_reentrant", "one place for all calls", apply=scratch_after_the_call)
mutant(
    "networks_pickle",
    "randomness is not pickled",
    copied=lambda net: net.replace(randomness="different"),
)
mutant("networks_pickle", "slots are renamed", copied=slots(next_slot))


def first_key(net: fm.Network, key: Any, **how: Any) -> Params:
    if key.ndim == 1:
        return fm.init_params(net, key, **how)
    return fm.init_params(net, key[:1].expand(key.shape), **how)


mutant("populations_are_loops", "a population of one", init_params=first_key)

# --- compiled ---------------------------------------------------------------------------------------------


def tracing(net: fm.Network, train: bool) -> bool:
    return torch.compiler.is_compiling()


for compiled in ("compile_is_eager", "export_is_eager", "inductor_is_eager"):
    mutant(
        compiled,
        "a wrong rule, used only when tracing",
        apply=applied(params=lambda net, params: {k: p + 0.01 for k, p in params.items()}, when=tracing),
    )

# --- groups -----------------------------------------------------------------------------------------------

Groups = Mapping[str, Sequence[str]]


def ungroup_by_sorted_names(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    return fm.ungroup_agents({group: sorted(members) for group, members in groups.items()}, tree, batch_dims, **how)


def ungroup_without_single_agents(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    back = fm.ungroup_agents(groups, tree, batch_dims, **how)
    return {name: back[name] for members in groups.values() if len(members) > 1 for name in members}


def group_everything_as_float(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    grouped = fm.group_agents(groups, tree, batch_dims, **how)
    return {group: tree_map(Tensor.float, grouped[group]) for group in groups}


def group_at_axis_0(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    return fm.group_agents(groups, dict(tree.items()), 0, **how)


def ungroup_at_axis_0(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    return fm.ungroup_agents(groups, dict(tree.items()), 0, **how)


def never_squeeze(groups: Groups, tree: Any, batch_dims: int = 0, **how: Any) -> Any:
    return fm.group_agents(groups, tree, batch_dims)


mutant("group_round_trip", "agents come back in the order of names", ungroup_agents=ungroup_by_sorted_names)
mutant("group_round_trip", "single agents are lost", ungroup_agents=ungroup_without_single_agents)
mutant("group_round_trip", "everything becomes float", group_agents=group_everything_as_float)
mutant("group_layout", "agents at axis 0", group_agents=group_at_axis_0)
mutant("group_layout", "single agents keep their axis", group_agents=never_squeeze)


def drop_the_last(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {group: members[:-1] or members for group, members in fm.group_map(names, grouping).items()}


def twice(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {group: [*members, names[0]] for group, members in fm.group_map(names, grouping).items()}


def leave_a_group_empty(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {**fm.group_map(names, grouping), "an empty group": []}


def sort_members(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return {group: sorted(members) for group, members in fm.group_map(names, grouping).items()}


def sort_groups(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return dict(sorted(fm.group_map(names, grouping).items()))


def overwrite_as_torchrl_does(names: list[str], grouping: Any) -> dict[str, list[str]]:
    """torchrl 0.14 by prefix: a name without a number replaces the group that has its name."""
    if grouping is not fm.by_prefix:
        return fm.group_map(names, grouping)
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix = fm.by_prefix(name)
        if prefix == name:
            groups[name] = [name]
        else:
            groups.setdefault(prefix, []).append(name)
    return groups


for wrong in (drop_the_last, twice, leave_a_group_empty, sort_members, sort_groups, overwrite_as_torchrl_does):
    mutant("group_map_is_a_partition", wrong.__name__, group_map=wrong)


def alias_the_mapping(names: list[str], grouping: Any) -> dict[str, list[str]]:
    return dict(grouping) if isinstance(grouping, dict) else fm.group_map(names, grouping)


def alias_the_names(names: list[str], grouping: Any) -> dict[str, list[str]]:
    """As in torchrl 0.14."""
    return {"agents": names} if grouping is fm.MarlGroupMapType.ALL_IN_ONE_GROUP else fm.group_map(names, grouping)


mutant("group_map_is_the_callers", "the caller's mapping is returned", group_map=alias_the_mapping)
mutant("group_map_is_the_callers", "torchrl: the caller's list is returned", group_map=alias_the_names)
