"""Parameters as values: drawn under a key, stacked, taken apart, shared anew, split in parts.

Params are a flat dict of dotted names to tensors ``[S, *leaf]``, in ``named_parameters`` order. The state
(buffers) has the same form, and whatever takes params here takes a state too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from functional_marl.errors import SharingError, StructureError
from functional_marl.interop import as_flat_dict
from functional_marl.network import Network
from functional_marl.random import Key, as_key, split
from functional_marl.sharing import Sharing, SharingSpec, resolve
from functional_marl.skeleton import named_tensors
from functional_marl.tape import Tape
from functional_marl.template import Leaf

__all__ = [
    "Merge",
    "Params",
    "agent_module",
    "agent_params",
    "check_params",
    "check_state",
    "combine",
    "default_state",
    "init_params",
    "init_state",
    "partition",
    "reshare",
    "stack_agents",
    "unstack_agents",
]

Params = dict[str, Tensor]
Merge = Literal["error", "mean", "first"]


# --- checks --------------------------------------------------------------------------------------------


def _mismatches(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], what: str) -> list[str]:
    lines = [f"{what}[{k!r}]: missing, expected {list(expected[k])}" for k in expected if k not in given]
    lines += [
        f"{what}[{k!r}]: not a leaf of this network; its leaves are {list(expected)}"
        for k in given
        if k not in expected
    ]
    for name, shape in expected.items():
        value = given.get(name)
        if name in given and not isinstance(value, Tensor):
            lines.append(f"{what}[{name!r}]: expected a tensor {list(shape)}, got {type(value).__name__}")
        elif isinstance(value, Tensor) and tuple(value.shape) != shape:
            lines.append(f"{what}[{name!r}]: expected {list(shape)}, got {list(value.shape)}")
    return lines


def _check(given: Mapping[str, Any], net: Network, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    if len(given) == len(expected):
        for name, shape in expected.items():
            value = given.get(name)
            if not isinstance(value, Tensor) or value.shape != shape:
                break
        else:
            return
    lines = _mismatches(given, expected, what)
    raise StructureError(
        "\n".join(lines)
        + f"\nleaves are [slots, *shape of one agent's]; the network has {net.n_agents} agents; use fm.init_params, "
        "fm.stack_agents (from one-agent trees) or fm.reshare (from another sharing)"
    )


def check_params(net: Network, params: Mapping[str, Any]) -> None:
    """Check all names and shapes of params at once.

    Raises:
        StructureError: names every leaf that is missing, unknown or of another shape.
    """
    _check(params, net, net.param_shapes, "params")


def check_state(net: Network, state: Mapping[str, Any]) -> None:
    """Check all names and shapes of a state at once; raises as :func:`check_params`."""
    _check(state, net, net.state_shapes, "state")


def _slot_maps(net: Network, tree: Mapping[str, Any]) -> Mapping[str, Sharing]:
    """The slot maps of a checked tree: params, or a state if its names are those of the buffers."""
    if tree.keys() == net.state_sharing.keys():  # also {}, the state of a network without buffers
        check_state(net, tree)
        return net.state_sharing
    check_params(net, tree)
    return net.sharing


# --- fresh ---------------------------------------------------------------------------------------------


def _draw(
    net: Network,
    key: Tensor,
    kind: Literal["_parameters", "_buffers"],
    device: Any,
    dtype: torch.dtype | None,
) -> Params:
    shapes = net.param_shapes if kind == "_parameters" else net.state_shapes
    out: Params = {}
    batch = tuple(key.shape[:-1])
    if 0 in batch:
        raise StructureError(f"key: expected at least one key, got an empty batch of shape {list(key.shape)}")
    count = max((shape[0] for shape in shapes.values()), default=0)
    # [P, S] seeds: the two words of the key of each slot
    words = split(key.reshape(-1, 2), count).transpose(0, 1).tolist()
    seeds = [[high << 32 | low for high, low in slots] for slots in words]
    tape = net.template.tape() if len(seeds) * count > _WORTH_A_TAPE else None
    if tape is not None:
        out = _play(net, tape, seeds, shapes, dtype, device)
    else:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                _copy_drawn(
                    named_tensors(net.template.draw(seed), kind)[0], out, p, slot, len(seeds), shapes, dtype, device
                )
    return {name: out[name].view(*batch, *shape) for name, shape in shapes.items() if name in out}


_WORTH_A_TAPE = 2  # recording one costs two builds


def _copy_drawn(
    drawn: Params,
    out: Params,
    p: int,
    slot: int,
    count: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> None:
    """One built module's leaves into their rows, which the first of them makes."""
    for name, shape in shapes.items():
        leaf = drawn.get(name)
        if leaf is None or tuple(leaf.shape) != shape[1:]:
            got = "no such leaf" if leaf is None else list(leaf.shape)
            raise StructureError(f"build: {name!r} was {list(shape[1:])} at first, now {got}")
        if name not in out:
            kept = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
            out[name] = torch.empty((count, *shape), dtype=kept, device=leaf.device if device is None else device)
        if slot < shape[0]:
            out[name][p, slot].copy_(leaf)


