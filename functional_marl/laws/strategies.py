"""What hypothesis draws for the laws: sharings, networks, inputs, groups, and whole subjects.

The only importer of hypothesis in the package (``pip install functional-marl[laws]``). Strategies draw
structure and a seed, never floats, and the simplest case first: what breaks a law shrinks to few agents of a
small network without batch axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from functional_marl._groups.group_map import MarlGroupMapType, by_prefix, by_spec
from functional_marl._network import Network
from functional_marl._pytrees import Tree, tree_map
from functional_marl._sharing import Sharing
from functional_marl.laws._capabilities import (
    A_BATCH,
    APART,
    CENTRALIZED,
    CLUSTER,
    COMPILES,
    DRAWS_IN_TRAINING,
    EXPORTS,
    FLOAT_INPUTS,
    INDEPENDENT,
    LOCAL,
    MASKS_AGENTS,
    NO_MASK,
    NO_SPARE_SLOTS,
    NOT_CENTRALIZED,
    ONE_AGENT,
    POOLED,
    ROWS_APART,
    SEVERAL_AGENTS,
    SHARED,
    SHOWS_MASK,
    SPARE_SLOTS,
    VMAP,
    WIDE_INPUTS,
)
from functional_marl.laws._law import Capability, Law
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._zoo_subject import leaf_names_of, zoo_subject
from functional_marl.laws.equivalence import Patterns
from functional_marl.laws.facade import Facade
from functional_marl.laws.groups import Critics, Grouped, Named
from functional_marl.laws.zoo import ZOO, Entry
from functional_marl.random import key

__all__ = [
    "agent_dims",
    "batches",
    "cases",
    "critics",
    "entries",
    "facades",
    "grouped",
    "groupings",
    "inputs",
    "keys",
    "name_lists",
    "networks",
    "partitions",
    "patterns",
    "seeds",
    "sharing_specs",
    "sharings",
    "subjects",
]


# --- keys and sharings ------------------------------------------------------------------------------------


def seeds() -> st.SearchStrategy[int]:
    """Seeds, small ones first."""
    return st.integers(0, 2**32 - 1)


def keys() -> st.SearchStrategy[Tensor]:
    """Keys, ``[2]`` int64."""
    return st.builds(key, st.integers(0, 2**64 - 1))


@st.composite
def sharings(draw: st.DrawFn, n_agents: int, *, where: Sequence[Capability] = (), spare: bool | None = None) -> Sharing:
    """Slot maps of so many agents: any slots under any names, also with slots that nobody is in.

    ``where`` narrows it by the capabilities ``SHARED``, ``INDEPENDENT``, ``CLUSTER`` and ``APART``; ``spare`` says
    whether there are unused slots.
    """
    if SHARED in where:
        slots = [0] * n_agents
    elif INDEPENDENT in where:
        slots = draw(st.permutations(range(n_agents)))
    else:
        slots = draw(st.lists(st.integers(0, n_agents - 1), min_size=n_agents, max_size=n_agents))
        if CLUSTER in where and len(set(slots)) == n_agents:
            slots[-1] = slots[0]
        if APART in where and len(set(slots)) == 1:
            slots[-1] = (slots[0] + 1) % n_agents
    used = sorted(set(slots))
    slots = [used.index(slot) for slot in slots]
    if spare is None:
        spare = draw(st.integers(0, 3)) == 3
    if not spare:
        return Sharing(slots)
    free = draw(st.integers(0, len(used)))  # a slot that nobody is in, between the others
    return Sharing([slot + (slot >= free) for slot in slots], len(used) + 1)


@st.composite
def sharing_specs(
    draw: st.DrawFn, n_agents: int, names: Sequence[str], *, where: Sequence[Capability] = (), spare: bool | None = None
) -> Any:
    """What ``sharing=`` takes: presets, slot maps, and a pattern for one leaf with another for the rest."""
    one = sharings(n_agents, where=where, spare=spare)
    kinds = ["map", "patterns"] if CLUSTER in where or spare else ["preset", "map", "patterns"]
    kind = draw(st.sampled_from(kinds))
    if kind == "preset":
        narrow = {"shared": SHARED in where, "independent": INDEPENDENT in where or APART in where}
        return draw(st.sampled_from([preset for preset, wanted in narrow.items() if wanted] or list(narrow)))
    if kind == "map" or len(names) < 2:
        return draw(one)
    # With CLUSTER, agents that share one leaf share all the rest; with APART, those that do not share it share nothing.
    rest = st.just("shared") if CLUSTER in where else st.just("independent") if APART in where else one
    return {draw(st.sampled_from(list(names))): draw(one), "*": draw(rest)}


# --- networks and inputs ----------------------------------------------------------------------------------


def entries(where: Sequence[Capability] = ()) -> st.SearchStrategy[Entry]:
    """Networks of the zoo that have the capabilities: the plain ones first."""
    allowed = [entry for entry in ZOO.values() if _fits(entry, where)]
    return st.sampled_from(allowed)


def _fits(entry: Entry, where: Sequence[Capability]) -> bool:
    has = {
        CENTRALIZED: entry.joint is not None,
        DRAWS_IN_TRAINING: entry.random,
        ROWS_APART: entry.rows_apart,
        SHOWS_MASK: entry.shows_mask,
        POOLED: entry.pooled,
        MASKS_AGENTS: entry.masks_agents,
        NO_MASK: not entry.masks_agents,
        VMAP: entry.vmap,
        COMPILES: entry.compiles,
        EXPORTS: entry.exports,
        A_BATCH: entry.batch_dims[1] > 0,
        FLOAT_INPUTS: any(spec.high == 0 for spec in entry.first),
        WIDE_INPUTS: entry.flat and len(entry.inputs) == 1,
    }
    return all(has.get(capability, True) for capability in where)


def batches(entry: Entry, where: Sequence[Capability] = ()) -> st.SearchStrategy[tuple[int, ...]]:
    """Sizes of batch axes that a network takes: none first."""
    least, most = entry.batch_dims
    size = st.integers(entry.batch_size, 3)
    return st.lists(size, min_size=max(least, int(A_BATCH in where)), max_size=most).map(tuple)


@st.composite
def agent_dims(draw: st.DrawFn, entry: Entry, batch_dims: int) -> int | tuple[int | None, ...] | None:
    """Where inputs carry the agents: behind the batch axes, at one place for all, or at one an input.

    An input after the first may also be seen whole by every agent.
    """
    depth = min(len(spec.shape) for spec in entry.first)
    places = len(entry.inputs) + bool(entry.kwargs)
    kind = draw(st.sampled_from(["behind", "place", "negative", "each"]))
    if kind == "behind":
        return None
    place = draw(st.integers(0, batch_dims))
    if kind == "place":
        return place
    if kind == "negative":
        return place - batch_dims - 1 - depth if len({len(spec.shape) for spec in entry.first}) == 1 else place
    rest = [draw(st.none() | st.integers(0, batch_dims)) for _ in range(places - 1)]
    return (place, *rest, *(() if entry.kwargs else (place,)))


@st.composite
def subjects(draw: st.DrawFn, where: Sequence[Capability] = (), *, most_agents: int = 4) -> NetworkSubject:
    """Subjects of the zoo that have all of the capabilities (see ``functional_marl.laws._capabilities``)."""
    entry = draw(entries(where))
    least = 2 if {SEVERAL_AGENTS, CLUSTER, APART} & set(where) else 1
    most = 1 if ONE_AGENT in where else min(most_agents, 3) if WIDE_INPUTS in where else most_agents
    n = draw(st.integers(least, max(least, most)))  # capabilities may exclude each other
    spare = True if SPARE_SLOTS in where else False if NO_SPARE_SLOTS in where else None
    sharing = draw(sharing_specs(n, leaf_names_of(entry), where=where, spare=spare))
    centralized = CENTRALIZED in where
    if not centralized and not {LOCAL, NOT_CENTRALIZED} & set(where) and entry.joint is not None:
        centralized = draw(st.booleans())
    batch = draw(batches(entry, where))
    places = None if centralized else draw(agent_dims(entry, len(batch)))
    if isinstance(places, int) and places < 0 and n in batch:
        places = None  # on inputs of different depth it may fit two axes of one size, which apply refuses
    made = zoo_subject(
        entry.name,
        n_agents=n,
        sharing=sharing,
        centralized=centralized,
        batch=batch,
        agent_dims=places,
        out_agent_dim=draw(st.none() | st.integers(0, len(batch))),
        randomness=draw(st.sampled_from(["different", "same"])),
        strategy=draw(st.sampled_from(["auto", "loop"])),
        seed=draw(seeds()),
    )
    assume(all(capability.holds(made) for capability in where))
    return made


def networks(where: Sequence[Capability] = ()) -> st.SearchStrategy[Network]:
    """Networks over the zoo under any settings."""
    return subjects(where).map(lambda s: s.net)


@st.composite
def inputs(draw: st.DrawFn, specs: Tree, lead: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tree:
    """Standard normal numbers for a tree of specs, ``[*lead, *shape]`` a leaf, a function of a drawn seed."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    return tree_map(lambda spec: spec.draw(lead, generator, dtype), specs)


