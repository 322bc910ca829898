"""What training does to who shares what (laws 24 to 27)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from functional_marl._pytrees import Params, flatten
from functional_marl.laws._capabilities import (
    AGENTS_IN_OUTPUTS,
    ANONYMOUS,
    APART,
    CLUSTER,
    GRADIENTS,
    LOCAL,
    NOT_CENTRALIZED,
    NUMBERS,
    REPEATABLE,
    RUNS,
    SEVERAL_AGENTS,
    SLOTS,
)
from functional_marl.laws._compare import agree, broken, differ
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._subject import Subject

__all__ = [
    "frozen_stays",
    "optimizer_commutes_with_stacking",
    "slot_gradient_is_the_sum",
    "slots_stay_together",
    "tied_agents_stay_tied",
    "training_others_changes_nothing",
]

_TRAINS = (RUNS, NUMBERS, GRADIENTS, AGENTS_IN_OUTPUTS)


@law(24, *_TRAINS)
def slot_gradient_is_the_sum(s: NetworkSubject | ModuleSubject) -> None:
    """∂L / ∂P[ℓ][s] = Σ_{σ_ℓ(i) = s} ∂L / ∂θ_i[ℓ].

    The gradient of a number is the sum of what each of its agents' losses alone gives.
    """
    watched, gradients = s.watching_parameters()
    outputs = watched.outputs()
    together = gradients(s.training_loss(outputs))
    rows = [s.gradient_of(i) for i in range(s.n)]
    # Outputs may be coarser than parameters, as under autocast.
    coarse = [leaf.dtype for leaf in flatten(outputs)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # Rounding is that of the largest gradient on the way: ahead of a norm a bias gets none, but its rounding.
    largest = max((float(leaf.abs().max()) for row in rows for leaf in row.values() if leaf.numel()), default=0.0)
    for name, gradient in together.items():
        total = torch.stack([row[name] for row in rows]).sum(0)
        rounded = max((gradient.dtype, *coarse), key=lambda dtype: torch.finfo(dtype).eps)
        found, wanted = (
            torch.cat([leaf.flatten(), leaf.new_tensor([largest])]).to(rounded) for leaf in (gradient, total)
        )
        agree(found, wanted, f"all {s.n} agents together: gradient of {name}, flat")


@law(25, *_TRAINS, CLUSTER, NOT_CENTRALIZED, ANONYMOUS, REPEATABLE)
def tied_agents_stay_tied(s: Subject) -> None:
    """σ(i) = σ(j) and x_i = x_j imply y_i = y_j after a step of training, too.

    Agents of one slot stay one through training, parameters and buffers: copies that only start alike drift apart.
    """
    stepped = s.stepped(s.training_loss)
    leader = [next(members[0] for members in s.classes() if i in members) for i in range(s.n)]
    outputs = stepped.taking(leader).outputs()
    for i, j in enumerate(leader):
        if i != j:
            agree(outputs[i], outputs[j], f"after a step, agents {j} and {i} with equal inputs: output")


@law(25, SLOTS)
def slots_stay_together(s: NetworkSubject) -> None:
    """σ_ℓ(i) = σ_ℓ(j) implies θ_i[ℓ] = θ_j[ℓ] after any step.

    After training each agent still has what its slot has, to the bit.
    """
    stepped = s.stepped(s.training_loss)
    trees: list[Params] = s.ops.unstack_agents(s.net, stepped.params)
    for name in s.params:
        for slot in range(s.slots[name].n_slots):
            for i in s.slots[name].members(slot):
                where = f"after a step, agent {i} in slot {slot}: {name}"
                agree(trees[i][name], stepped.params[name][slot], where, exact=True)


@law(25, *_TRAINS, APART, LOCAL, REPEATABLE, own_modes=True)
def training_others_changes_nothing(s: Subject) -> None:
    """σ(i) ∩ σ(j) = ∅ implies that y_i after a step of training does not change with the x_j that it trained on.

    Agents that share nothing learn apart: what one trains on changes nothing of the other, running statistics included.
    """
    other = s.redrawn(s.seed + 1000)
    after = s.with_numbers_of(s.stepped(s.training_loss)).outputs(train=False)
    for j in s.agents:
        moved = s.with_agent(j, other).stepped(s.training_loss)
        outputs = s.with_numbers_of(moved).outputs(train=False)
        for i in range(s.n):
            if s.share_nothing(i, j):
                agree(outputs[i], after[i], f"agent {i}'s output after agent {j} has trained on other data")


@law(26, SLOTS)
def frozen_stays(s: NetworkSubject) -> None:
    """combine(frozen, step(trained)) = P on every frozen leaf; combine(partition(P)) = P.

    A part that ``partition`` set aside stays the same to the bit, the rest learns, and no leaf is lost.
    """
    names = list(s.params)
    chosen = names[s.seed % len(names)]
    # The second pattern matches the chosen leaf too: the first decides.
    patterns = {chosen: "frozen", f"{chosen[:1]}*": "trained", "*": "trained"}
    deciding = {next(p for p in patterns if fnmatchcase(name, p)) for name in names}
    patterns = {p: label for p, label in patterns.items() if p in deciding}  # one that decides nothing is refused
    parts: dict[str, Params] = s.ops.partition(s.params, patterns)
    agree(s.ops.combine(*parts.values()), s.params, "partition and combine: params", exact=True)
    frozen = [name for name in names if next(patterns[p] for p in patterns if fnmatchcase(name, p)) == "frozen"]
    if set(parts.get("frozen", {})) != set(frozen):
        broken(f"partition by {patterns}: expected the frozen {frozen}, got {list(parts.get('frozen', {}))}")
    trained = parts.get("trained")
    if not trained:
        return
    watched, gradients = s.watching_parameters()
    found = gradients(s.training_loss(watched.outputs()))
    after = s.ops.combine(parts["frozen"], s.optimized(trained, [found]))
    for name in frozen:
        agree(after[name], s.params[name], f"frozen {name} after a step", exact=True)
    differ(
        {name: after[name] for name in trained},
        {name: s.params[name] for name in trained},
        "trained leaves after a step",
    )


@law(27, SLOTS, SEVERAL_AGENTS)
def optimizer_commutes_with_stacking(s: NetworkSubject) -> None:
    """step(stack_i θ_i) = stack_i step(θ_i) for elementwise optimizers; clip(stack_i g_i) ≠ stack_i clip(g_i).

    Adam on stacked leaves trains each agent as if alone. A clip by the global norm mixes the agents.
    """
    t = s.tiled()
    first = _gradient(t)
    second = _gradient(t.with_parameters({name: leaf - 0.01 * first[name] for name, leaf in t.params.items()}))
    together = t.optimized(t.params, [first, second])
    each = [
        t.optimized(tree, [{k: g[i] for k, g in first.items()}, {k: g[i] for k, g in second.items()}])
        for i, tree in enumerate(t.ops.unstack_agents(t.net, t.params))
    ]
    agree(together, t.ops.stack_agents(each), "two steps of the optimizer: params")

    def clipped(gradients: Mapping[str, Tensor], limit: float) -> Params:
        copies = {name: leaf.clone() for name, leaf in gradients.items()}
        for name, leaf in copies.items():
            leaf.grad = gradients[name].clone()
        torch.nn.utils.clip_grad_norm_(copies.values(), limit)
        return {name: leaf.grad for name, leaf in copies.items() if leaf.grad is not None}

    rows = [{name: leaf[i] for name, leaf in first.items()} for i in range(t.n)]
    norms = [float(torch.cat([leaf.flatten() for leaf in row.values()]).norm()) for row in rows]
    limit = min(norms) / 2
    alone = t.ops.stack_agents([clipped(row, limit) for row in rows])
    differ(clipped(first, limit), alone, f"gradients of norms {norms} clipped to {limit:.3g} together and alone")


def _gradient(s: NetworkSubject) -> Params:
    watched, gradients = s.watching_parameters()
    return gradients(s.training_loss(watched.outputs()))
