"""Parameters as values: stacked, taken apart, shared anew, split in parts.

Params are a flat dict of dotted names to tensors ``[S, *leaf]``, in ``named_parameters`` order. The state
(buffers) has the same form, and whatever takes params here takes a state too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._arguments import as_index, as_mapping, is_list, shown
from functional_marl._checks import Params, check_network, check_state, mismatches, slot_maps
from functional_marl._errors import StructureError
from functional_marl._init_params import default_state
from functional_marl._merging import Merge, check_merge, merged_rows
from functional_marl._module.leaves import named_tensors
from functional_marl._network import Network
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl._tensordict import as_flat_dict

__all__ = [
    "agent_module",
    "agent_params",
    "combine",
    "partition",
    "reshare",
    "stack_agents",
    "unstack_agents",
]

# --- one agent -----------------------------------------------------------------------------------------


def agent_params(net: Network, params: Mapping[str, Tensor], agent: int) -> Params:
    """One agent's tree ``{name: leaf}``, for ``torch.func.functional_call``: views into ``params``.

    Of a population ``[*P, S, *leaf]``: under ``torch.func.vmap``, as everything that takes params here.

    Raises:
        StructureError: params that do not fit, or no such agent.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_params(net, init_params(net, 0), 1)["weight"].shape
    torch.Size([2, 4])
    """
    check_network(net)
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return _of_agent(net, params, slots, agent)


def _of_agent(net: Network, params: Params, slots: Mapping[str, Sharing], agent: int) -> Params:
    agent = as_index(agent, "agent")
    if not -net.n_agents <= agent < net.n_agents:
        raise StructureError(f"agent: expected an index below {net.n_agents}, got {agent}")
    return {name: leaf[slots[name][agent]] for name, leaf in params.items()}


def unstack_agents(net: Network, params: Mapping[str, Tensor]) -> list[Params]:
    """The trees of all agents, in order: views into ``params``. The inverse of :func:`stack_agents`.

    Raises:
        StructureError: params that do not fit.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3, sharing="shared")
    >>> len(unstack_agents(net, init_params(net, 0)))
    3
    """
    check_network(net)
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return [_of_agent(net, params, slots, agent) for agent in range(net.n_agents)]


def agent_module(
    net: Network, params: Mapping[str, Tensor], agent: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """One agent as an ordinary ``nn.Module`` in evaluation mode, holding copies: for export or a robot.

    For a centralized network it takes the joint input.

    Raises:
        StructureError: params or a state that do not fit, or no such agent.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_module(net, init_params(net, 0), 1)
    Linear(in_features=4, out_features=2, bias=True)
    """
    own = agent_params(net, params, agent)
    state = default_state(net, as_flat_dict(params)) if state is None else as_flat_dict(state, "state")
    check_state(net, state)
    return net.module_spec.make_module(own, _of_agent(net, state, net.state_sharing, agent))


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
        StructureError: trees that differ in names, shapes, dtypes or devices. SharingError: agents of a slot
            that differ under ``merge="error"``; a slot without agents.

    >>> p = {"w": torch.ones(2)}
    >>> stack_agents([p, p, {"w": torch.zeros(2)}], sharing=[0, 0, 1])["w"]
    tensor([[1., 1.],
            [0., 0.]])
    """
    if isinstance(trees, (Mapping, nn.Module)) or not isinstance(trees, Sequence):
        if n_agents is None:
            raise StructureError("stack_agents: one tree alone needs n_agents=; several trees go in a list")
        trees = [cast(Any, trees)] * as_index(n_agents, "n_agents", 1)
    elif n_agents is not None and as_index(n_agents, "n_agents", 1) != len(trees):
        raise StructureError(f"stack_agents: expected n_agents={n_agents} trees, got {len(trees)}")
    if not trees:
        raise StructureError("stack_agents: expected at least one tree, got none")
    flat = [
        named_tensors(t, "_parameters") if isinstance(t, nn.Module) else as_flat_dict(t, f"trees[{i}]")
        for i, t in enumerate(trees)
    ]
    lines = [
        f"trees[0][{name!r}]: expected a tensor, got {shown(leaf)}"
        for name, leaf in flat[0].items()
        if not isinstance(leaf, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]
    ]
    if not lines:
        first = {name: tuple(leaf.shape) for name, leaf in flat[0].items()}
        lines = [line for i, tree in enumerate(flat) for line in mismatches(tree, first, f"trees[{i}]")]
        lines = lines or [line for i, tree in enumerate(flat) for line in _unlike(tree, flat[0], f"trees[{i}]")]
    if lines:
        raise StructureError("stack_agents: the agents' trees differ from that of agent 0\n" + "\n".join(lines))
    check_merge(merge)
    slots = resolve(sharing, len(flat), flat[0])
    out: Params = {}
    for name in flat[0]:
        # what several agents bring as one tensor is stacked once
        row: dict[int, int] = {}
        source = [row.setdefault(id(tree[name]), len(row)) for tree in flat]
        rows = dict(zip(source, (tree[name] for tree in flat), strict=True))
        out[name] = merged_rows(
            torch.stack([leaf.detach() for leaf in rows.values()]), source, slots[name], merge, name
        )
    return out


