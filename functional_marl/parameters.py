"""Parameters as values: stacked, taken apart, shared anew, split in parts.

Params are a flat dict of dotted names to tensors ``[S, *leaf]``, in ``named_parameters`` order. The state
(buffers) has the same form, and whatever takes params here takes a state too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from functional_marl.checks import Params, check_state, mismatches, slot_maps
from functional_marl.errors import SharingError, StructureError
from functional_marl.fresh import default_state
from functional_marl.interop import as_flat_dict
from functional_marl.network import Network
from functional_marl.sharing import Sharing, SharingSpec, resolve
from functional_marl.skeleton import named_tensors

__all__ = [
    "Merge",
    "agent_module",
    "agent_params",
    "combine",
    "mean_rows",
    "partition",
    "reshare",
    "stack_agents",
    "unstack_agents",
]

Merge = Literal["error", "mean", "first"]


# --- one agent -----------------------------------------------------------------------------------------


def agent_params(net: Network, params: Mapping[str, Tensor], agent: int) -> Params:
    """One agent's tree ``{name: leaf}``, for ``torch.func.functional_call``: views into ``params``.

    Raises:
        StructureError: params that do not fit, or no such agent.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_params(net, init_params(net, 0), 1)["weight"].shape
    torch.Size([2, 4])
    """
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return _of_agent(net, params, slots, agent)


def _of_agent(net: Network, params: Params, slots: Mapping[str, Sharing], agent: int) -> Params:
    if not -net.n_agents <= agent < net.n_agents:
        raise StructureError(f"agent: expected an index below {net.n_agents}, got {agent}")
    return {name: leaf[slots[name][agent]] for name, leaf in params.items()}


def unstack_agents(net: Network, params: Mapping[str, Tensor]) -> list[Params]:
    """The trees of all agents, in order: views into ``params``. The inverse of :func:`stack_agents`.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3, sharing="shared")
    >>> len(unstack_agents(net, init_params(net, 0)))
    3
    """
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return [_of_agent(net, params, slots, agent) for agent in range(net.n_agents)]


def agent_module(
    net: Network, params: Mapping[str, Tensor], agent: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """One agent as an ordinary ``nn.Module`` in evaluation mode, holding copies: for export or a robot.

    For a centralized network it takes the joint input.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_module(net, init_params(net, 0), 1)
    Linear(in_features=4, out_features=2, bias=True)
    """
    own = agent_params(net, params, agent)
    state = default_state(net, as_flat_dict(params)) if state is None else as_flat_dict(state)
    check_state(net, state)
    return net.template.module(own, _of_agent(net, state, net.state_sharing, agent))


# --- from agents to slots ------------------------------------------------------------------------------


def stack_agents(
    trees: Sequence[Mapping[str, Tensor] | nn.Module] | Mapping[str, Tensor] | nn.Module,
    *,
    n_agents: int | None = None,
    sharing: SharingSpec = "independent",
    merge: Merge = "error",
) -> Params:
    """Params from one-agent trees: new tensors ``[S, *leaf]`` without grad.

    Args:
        trees: one flat dict of dotted names (or a module) an agent; or a single one with ``n_agents=``,
            for a pretrained network in any sharing.
        n_agents: with a single tree, how many agents.
        sharing: as in :func:`network`, over the names of the trees.
        merge: agents of one slot must agree (``"error"``), are averaged (``"mean"``, as FedAvg, McMahan et
            al. 2017, arXiv:1602.05629), or the first one counts (``"first"``).

    Raises:
        StructureError: trees that differ in names or shapes. SharingError: agents of a slot that differ
            under ``merge="error"``; a slot without agents.

    >>> p = {"w": torch.ones(2)}
    >>> stack_agents([p, p, {"w": torch.zeros(2)}], sharing=[0, 0, 1])["w"]
    tensor([[1., 1.],
            [0., 0.]])
    """
    if isinstance(trees, (Mapping, nn.Module)) or not isinstance(trees, Sequence):
        if n_agents is None:
            raise StructureError("stack_agents: one tree alone needs n_agents=; several trees go in a list")
        trees = [cast(Any, trees)] * n_agents
    elif n_agents is not None and n_agents != len(trees):
        raise StructureError(f"stack_agents: expected n_agents={n_agents} trees, got {len(trees)}")
    if not trees:
        raise StructureError("stack_agents: expected at least one tree, got none")
    flat = [named_tensors(t, "_parameters")[0] if isinstance(t, nn.Module) else as_flat_dict(t) for t in trees]
    first = {name: tuple(leaf.shape) for name, leaf in flat[0].items()}
    lines = [line for i, tree in enumerate(flat) for line in mismatches(tree, first, f"trees[{i}]")]
    if lines:
        raise StructureError("stack_agents: the agents' trees differ from that of agent 0\n" + "\n".join(lines))
    slots = resolve(sharing, len(flat), first)
    return {name: _merged([tree[name] for tree in flat], slots[name], merge, name) for name in first}


def _merged(leaves: Sequence[Tensor], sharing: Sharing, merge: Merge, name: str) -> Tensor:
    """One leaf of each agent, ``n x leaf``, to ``[S, *leaf]``."""
    if merge not in ("error", "mean", "first"):
        raise SharingError(f"merge: expected 'error', 'mean' or 'first', got {merge!r}")
    if sharing.unused():
        raise SharingError(
            f"{name}: no agent is in the slots {list(sharing.unused())} of {sharing}, so nothing fills them; "
            "use its .canonical()"
        )
    rows: list[Tensor] = []
    for slot in range(sharing.n_slots):
        agents = list(sharing.members(slot))
        leader = leaves[agents[0]].detach()
        if merge == "mean":
            leader = mean_rows([leaves[i].detach() for i in agents])
        elif merge == "error":
            differ = [i for i in agents if not _equal(leaves[i].detach(), leader)]
            if differ:
                wide = [leaf.detach().to(torch.complex128) for leaf in (leaves[differ[0]], leader)]
                gap = float((wide[0] - wide[1]).abs().max())
                raise SharingError(
                    f"{name}: agents {agents} are to share slot {slot}, but agent {differ[0]} differs from "
                    f'agent {agents[0]} by up to {gap:.3g}; give merge="mean" or merge="first"'
                )
        rows.append(leader)
    return torch.stack(rows)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(((a == b) | (a.isnan() & b.isnan())).all())


def mean_rows(rows: Sequence[Tensor]) -> Tensor:
    """The mean of floats; of integers (counters) the largest, as for shared buffers."""
    stacked = torch.stack(list(rows))
    if not (stacked.is_floating_point() or stacked.is_complex()):
        return stacked.amax(0)
    # Agents that agree keep their value to the bit: the mean of three equal numbers may be another.
    return torch.where((stacked == rows[0]).all(0), rows[0], stacked.mean(0))


def reshare(
    net: Network,
    params: Mapping[str, Tensor],
    sharing: SharingSpec,
    *,
    merge: Merge = "error",
    agents: Sequence[int] | None = None,
) -> tuple[Network, Params]:
    """The same agents under another sharing: ``(new_net, new_params)``, new tensors.

    Each new agent has the parameters of an old one; what comes together in a slot must agree, or is merged.
    Splitting slots is lossless, merging them is lossy and happens only when asked for.

    Args:
        net, params: what is there; params may be the state, or any tree of the same leaves (Adam's moments).
        sharing: the new sharing, as in :func:`network`.
        merge: as in :func:`stack_agents`.
        agents: the old agent that each new agent starts as: grows, shrinks or reorders the team.

    Raises:
        SharingError, StructureError: as :func:`stack_agents`.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=2, sharing="shared")
    >>> net, params = reshare(net, init_params(net, 0), "independent", agents=[0, 0, 1])
    >>> params["weight"].shape
    torch.Size([3, 2, 4])
    """
    params = as_flat_dict(params)
    old = slot_maps(net, params)
    chosen = list(range(net.n_agents)) if agents is None else list(agents)
    bad = [i for i in chosen if not 0 <= i < net.n_agents]
    if bad or not chosen:
        raise StructureError(f"agents: expected indices below {net.n_agents}, at least one, got {chosen}")
    new_net = net.replace(n_agents=len(chosen), sharing=sharing)
    new = {**new_net.sharing, **new_net.state_sharing}
    return new_net, {
        name: _merged([leaf[old[name][i]] for i in chosen], new[name], merge, name) for name, leaf in params.items()
    }


# --- parts ---------------------------------------------------------------------------------------------


def partition(params: Mapping[str, Any], patterns: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Split params by name into labelled parts: freeze some, train others at another rate.

    Patterns are shell patterns over the names, the first match wins; each label is a key of the result.
    The leaves are the same tensors. As ``optax.partition`` labels.

    Raises:
        StructureError: a leaf that no pattern matches, or a pattern that matches no leaf.

    >>> parts = partition({"0.w": 1, "2.w": 2}, {"0.*": "frozen", "*": "trained"})
    >>> parts
    {'frozen': {'0.w': 1}, 'trained': {'2.w': 2}}
    >>> combine(parts["frozen"], parts["trained"])
    {'0.w': 1, '2.w': 2}
    """
    params = as_flat_dict(params)
    parts: dict[str, dict[str, Any]] = {label: {} for label in patterns.values()}
    unmatched: list[str] = []
    for name, leaf in params.items():
        label = next((patterns[p] for p in patterns if fnmatchcase(name, p)), None)
        if label is None:
            unmatched.append(name)
        else:
            parts[label][name] = leaf
    if unmatched:
        raise StructureError(f"partition: no pattern of {list(patterns)} matches {unmatched}; end with '*'")
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in params)]
    if params and idle:
        raise StructureError(
            f"partition: the patterns {idle} match no leaf; patterns are shell patterns, as '0.*', over {list(params)}"
        )
    return parts


def combine(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put parts together again; the inverse of :func:`partition`.

    Raises:
        StructureError: a leaf that stands in two parts.

    >>> combine({"0.w": 1}, {"2.w": 2})
    {'0.w': 1, '2.w': 2}
    """
    whole: dict[str, Any] = {}
    for part in parts:
        twice = sorted(whole.keys() & part.keys())
        if twice:
            raise StructureError(f"combine: {twice} stand in more than one part")
        whole.update(part)
    return whole
