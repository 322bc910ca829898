"""Evaluations, sharings and names of slots that come to the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import SharingError
from functional_marl._lowering.linear_kernels import chunks_of
from functional_marl._pytrees import Params, flatten, tree_map
from functional_marl._sharing import Sharing
from functional_marl.laws._capabilities import (
    NO_SPARE_SLOTS,
    ORACLE,
    REPEATABLE_IF_IT_RUNS,
    ROWS_APART,
    SLOTS,
    SPARE_SLOTS,
)
from functional_marl.laws._compare import Broken, agree, broken, zero
from functional_marl.laws._law import law
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws._subject import Subject

__all__ = [
    "Patterns",
    "agents_are_networks",
    "chunks_make_the_whole",
    "coarsen_after_refine",
    "patterns_are_total",
    "refine_after_coarsen",
    "refinement_composes",
    "refining_keeps_outputs",
    "relabelling_keeps_outputs",
    "shared_is_tiled",
    "strategies_train_alike",
    "unused_slots_are_inert",
]


@law(1, ORACLE, REPEATABLE_IF_IT_RUNS)
def agents_are_networks(s: Subject) -> None:
    """y_i = f(θ_i, x_i), however it is evaluated.

    Every agent's output is what the network of one agent gives for its input and its parameters; so sharing is
    the same as independent agents that hold copies.
    """
    if s.fault is not None:
        shapes = [list(leaf.shape) for leaf in flatten(s.alone(s.agents[0]))[0] if isinstance(leaf, Tensor)]
        why = " ".join(str(s.fault).split())[:160]
        broken(f"agent {s.agents[0]}: expected outputs of shape {shapes}, got {type(s.fault).__name__}: {why}")
    alone = [s.alone(i) for i in range(s.n)]
    for name, one in s.evaluations().items():
        for i, output in enumerate(one.outputs()):
            where = f"{name}, agent {i}" if name else f"agent {i}"
            agree(output, alone[i], f"{where}, against the network of one agent: output", oracle=True)


@law(1, SLOTS)
def strategies_train_alike(s: NetworkSubject) -> None:
    """y, B' from a key are those of every strategy.

    In training vmap, the loop and the plan draw the same and write the same buffers.
    """
    first, *others = s.evaluations().items()
    outputs, state = first[1].trained(key=s.key())
    for name, one in others:
        trained = one.trained(key=s.key())
        for i, output in enumerate(trained[0]):
            agree(output, outputs[i], f"{name} against {first[0]} in training, agent {i}: output", oracle=True)
        agree(trained[1], state, f"{name} against {first[0]} in training: state", oracle=True)


@law(2, SLOTS)
def shared_is_tiled(s: NetworkSubject) -> None:
    """y(P, σ) = y(P∘σ, identity).

    Any sharing equals independent agents that hold copies; a shared buffer after a step is the mean of what
    the copies become, the largest for integers.
    """
    tiled = s.tiled()
    for i, (output, want) in enumerate(zip(s.outputs(), tiled.outputs(), strict=True)):
        agree(output, want, f"sharing {_short(s)}, agent {i}: output")
    outputs, state = s.trained(key=s.key())
    wanted, rows = tiled.trained(key=s.key())
    for i, (output, want) in enumerate(zip(outputs, wanted, strict=True)):
        agree(output, want, f"sharing {_short(s)} in training, agent {i}: output")
    for name, leaf in rows.items():
        for slot in range(s.slots[name].n_slots):
            members = list(s.slots[name].members(slot))
            if not members:
                want = s.state[name][slot]
            elif leaf.is_floating_point():
                want = leaf[members].mean(0)
            else:
                want = leaf[members].amax(0)
            agree(
                state[name][slot], want, f"slot {slot} of agents {members}: buffer {name!r} after a step", oracle=True
            )


def _short(s: NetworkSubject) -> str:
    return ", ".join(f"{name}: {list(sharing)}" for name, sharing in s.slots.items())


def _finer(s: NetworkSubject) -> dict[str, Sharing]:
    """Slot maps that split slots at random, all slots used, new names."""
    rng = s.rng()
    finer: dict[str, Sharing] = {}
    for name, sharing in s.slots.items():
        labels = [(slot, rng.randrange(2)) for slot in sharing]
        names = list(dict.fromkeys(labels))
        rng.shuffle(names)
        finer[name] = Sharing([names.index(label) for label in labels])
    return finer


def _reshared(s: NetworkSubject, sharing: Mapping[str, Sharing], merge: str = "error") -> NetworkSubject:
    """The subject under another sharing, parameters and state, by ``ops.reshare``."""
    try:
        net, params = s.ops.reshare(s.net, s.params, sharing, merge=merge)
        state = s.ops.reshare(s.net, s.state, sharing, merge=merge)[1] if s.state else {}
    except SharingError as error:  # no law asks for what would have to be merged
        raise Broken(f"reshare from {_short(s)} with merge={merge!r}: {error}") from None
    return replace(s, net=net, params=params, state=state)


@law(3, SLOTS)
def refining_keeps_outputs(s: NetworkSubject) -> None:
    """y(refine(P)) = y(P).

    Splitting slots changes no agent's network and no output.
    """
    finer = _reshared(s, _finer(s))
    for i, (output, want) in enumerate(zip(finer.outputs(), s.outputs(), strict=True)):
        agree(finer.of_agent(i), s.of_agent(i), f"agent {i}: parameters", exact=True)
        agree(output, want, f"agent {i}: output")


@law(4, SLOTS, NO_SPARE_SLOTS)
def coarsen_after_refine(s: NetworkSubject) -> None:
    """coarsen(refine(P)) = P.

    Merging what was split gives back the parameters: to the bit with "first" and "error", to rounding with
    the mean.
    """
    finer = _reshared(s, _finer(s))
    for merge in ("error", "first", "mean"):
        back = _reshared(finer, s.slots, merge)
        agree(back.params, s.params, f"merge={merge!r}: params", exact=merge != "mean", oracle=True)
        agree(back.state, s.state, f"merge={merge!r}: state", exact=merge != "mean", oracle=True)


@law(5, SLOTS)
def refine_after_coarsen(s: NetworkSubject) -> None:
    """Let m = refine ∘ coarsen: m(m(P)) = m(P), and m(P) has the mean (the first) of those who merged.

    Merging agents and splitting them a second time changes nothing more.
    """
    rng = s.rng()
    coarse = {name: Sharing([rng.randrange(2) for _ in range(s.n)]).canonical() for name in s.slots}
    apart = dict.fromkeys(s.slots, Sharing.independent(s.n))
    for merge in ("mean", "first"):
        once = _reshared(_reshared(s.tiled(), coarse, merge), apart)
        twice = _reshared(_reshared(once, coarse, merge), apart)
        agree(twice.params, once.params, f"merge={merge!r}: params", exact=merge == "first", oracle=True)
        agree(twice.state, once.state, f"merge={merge!r}: state", exact=merge == "first", oracle=True)
        for i in range(s.n):
            for name, leaf in once.of_agent(i).items():
                members = coarse[name].members(coarse[name][i])
                rows = torch.stack([s.of_agent(j)[name] for j in members])
                want = rows.mean(0) if merge == "mean" else rows[0]
                agree(leaf, want, f"merge={merge!r}, agent {i} of the merged {list(members)}: {name}", oracle=True)


@law(6, SLOTS)
def relabelling_keeps_outputs(s: NetworkSubject) -> None:
    """y(P∘π⁻¹, π∘σ) = y(P, σ).

    The names of slots mean nothing: permuted together with the parameters they keep every output.
    """
    rng, names = s.rng(), dict[str, list[int]]()
    for name, sharing in s.slots.items():
        names[name] = list(range(sharing.n_slots))
        rng.shuffle(names[name])

    def moved(leaves: Params) -> Params:
        # row s goes to place π(s)
        return {k: leaf[[names[k].index(slot) for slot in range(len(names[k]))]] for k, leaf in leaves.items()}

    slots = {k: Sharing([names[k][slot] for slot in sharing], sharing.n_slots) for k, sharing in s.slots.items()}
    other = replace(s, net=s.net.replace(sharing=slots), params=moved(s.params), state=moved(s.state))
    for i, (output, want) in enumerate(zip(other.outputs(), s.outputs(), strict=True)):
        agree(output, want, f"slots {_short(s)} renamed {names}, agent {i}: output")


@law(7, SLOTS)
def refinement_composes(s: NetworkSubject) -> None:
    """refine_ρ ∘ refine_τ = refine_ρ.

    Splitting slots in two steps or in one gives the same parameters to the bit.
    """
    middle = _reshared(s, _finer(s))
    last = _finer(replace(middle, seed=s.seed + 1))
    agree(_reshared(middle, last).params, _reshared(s, last).params, "params", exact=True)
    agree(_reshared(middle, last).state, _reshared(s, last).state, "state", exact=True)


@dataclass(frozen=True)
class Patterns:
    """Leaf names and a mapping of patterns to slot maps, which need not fit them."""

    names: tuple[str, ...]
    n_agents: int
    spec: tuple[tuple[str, Any], ...]
    ops: Operations = field(default=LIBRARY, repr=False)


@law(8, about=Patterns)
def patterns_are_total(case: Patterns) -> None:
    """σ_leaf = spec[the first pattern that matches leaf]; no leaf without a pattern, no pattern without a leaf.

    Which pattern decides is the order of the mapping; what does not fit raises.
    """
    spec, presets = dict(case.spec), {"shared": Sharing.shared, "independent": Sharing.independent}
    first = {name: next((p for p in spec if fnmatchcase(name, p)), None) for name in case.names}
    fits = None not in first.values() and set(spec) == set(first.values())
    try:
        found = case.ops.resolve(spec, case.n_agents, case.names)
    except SharingError as error:
        if fits:
            broken(f"patterns {spec} over {list(case.names)}: expected slot maps, got {error}")
        return
    if not fits:
        broken(f"patterns {spec} over {list(case.names)}: expected an error, got {found}")
    for name, pattern in first.items():
        given = spec[pattern or ""]
        want = presets[given](case.n_agents) if isinstance(given, str) else Sharing(given)
        if found.get(name) != want:
            broken(f"leaf {name!r}: expected {want} of pattern {pattern!r}, got {found.get(name)}")
    if list(found) != list(case.names):
        broken(f"expected the leaves {list(case.names)}, got {list(found)}")


@law(9, SLOTS, SPARE_SLOTS)
def unused_slots_are_inert(s: NetworkSubject) -> None:
    """∂y / ∂P[s] = 0 and y is unchanged by P[s], for every slot s that no agent is in.

    Not a number in a spare slot harms nobody.
    """

    def spoiled(leaves: Params) -> Params:
        out: Params = {}
        for name, leaf in leaves.items():
            out[name] = leaf.clone()
            for slot in s.slots[name].unused():
                out[name][slot] = torch.nan if leaf.is_floating_point() else 10**6
        return out

    other = replace(s, params=spoiled(s.params), state=spoiled(s.state))
    for i, (output, want) in enumerate(zip(other.outputs(), s.outputs(), strict=True)):
        agree(output, want, f"agent {i}: output with spare slots spoiled", exact=True)
    watched, gradients = s.watching_parameters()
    for name, gradient in gradients(s.training_loss(watched.outputs())).items():
        zero({f"{name}[{slot}]": gradient[slot] for slot in s.slots[name].unused()}, "the loss of all agents")


def _with_gradients(s: NetworkSubject) -> tuple[Any, Params]:
    """Outputs in training, and the gradient of all agents' losses."""
    watched, gradients = s.watching_parameters()
    trained = watched.trained(key=s.key())
    return trained, gradients(s.training_loss(trained[0]))