# --- patterns ---------------------------------------------------------------------------------------------


@st.composite
def patterns(draw: st.DrawFn) -> Patterns:
    """Leaf names and mappings of patterns, most of which fit them."""
    names = draw(st.lists(st.sampled_from(_LEAVES), min_size=1, unique=True))
    n = draw(st.integers(1, 3))
    one = st.sampled_from(["shared", "independent"]) | sharings(n, spare=False).map(lambda sharing: list(sharing))
    known = st.sampled_from([*names, *(f"{name.split('.')[0]}.*" for name in names), "*.weight", "[01]*", "?.*"])
    chosen = draw(st.lists(known, max_size=2, unique=True))
    chosen += ["*"] if draw(st.booleans()) else []
    return Patterns(tuple(names), n, tuple((pattern, draw(one)) for pattern in chosen))


_LEAVES = ["0.weight", "0.bias", "2.weight", "2.bias", "body.0.weight", "Body.0.weight", "weight"]


# --- groups -----------------------------------------------------------------------------------------------

_NAMES = st.one_of(
    st.builds("{}_{}".format, st.sampled_from(["agent", "wolf", "group"]), st.integers(0, 12)),
    st.sampled_from(["agent", "wolf", "_0", "agent_0_1", "a.b", "agents"]),
    st.text(max_size=4),
)
_DTYPES = [torch.float32, torch.float64, torch.int8, torch.int64, torch.bool]
_SHAPES: st.SearchStrategy[tuple[int, ...]] = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def name_lists() -> st.SearchStrategy[list[str]]:
    """Names of agents: with numbers, with prefixes in common, any text."""
    return st.lists(_NAMES, min_size=1, max_size=8, unique=True)


