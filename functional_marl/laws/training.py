"""Laws 24 to 27: what training does to slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from functional_marl._pytrees import Params
from functional_marl.laws.law import agree, broken, differ, law
from functional_marl.laws.subject import Subject

__all__ = [
    "frozen_stays",
    "optimizer_commutes_with_stacking",
    "slot_gradient_is_the_sum",
    "tied_agents_stay_tied",
]


def _gradients(s: Subject, params: Params, others: Params | None = None) -> Params:
    """The gradient of the sum of all agents' losses with respect to ``params``; ``others`` stand by."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    whole = {**leaves, **(others or {})}
    called = replace(s, params={name: whole[name] for name in s.own})
    loss = s.training_loss(called.outputs())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _step(s: Subject, params: Params, gradients: Sequence[Mapping[str, Tensor]]) -> Params:
    """The parameters after a few steps of ``ops.optimizer`` with these gradients."""
    leaves = {name: leaf.detach().clone() for name, leaf in params.items()}
    optimizer: Any = s.ops.optimizer(list(leaves.values()), lr=0.05)
    for gradient in gradients:
        for name, leaf in leaves.items():
            leaf.grad = gradient[name].contiguous()
        optimizer.step()
    for leaf in leaves.values():
        leaf.grad = None
    return leaves


@law(24, "parameters", "settings")
def slot_gradient_is_the_sum(s: Subject) -> None:
    """∂L / ∂P[ℓ][s] = Σ_{σ_ℓ(i) = s} ∂L / ∂θ_i[ℓ].

    The gradient of a slot is the sum of what its agents would get as independent ones.
    """
    # The right side without the operation under test: ordinary modules, one an agent.
    rows: list[Params] = []
    for i in range(s.n):
        args, kwargs = s.seen_by(i)
        module = s.ops.agent_module(s.net, s.own, i, s.state if s.state else None)
        wanted = dict(module.named_parameters())
        loss = (i + 1) * s.loss(module(*args, **kwargs))
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
        rows.append(dict(zip(wanted, found, strict=True)))
    for name, gradient in _gradients(s, s.own).items():
        for slot in range(s.slots[name].n_slots):
            members = s.slots[name].members(slot)
            total = sum((rows[i][name] for i in members), torch.zeros_like(gradient[slot]))
            agree(gradient[slot], total, f"slot {slot} of agents {list(members)}: gradient of {name}")


@law(25, "parameters", "a cluster")
def tied_agents_stay_tied(s: Subject) -> None:
    """σ_ℓ(i) = σ_ℓ(j) implies θ_i[ℓ] = θ_j[ℓ] after any step, and P[s] moves by its own gradient.

    Agents in a slot stay one through training.
    """
    gradients = _gradients(s, s.own)
    after = _step(s, s.own, [gradients, gradients])
    trees: list[Params] = s.ops.unstack_agents(s.net, after)
    for name in s.own:
        for slot in range(s.slots[name].n_slots):
            for i in s.slots[name].members(slot):
                agree(trees[i][name], after[name][slot], f"after a step, agent {i} in slot {slot}: {name}", exact=True)
    stepped = replace(s, params=after)
    leader = [next(m[0] for m in s.classes() if i in m) for i in range(s.n)]
    equal = stepped.taking(leader)
    if not s.net.centralized:
        outputs = equal.outputs()
        for i, j in enumerate(leader):
            agree(outputs[i], outputs[j], f"after a step, agents {j} and {i} with equal inputs: output")


@law(26, "parameters")
def frozen_stays(s: Subject) -> None:
    """combine(frozen, step(trained)) = P on every frozen leaf; combine(partition(P)) = P.

    A part that ``partition`` set aside stays the same to the bit, the rest learns, and no leaf is lost.
    """
    names = list(s.own)
    chosen = names[s.seed % len(names)]
    # The second pattern matches the chosen leaf too: the first decides.
    patterns = {chosen: "frozen", f"{chosen[:1]}*": "trained", "*": "trained"}
    deciding = {next(p for p in patterns if fnmatchcase(name, p)) for name in names}
    patterns = {p: label for p, label in patterns.items() if p in deciding}  # one that decides nothing is refused
    parts: dict[str, Params] = s.ops.partition(s.own, patterns)
    agree(s.ops.combine(*parts.values()), s.own, "partition and combine: params", exact=True)
    frozen = [name for name in names if next(patterns[p] for p in patterns if fnmatchcase(name, p)) == "frozen"]
    if set(parts.get("frozen", {})) != set(frozen):
        broken(f"partition by {patterns}: expected the frozen {frozen}, got {list(parts.get('frozen', {}))}")
    trained = parts.get("trained")
    if not trained:
        return
    gradients = _gradients(s, trained, parts["frozen"])
    after = s.ops.combine(parts["frozen"], _step(s, trained, [gradients]))
    for name in frozen:
        agree(after[name], s.own[name], f"frozen {name} after a step", exact=True)
    differ(
        {name: after[name] for name in trained}, {name: s.own[name] for name in trained}, "trained leaves after a step"
    )


@law(27, "parameters", "settings", "several agents")
def optimizer_commutes_with_stacking(s: Subject) -> None:
    """step(stack_i θ_i) = stack_i step(θ_i) for elementwise optimizers; clip(stack_i g_i) ≠ stack_i clip(g_i).

    Adam on stacked leaves trains each agent as if alone. A clip by the global norm mixes the agents.
    """
    t = s.tiled()
    first = _gradients(t, t.own)
    second = _gradients(t, {name: leaf - 0.01 * first[name] for name, leaf in t.own.items()})
    together = _step(t, t.own, [first, second])
    each = [
        _step(t, tree, [{k: g[i] for k, g in first.items()}, {k: g[i] for k, g in second.items()}])
        for i, tree in enumerate(t.ops.unstack_agents(t.net, t.own))
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