@law(10, SLOTS)
def chunks_make_the_whole(s: NetworkSubject) -> None:
    """y(x) = [y(x'), y(x'')] for every cut x = [x', x''] of the batch, and for any number of agents at a time.

    Pieces of the batch give the rows of the whole, where the module keeps rows apart; the plan gives the same
    outputs and gradients in pieces of the team as at once.
    """
    wanted, rng = s.outputs(), s.rng()
    for axis, size in enumerate(s.batch if ROWS_APART.holds(s) else ()):
        if size < 2:
            continue
        at = rng.randrange(1, size)
        pieces = [s.rows(axis, start, count).outputs() for start, count in ((0, at), (at, size - at))]
        for i in range(s.n):
            joined = tree_map(lambda *rows, axis=axis: torch.cat(rows, axis), pieces[0][i], pieces[1][i])
            agree(joined, wanted[i], f"batch axis {axis} cut at {at}, agent {i}: output")
    if "plan" not in s.strategies:
        return
    planned = replace(s, net=s.net.replace(strategy="plan"))
    whole = _with_gradients(planned)
    for size in (1, rng.choice([100, 200, 400])):
        with chunks_of(size):
            # with a key, for without one the commonest call has a way of its own
            outputs, (trained, gradients) = planned.outputs(key=s.key()), _with_gradients(planned)
        for i in range(s.n):
            agree(outputs[i], wanted[i], f"agents in chunks of {size} bytes, agent {i}: output")
        agree(trained, whole[0], f"agents in chunks of {size} bytes: outputs and state of training")
        agree(gradients, whole[1], f"agents in chunks of {size} bytes: gradient")
