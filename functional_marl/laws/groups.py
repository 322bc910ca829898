"""Groups: data come back by name, a group map is a partition, nothing is aliased, detached groups train nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._pytrees import flatten, leaf_names
from functional_marl._tensordict import to_tensordict
from functional_marl.laws._compare import agree, broken, zero
from functional_marl.laws._law import law
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws._restore import seeded
from functional_marl.laws._snippet import code

__all__ = [
    "Critics",
    "Grouped",
    "Named",
    "detached_groups_get_no_gradient",
    "group_layout",
    "group_map_is_a_partition",
    "group_map_is_the_callers",
    "group_round_trip",
]


@dataclass(frozen=True)
class Grouped:
    """Agents in groups, with data: ``{group: names}`` and ``{name: tree}`` of leaves ``[*B, *leaf]``."""

    groups: dict[str, list[str]]
    per_agent: Any
    batch_dims: int
    squeeze: bool
    ops: Operations = LIBRARY

    def __repr__(self) -> str:
        return f"Grouped({self.groups}, {code(self.per_agent)}, {self.batch_dims}, {self.squeeze})"

    def group(self) -> Any:
        """The data by group."""
        how = {"squeeze_singletons": self.squeeze}
        return self.ops.group_agents(self.groups, self.per_agent, self.batch_dims, **how)


@dataclass(frozen=True)
class Named:
    """Agents' names and how to group them; ``words`` is the grouping as Python, where its repr is not."""

    names: list[str]
    grouping: Any
    ops: Operations = LIBRARY
    words: str = ""

    def __repr__(self) -> str:
        return f"Named({self.names}, {self.words or code(self.grouping)})"


@law(29, about=Grouped)
def group_round_trip(case: Grouped) -> None:
    """ungroup(group(x)) = x.

    What goes into groups comes out again, every agent's values under its own name.
    """
    how = {"squeeze_singletons": case.squeeze}
    back = case.ops.ungroup_agents(case.groups, case.group(), case.batch_dims, **how)
    names = sorted(back.keys())
    if names != sorted(case.per_agent.keys()):
        broken(f"agents {sorted(case.per_agent.keys())} in {case.groups} came back as {names}")
    for name in names:
        agree(back[name], case.per_agent[name], f"agent {name!r}", exact=True)


@law(29, about=Grouped)
def group_layout(case: Grouped) -> None:
    """group(x)[g][..., i, ...] = x[g_i].

    Agent i of a group sits at place i of the axis behind the batch axes, in the order of the group.
    """
    grouped = case.group()
    if list(grouped.keys()) != list(case.groups):
        broken(f"expected the groups {list(case.groups)}, got {list(grouped.keys())}")
    for name, members in case.groups.items():
        if case.squeeze and len(members) == 1:
            agree(grouped[name], case.per_agent[members[0]], f"group {name!r}", exact=True)
            continue
        for i, agent in enumerate(members):
            wanted = _leaves(case.per_agent[agent])
            for path, leaf in _leaves(grouped[name]).items():
                want, b = wanted[path], case.batch_dims
                shape = [*want.shape[:b], len(members), *want.shape[b:]]
                if list(leaf.shape) != shape:
                    broken(f"group {name!r}{path}: expected shape {shape}, got {list(leaf.shape)}")
                if not torch.equal(leaf.select(b, i), want):
                    broken(f"group {name!r}{path}: place {i} is not agent {agent!r}")


def _leaves(tree: Any) -> dict[str, Tensor]:
    return dict(zip(leaf_names(tree), flatten(tree)[0], strict=True))


@law(30, about=Named)
def group_map_is_a_partition(case: Named) -> None:
    """⊔_g group_map(names)[g] = names.

    Each agent is in exactly one group, no group is empty, agents keep their order.
    """
    names, grouping = case.names, case.grouping
    groups: dict[str, list[str]] = case.ops.group_map(list(names), grouping)
    if sorted(agent for members in groups.values() for agent in members) != sorted(names):
        broken(f"{groups} is no partition of {names}")
    if not all(groups.values()):
        broken(f"an empty group in {groups}")
    if isinstance(grouping, Mapping):
        given = cast("Mapping[str, list[str]]", grouping)
        if list(groups.items()) != [(group, list(members)) for group, members in given.items()]:
            broken(f"{groups} is not the given {grouping}")
        return
    for members in groups.values():
        places = [names.index(agent) for agent in members]
        if places != sorted(places):
            broken(f"{members} has another order than {names}")
    firsts = [names.index(members[0]) for members in groups.values()]
    if firsts != sorted(firsts):
        broken(f"the groups of {groups} are not in the order of their first agents")
    if callable(grouping) and not isinstance(grouping, type):
        wrong = [(agent, group) for group, members in groups.items() for agent in members if grouping(agent) != group]
        if wrong:
            broken(f"expected each agent in the group that the function gives, got {wrong}")