def _unlike(tree: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> list[str]:
    """A line for every leaf of another dtype, device or layout: stacking would cast it, or fail."""
    kinds = [(name, (leaf.dtype, leaf.device, leaf.layout), like[name]) for name, leaf in tree.items()]
    return [
        f"{what}[{name!r}]: expected {other.dtype} on {other.device}, {other.layout}, got {', '.join(map(str, kind))}"
        for name, kind, other in kinds
        if kind != (other.dtype, other.device, other.layout)
    ]


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
    check_network(net)
    params = as_flat_dict(params)
    old = slot_maps(net, params)
    check_merge(merge)
    chosen = list(range(net.n_agents)) if agents is None else _as_agents(agents, net.n_agents)
    new_net = net.replace(n_agents=len(chosen), sharing=sharing)
    new = {**new_net.sharing, **new_net.state_sharing}
    return new_net, {
        name: merged_rows(leaf, [old[name][i] for i in chosen], new[name], merge, name) for name, leaf in params.items()
    }


def _as_agents(agents: Any, n_agents: int) -> list[int]:
    try:
        chosen = [as_index(agent, "agents", 0) for agent in agents] if is_list(agents) else []
        if not chosen or max(chosen) >= n_agents:
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise StructureError(f"agents: expected indices below {n_agents}, at least one, got {shown(agents)}") from None
    return chosen


# --- parts ---------------------------------------------------------------------------------------------


def partition(params: Mapping[str, Any], patterns: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Split params by name into labelled parts: freeze some, train others at another rate.

    Patterns are shell patterns over the names, the first match wins; each label is a key of the result.
    The leaves are the same tensors. As ``optax.partition`` labels.

    Raises:
        StructureError: a leaf that no pattern matches, or a pattern that decides no leaf.

    >>> parts = partition({"0.w": 1, "2.w": 2}, {"0.*": "frozen", "*": "trained"})
    >>> parts
    {'frozen': {'0.w': 1}, 'trained': {'2.w': 2}}
    >>> combine(parts["frozen"], parts["trained"])
    {'0.w': 1, '2.w': 2}
    """
    params = as_flat_dict(params)
    as_mapping(patterns, "patterns", "from pattern to label")
    wrong = [name for name in (*params, *patterns) if not isinstance(name, str)]  # pyright: ignore
    if wrong:
        raise StructureError(f"partition: expected strings as names in params and as patterns, got {wrong}")
    try:
        parts: dict[str, dict[str, Any]] = {label: {} for label in patterns.values()}
    except TypeError:
        raise StructureError(f"patterns: expected strings as labels, got {list(patterns.values())}") from None
    winner = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in params}
    unmatched = [name for name, p in winner.items() if p is None]
    if unmatched:
        raise StructureError(f"partition: no pattern of {list(patterns)} matches {unmatched}; end with '*'")
    idle = [p for p in patterns if p not in winner.values()]
    if params and idle:
        raise StructureError(
            f"partition: the patterns {idle} decide no leaf (the first match wins); patterns are shell patterns, as "
            f"'0.*', over {list(params)}"
        )
    for name, p in winner.items():
        parts[patterns[cast(str, p)]][name] = params[name]
    return parts


def combine(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put parts together again; the inverse of :func:`partition`.

    Raises:
        StructureError: a part that is no dict, or a leaf that stands in two parts.

    >>> combine({"0.w": 1}, {"2.w": 2})
    {'0.w': 1, '2.w': 2}
    """
    whole: dict[str, Any] = {}
    for i, part in enumerate(as_flat_dict(part, f"parts[{i}]") for i, part in enumerate(parts)):
        twice = sorted(map(str, whole.keys() & part.keys()))
        if twice:
            raise StructureError(f"combine: {twice} stand in more than one part, the second of them parts[{i}]")
        whole.update(part)
    return whole