@st.composite
def partitions(draw: st.DrawFn, names: Sequence[str]) -> dict[str, list[str]]:
    """Group maps of the names in any order, with groups of any names in any order."""
    shuffled = draw(st.permutations(names))
    labels = draw(st.lists(_NAMES, min_size=1, max_size=len(names), unique=True))
    groups: dict[str, list[str]] = {}
    for name in shuffled:
        groups.setdefault(draw(st.sampled_from(labels)), []).append(name)
    return groups


@st.composite
def groupings(draw: st.DrawFn, more: Sequence[Any] = ()) -> Named:
    """Names, and everything that ``group_map`` takes to group them; ``more`` adds kinds of it."""
    names = draw(name_lists())
    table = draw(partitions(names))
    home = {name: group for group, members in table.items() for name in members}
    specs = {name: draw(st.integers(0, 2)) for name in names}
    kinds: list[tuple[Any, str]] = [
        *((kind, "") for kind in (*MarlGroupMapType, *more)),
        (by_prefix, "by_prefix"),
        (table, ""),
        (home.__getitem__, f"{home}.__getitem__"),
        (by_spec(specs), f"by_spec({specs})"),
    ]
    grouping, words = draw(st.sampled_from(kinds))
    return Named(names, grouping, words=words)


def _structures() -> st.SearchStrategy[Any]:
    """Trees whose leaves are a shape and a dtype: empty tensors on the meta device."""
    leaf = st.builds(torch.empty, _SHAPES, dtype=st.sampled_from(_DTYPES), device=st.just("meta"))

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        names = st.sampled_from(["obs", "action", "done", "r"])
        return st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | st.none()

    return st.recursive(leaf, grow, max_leaves=4)