@law(32, about=Named)
def group_map_is_the_callers(case: Named) -> None:
    """memory(group_map(names)) ∩ memory(names) = ∅.

    A group map is the caller's to change: neither the names nor a given mapping change with it.
    """
    given, mine = copy.deepcopy(case.grouping), list(case.names)
    for members in case.ops.group_map(mine, given).values():
        members.append("intruder")
    if mine != case.names:
        broken(f"the map returns the caller's own list: the caller's names {case.names} became {mine}; copy it")
    if isinstance(given, Mapping) and given != case.grouping:
        broken(f"the caller's group map {case.grouping} became {given}")


# --- a critic over groups -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Critics:
    """A critic over groups, by its constructor's words, and observations for it.

    Args:
        groups: how many agents each group has, and how many numbers each of them observes.
        detached: the indices of the groups that get no gradient.
        shared_head: one head for all groups.
        batch: the sizes of the batch axes.
        seed: of the parameters and of the observations.

    >>> from functional_marl.laws import LAWS
    >>> LAWS["detached_groups_get_no_gradient"](Critics(((2, 3), (1, 4)), detached=(1,)))
    """

    groups: tuple[tuple[int, int], ...]
    detached: tuple[int, ...] = ()
    shared_head: bool = False
    batch: tuple[int, ...] = ()
    seed: int = 0
    ops: Operations = field(default=LIBRARY, repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis prints the call that makes it again, without the operations

    def critic(self, detached: tuple[int, ...]) -> nn.Module:
        """The critic; its parameters are those of the seed, whoever is detached."""
        with seeded(self.seed):
            return self.ops.critic(self.groups, detached, self.shared_head)

    def values(self, detached: tuple[int, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Each group's values ``[*B, n_g, 1]``, and the gradients of their sum by parameter and observation."""
        generator = torch.Generator().manual_seed(self.seed)
        seen: dict[str, Tensor] = {}
        for k, (n, features) in enumerate(self.groups):
            seen[f"g{k}.seen"] = torch.randn((*self.batch, n, features), generator=generator).requires_grad_()
        critic = self.critic(detached)
        given: Any = to_tensordict(seen)
        given.batch_size = self.batch
        written: Any = critic(given)
        values: list[Tensor] = [written[f"g{k}", "value"] for k in range(len(self.groups))]
        leaves = {**dict(critic.named_parameters()), **seen}
        loss = torch.stack([(leaf + leaf * leaf).sum() for leaf in values]).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return values, dict(zip(leaves, found, strict=True))


@law(21, about=Critics)
def detached_groups_get_no_gradient(case: Critics) -> None:
    """∂L / ∂θ_g = 0 and ∂L / ∂x_g = 0 for each detached group g; L and all other gradients are as if none were.

    A detached group is seen, and neither its encoder nor what it observes gets a gradient.
    """
    values, gradients = case.values(case.detached)
    wanted, all_gradients = case.values(())
    agree(values, wanted, f"values with the groups {list(case.detached)} detached")
    for k in range(len(case.groups)):
        own = {name: leaf for name, leaf in gradients.items() if f"g{k}." in name and "head" not in name}
        if not own:
            broken(f"group {k}: expected an encoder of its own, got the parameters {list(gradients)}")
        if k in case.detached:
            zero(own, f"the values by the detached group {k}")
        elif not all(bool((leaf != 0).any()) for leaf in own.values()):
            broken(f"group {k}, which is not detached: expected nonzero gradients on {list(own)}")
    rest = [name for name in gradients if not any(f"g{k}." in name and "head" not in name for k in case.detached)]
    agree(
        {name: gradients[name] for name in rest},
        {name: all_gradients[name] for name in rest},
        f"gradients with the groups {list(case.detached)} detached",
    )
