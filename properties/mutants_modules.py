"""Mutants of the facade: wrong detaching in critics, wrong checkpoints, calls and lazy networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._pytrees import Params
from functional_marl.laws import Operations
from properties.mutants import mutant

_right = Operations()
Sizes = Sequence[tuple[int, int]]

# --- critics ----------------------------------------------------------------------------------------------


def nothing_is_detached(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    return _right.critic(groups, (), share_params)


def all_is_detached(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    return _right.critic(groups, range(len(groups)) if detached else (), share_params)


def others_are_detached(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    return _right.critic(groups, [(k + 1) % len(groups) for k in detached], share_params)


def inputs_are_detached(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    """The observations of a group are detached, but its encoder still learns."""
    critic = _right.critic(groups, (), share_params)
    for k in detached:
        critic.module.encoders[f"g{k}"].register_forward_pre_hook(lambda net, given: (given[0].detach(),))
    return critic


def encoders_are_frozen(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    """The parameters of the encoder get no gradient, but the observations of the group do."""
    critic = _right.critic(groups, (), share_params)

    def frozen(net: nn.Module, given: Any, output: Tensor) -> Tensor:
        own = {name: leaf.detach() for name, leaf in net.named_parameters()}
        return torch.tanh(nn.functional.linear(given[0], own["0.weight"], own["0.bias"]))

    for k in detached:
        critic.module.encoders[f"g{k}"].register_forward_hook(frozen)
    return critic


def detached_are_not_seen(groups: Sizes, detached: Sequence[int], share_params: bool) -> nn.Module:
    """No gradient, because the group is not used at all."""
    critic = _right.critic(groups, (), share_params)
    for k in detached:
        critic.module.encoders[f"g{k}"].register_forward_hook(lambda net, given, output: torch.zeros_like(output))
    return critic


for wrong in (
    nothing_is_detached,
    all_is_detached,
    others_are_detached,
    inputs_are_detached,
    encoders_are_frozen,
    detached_are_not_seen,
):
    mutant("detached_groups_get_no_gradient", wrong.__name__, critic=wrong)

# --- checkpoints ------------------------------------------------------------------------------------------


def converted(change: Any) -> Any:
    """``convert_state_dict`` with something changed: ``change(new state_dict, module)``."""

    def convert(state_dict: Any, module: Any, **how: Any) -> dict[str, Any]:
        return change(_right.convert_state_dict(state_dict, module, **how), module)

    return convert


def without_buffers(new: dict[str, Any], module: Any) -> dict[str, Any]:
    kept = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    return {name: kept[name] if name.split(".", 1)[1] in module._store.names.buffers else new[name] for name in new}


def flipped(new: dict[str, Any], module: Any) -> dict[str, Any]:
    return new if module.share_params is True else {name: leaf.flip(0) for name, leaf in new.items()}


def first_agent_for_all(new: dict[str, Any], module: Any) -> dict[str, Any]:
    if module.share_params is True:
        return new
    return {name: leaf[:1].expand(leaf.shape).clone() for name, leaf in new.items()}


def sorted_by_name(new: dict[str, Any], module: Any) -> dict[str, Any]:
    return dict(sorted(new.items()))


def linked(kind: str, n_agents: int, lazy: bool, **words: Any) -> Any:
    """Loading replaces the module's own tensors by the checkpoint's."""
    module = _right.facade(kind, n_agents, lazy, **words)
    load = module.load_state_dict

    def load_state_dict(given: dict[str, Tensor]) -> None:
        load(given)
        for name, leaf in module.named_parameters():
            leaf.data = given[name].data

    module.load_state_dict = load_state_dict
    return module


mutant("state_dicts_carry_over", "buffers are left out", convert_state_dict=converted(without_buffers))
mutant("state_dicts_carry_over", "slots in reverse", convert_state_dict=converted(flipped))
mutant("state_dicts_carry_over", "the first agent's for all", convert_state_dict=converted(first_agent_for_all))
mutant("state_dicts_carry_over", "keys are sorted", convert_state_dict=converted(sorted_by_name))
mutant("state_dicts_carry_over", "modules are linked", facade=linked)

# --- calls ------------------------------------------------------------------------------------------------


def built(change: Any) -> Any:
    """A facade that is changed after construction: ``change(module)``."""

    def facade(kind: str, n_agents: int, lazy: bool, **words: Any) -> Any:
        module = _right.facade(kind, n_agents, lazy, **words)
        change(module)
        return module

    return facade


def index_leaks(module: Any) -> None:
    forward, n = module.forward, module.n_agents
    module.forward = lambda x: forward(x) + torch.arange(n, dtype=x.dtype)[:, None]


def stale(module: Any) -> None:
    """The parameters are read once."""
    functional, kept = module.functional, list[Any]()

    def once() -> Any:
        kept[:] = kept or [functional()]
        return kept[0]

    module.functional = once


def shared_mask(module: Any) -> None:
    """torchrl: a call ignores randomness if parameters are shared."""
    if module.share_params is True and module.vmap_randomness == "different":
        forward = module.forward

        def alike(x: Tensor) -> Tensor:
            if module.training:
                net, params, state = type(module).functional(module)
                return fm.apply(net.replace(randomness="same"), params, x, train=True, mutable=True, state=state)[0]
            return forward(x)

        module.forward = alike


def without_state(net: fm.Network, params: Params, state: Any = None, **how: Any) -> Any:
    return _right.from_functional(net, params, None, **how)


def detached_leaf(module: Any) -> None:
    """A leaf gets no gradient."""
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        leaf = next(module.parameters())
        leaf.requires_grad_(False)
        try:
            return forward(x)
        finally:
            leaf.requires_grad_(True)

    module.forward = call


mutant("facade_is_functional", "the agent's index leaks", facade=built(index_leaks))
mutant("facade_is_functional", "parameters are read once", facade=built(stale))
mutant("facade_is_functional", "torchrl: shared networks have one mask", facade=built(shared_mask))
mutant("facade_is_functional", "a leaf is detached", facade=built(detached_leaf))
mutant("facade_is_functional", "from_functional ignores the state", from_functional=without_state)

# --- lazy networks ----------------------------------------------------------------------------------------


def lazily(change: Any) -> Any:
    """A lazy facade that is changed after its first call; the eager one is right."""

    def facade(kind: str, n_agents: int, lazy: bool, **words: Any) -> Any:
        module = _right.facade(kind, n_agents, lazy, **words)
        if lazy:
            materialize = module._materialize

            def wrong(x: Tensor) -> None:
                materialize(x)
                change(module)

            module._materialize = wrong
        return module

    return facade


def one_for_all(module: Any) -> None:
    if module.share_params is not True:
        with torch.no_grad():
            for leaf in module.parameters():
                leaf.copy_(leaf[:1].expand(leaf.shape))


def frozen(module: Any) -> None:
    next(module.parameters()).requires_grad_(False)


def new_parameters(module: Any) -> None:
    """An optimizer that was created before holds the old ones."""
    live = module._store.live(module._modules)[0]
    leaves = {name: nn.Parameter(leaf.detach().clone()) for name, leaf in live.items()}
    module._store.place(module._modules, {**module._store.leaves(module._modules), **leaves})


def lazy_mask(kind: str, n_agents: int, lazy: bool, **words: Any) -> Any:
    return _right.facade(kind, n_agents, lazy, **words | ({"vmap_randomness": "same"} if lazy else {}))


mutant("lazy_is_eager", "torchrl: a lazy network has one mask", facade=lazy_mask)
mutant("lazy_is_eager", "one sample for all slots", facade=lazily(one_for_all))
mutant("lazy_is_eager", "new leaves are frozen", facade=lazily(frozen))
mutant("lazy_is_eager", "new parameters at the first call", facade=lazily(new_parameters))