@st.composite
def grouped(draw: st.DrawFn) -> Grouped:
    """Agents in groups with data: trees or TensorDicts, groups of unlike structure, any batch axes."""
    names = draw(name_lists())
    groups = draw(partitions(names))
    batch = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(seeds()))
    # A TensorDict keyed by agent has names for keys: no empty ones.
    flat = all((*names, *groups)) and draw(st.booleans())

    def filled(leaf: Tensor) -> Tensor:
        low, high = (0, 2) if leaf.dtype is torch.bool else (-100, 100)
        return torch.randint(low, high, (*batch, *leaf.shape), generator=generator).to(leaf.dtype)

    per_agent: Any = {}
    for members in groups.values():
        structure = draw(_structures())
        for name in members:
            tree = tree_map(filled, structure)
            per_agent[name] = TensorDict({"tree": filled(torch.empty(2, device="meta"))}, batch) if flat else tree
    order = draw(st.permutations(names))
    per_agent = {name: per_agent[name] for name in order}
    return Grouped(groups, TensorDict(per_agent, batch) if flat else per_agent, len(batch), draw(st.booleans()))


# --- modules of the facade --------------------------------------------------------------------------------


@st.composite
def facades(draw: st.DrawFn) -> Facade:
    """Modules of ``functional_marl.nn``: classes, sharings, storages, views, layers, dropout, norms."""
    kind: Any = draw(st.sampled_from(["mlp", "conv"]))
    n = draw(st.integers(1, 4))
    share = draw(
        st.booleans() | st.builds(list, sharings(n, spare=False)) | st.just({"*.bias": "shared", "*": "independent"})
    )
    options: dict[str, Any] = {}
    if kind == "mlp":
        options["num_cells"] = draw(st.lists(st.integers(1, 6), max_size=2))
        options["activation_class"] = draw(st.sampled_from(["Tanh", "ReLU"]))
        if draw(st.booleans()):
            options["dropout"] = 0.5
        if options["num_cells"] and draw(st.booleans()):
            norm = draw(st.sampled_from(["LayerNorm", "BatchNorm1d"]))
            size = "normalized_shape" if norm == "LayerNorm" else "num_features"
            options |= {"norm_class": norm, "norm_kwargs": [{size: width} for width in options["num_cells"]]}
    else:
        options |= {"num_cells": [3, 2][: draw(st.integers(1, 2))], "kernel_sizes": 2, "strides": 1}
    batch = draw(st.lists(st.integers(2, 3), min_size=1, max_size=1 if "norm_class" in options else 2))
    return Facade(
        kind,
        n,
        share,
        centralized=draw(st.booleans()),
        use_td_params=draw(st.booleans()),
        randomness=draw(st.sampled_from(["different", "same"])),
        batch=tuple(batch),
        options=tuple(options.items()),
        seed=draw(seeds()),
    )


@st.composite
def critics(draw: st.DrawFn) -> Critics:
    """Critics over one group or more, any of which are detached."""
    groups = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3))
    detached = draw(st.lists(st.integers(0, len(groups) - 1), unique=True).map(sorted))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    return Critics(tuple(groups), tuple(detached), draw(st.booleans()), tuple(batch), draw(seeds()))


# --- what each law takes ----------------------------------------------------------------------------------

_KINDS: dict[type, Callable[[], st.SearchStrategy[Any]]] = {
    Patterns: patterns,
    Grouped: grouped,
    Named: groupings,
    Critics: critics,
    Facade: facades,
}


def cases(law: Law) -> st.SearchStrategy[Any]:
    """Everything that a law is about; of subjects those of the zoo."""
    return _KINDS[law.about]() if law.about in _KINDS else subjects(law.requires)