def _play(
    net: Network,
    tape: Tape,
    seeds: list[list[int]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> Params:
    """Every slot's leaves by a tape. A leaf with fewer slots than others still draws, into nothing."""
    template = net.template
    leaves = {**template.params, **{k: Leaf(tuple(b.shape), b.dtype) for k, b in template.buffers.items()}}
    nowhere = {name: torch.empty(leaf.shape, dtype=leaf.dtype) for name, leaf in leaves.items()}
    out = {name: torch.empty((len(seeds), *shape), dtype=leaves[name].dtype) for name, shape in shapes.items()}
    rows = {name: [p.unbind(0) for p in leaf.unbind(0)] for name, leaf in out.items()}
    generator = torch.Generator()
    for p, slot_seeds in enumerate(seeds):
        for slot, seed in enumerate(slot_seeds):
            own = {name: rows[name][p][slot] for name in shapes if slot < shapes[name][0]}
            tape.play({**nowhere, **own}, generator.manual_seed(seed))
    del rows
    for name, leaf in out.items():
        out[name] = leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)
    return out


def init_params(
    net: Network, key: Key, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Params:
    """Fresh parameters: a flat dict of contiguous tensors ``[S, *leaf]`` that require no grad.

    A slot's parameters are what the factory builds with all its draws taken from that slot's key
    (``fm.split(key, S)[s]``): they depend on the key and on the slot alone, not on the number of agents,
    and are the same on every device. No global generator is read or written. The seed of torch's own
    CPU generator (Mersenne Twister) has 32 bits; of a key's 64 bits it uses the lower half.

    Args:
        net: the network.
        key: a key, an int seed, or a batch of keys ``[*P, 2]`` for a population ``[*P, S, *leaf]``.
        device: where to put them; by default where the factory does.
        dtype: the dtype of floating leaves; by default what the factory gives.

    Raises:
        StructureError: a bad key; a factory that does not build the same leaves every time; a module
            whose reset leaves a leaf unfilled. RandomnessError: a draw that a key cannot serve.

    >>> from functional_marl.network import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> {name: list(leaf.shape) for name, leaf in init_params(net, 0).items()}
    {'weight': [3, 2, 4], 'bias': [3, 2]}
    """
    return _draw(net, as_key(key, batch=True), "_parameters", device, dtype)


def init_state(
    net: Network,
    key: Key | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Params:
    """The initial buffers, a flat dict of ``[S, *leaf]``; ``{}`` for a network without buffers.

    A key is needed only where the factory draws buffers at random; the key of :func:`init_params` gives
    the buffers that were built with those parameters.

    Raises:
        StructureError: a random buffer and no key.

    >>> from functional_marl.network import network
    >>> net = network(lambda: nn.BatchNorm1d(4), n_agents=3)
    >>> {name: list(leaf.shape) for name, leaf in init_state(net).items()}
    {'running_mean': [3, 4], 'running_var': [3, 4], 'num_batches_tracked': [3]}
    """
    if key is not None:
        return _draw(net, as_key(key, batch=True), "_buffers", device, dtype)
    if net.template.random_buffers:
        raise StructureError(
            f"state: the factory draws the buffers {list(net.template.random_buffers)} at random; "
            "give fm.init_state(net, key), or state= where apply is called"
        )
    return {
        name: net.template.buffers[name]
        .to(device=device, dtype=dtype if net.template.buffers[name].is_floating_point() else None)
        .expand(shape)
        .clone()
        for name, shape in net.state_shapes.items()
    }


def default_state(net: Network, params: Mapping[str, Tensor]) -> Params:
    """The initial buffers, on the device of the params and in their floating dtype."""
    if not net.template.buffers:
        return {}
    like = next((leaf for leaf in params.values() if leaf.is_floating_point()), None)
    return init_state(net) if like is None else init_state(net, device=like.device, dtype=like.dtype)


# --- one agent -----------------------------------------------------------------------------------------


def agent_params(net: Network, params: Mapping[str, Tensor], agent: int) -> Params:
    """One agent's tree ``{name: leaf}``, for ``torch.func.functional_call``: views into ``params``.

    Raises:
        StructureError: params that do not fit, or no such agent.

    >>> from functional_marl.network import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_params(net, init_params(net, 0), 1)["weight"].shape
    torch.Size([2, 4])
    """
    params = as_flat_dict(params)
    slots = _slot_maps(net, params)
    return _of_agent(net, params, slots, agent)


def _of_agent(net: Network, params: Params, slots: Mapping[str, Sharing], agent: int) -> Params:
    if not -net.n_agents <= agent < net.n_agents:
        raise StructureError(f"agent: expected an index below {net.n_agents}, got {agent}")
    return {name: leaf[slots[name][agent]] for name, leaf in params.items()}


def unstack_agents(net: Network, params: Mapping[str, Tensor]) -> list[Params]:
    """The trees of all agents, in order: views into ``params``. The inverse of :func:`stack_agents`.

    >>> from functional_marl.network import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3, sharing="shared")
    >>> len(unstack_agents(net, init_params(net, 0)))
    3
    """
    params = as_flat_dict(params)
    slots = _slot_maps(net, params)
    return [_of_agent(net, params, slots, agent) for agent in range(net.n_agents)]


def agent_module(
    net: Network, params: Mapping[str, Tensor], agent: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """One agent as an ordinary ``nn.Module`` in evaluation mode, holding copies: for export or a robot.

    For a centralized network it takes the joint input.

    >>> from functional_marl.network import network
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
    lines = [line for i, tree in enumerate(flat) for line in _mismatches(tree, first, f"trees[{i}]")]
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
        if merge == "mean" and len(agents) > 1:
            leader = _mean([leaves[i].detach() for i in agents])
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


def _mean(rows: Sequence[Tensor]) -> Tensor:
    """The mean of floats; of integers (counters) the largest, as for shared buffers."""
    stacked = torch.stack(list(rows))
    if not (stacked.is_floating_point() or stacked.is_complex()):
        return stacked.amax(0)
    # The mean is taken of the differences: agents that agree keep their value to the bit.
    return rows[0] + (stacked - rows[0]).mean(0)


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

    >>> from functional_marl.network import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=2, sharing="shared")
    >>> net, params = reshare(net, init_params(net, 0), "independent", agents=[0, 0, 1])
    >>> params["weight"].shape
    torch.Size([3, 2, 4])
    """
    params = as_flat_dict(params)
    old = _slot_maps(net, params)
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

    Patterns are shell patterns over the names, the first match wins; each label is a key of the result,
    also where nothing matches it. The leaves are the same tensors. As ``optax.partition`` labels.

    Raises:
        StructureError: a leaf that no pattern matches.

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
    return parts


def combine(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put parts together again; the inverse of :func:`partition`.

    Raises:
        StructureError: a leaf that stands in two parts.
    """
    whole: dict[str, Any] = {}
    for part in parts:
        twice = sorted(whole.keys() & part.keys())
        if twice:
            raise StructureError(f"combine: {twice} stand in more than one part")
        whole.update(part)
    return whole
