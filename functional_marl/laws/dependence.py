"""Laws 18 to 20, 22 and 23: who may depend on whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten, leaf_names, tree_map
from functional_marl.laws.law import agree, broken, law, zero
from functional_marl.laws.subject import Subject

__all__ = [
    "centralized_sees_all",
    "dropped_agents",
    "gradient_reaches_own_slot",
    "local_jacobian",
    "masked_agents_are_inert",
    "masked_critics_look_away",
]


def _input_gradients(s: Subject) -> list[dict[str, Tensor]]:
    """For each agent's loss, its gradient with respect to every float input with agents, ``[n, *B, ...]``."""
    inputs = tree_map(
        lambda leaf: leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf, (s.inputs, dict(s.kwargs))
    )
    called = replace(s, inputs=inputs[0], kwargs=inputs[1])
    leaves: dict[str, Tensor] = {}
    for k, tree in enumerate((*inputs[0], inputs[1])):
        if s.dims[k] is not None:
            root = f"inputs[{k}]" if k < len(s.inputs) else "kwargs"
            leaves |= {
                name: leaf
                for name, leaf in zip(leaf_names(tree, root), flatten(tree)[0], strict=True)
                if leaf.requires_grad
            }
    rows: list[dict[str, Tensor]] = []
    for output in called.outputs():
        loss = s.loss(output)
        if not loss.requires_grad:
            broken("an output does not depend on any float input")
        found = torch.autograd.grad(
            loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(dict(zip(leaves, found, strict=True)))
    return rows


@law(18, "local", "float inputs", "no mask of agents")
def local_jacobian(s: Subject) -> None:
    """∂y_i / ∂x_j = 0 for i ≠ j, and ≠ 0 for i = j.

    Local: no agent's output depends on another agent's input.
    """
    for i, row in enumerate(_input_gradients(s)):
        for j in range(s.n):
            if i != j:
                zero({name: leaf[j] for name, leaf in row.items()}, f"agent {i}'s output by agent {j}'s input")
        if not any(bool((leaf[i] != 0).any()) for leaf in row.values()):
            broken(f"agent {i}'s output by its own inputs {list(row)}: expected a nonzero gradient, got zero")


@law(19, "centralized", "float inputs", "no mask of agents")
def centralized_sees_all(s: Subject) -> None:
    """∂y_i / ∂x_j ≠ 0 for all i, j.

    Centralized: every agent's output depends on every agent's first input.
    """
    for i, row in enumerate(_input_gradients(s)):
        joint = {name: leaf for name, leaf in row.items() if name.startswith("inputs[0]")}
        for name, leaf in joint.items():
            for j in range(s.n):
                if not bool((leaf[j] != 0).any()):
                    broken(f"agent {i}'s output by {name} of agent {j}: expected a nonzero gradient, got zero")
        others = {name: leaf for name, leaf in row.items() if name not in joint}
        for j in range(s.n):
            if i != j:
                zero({name: leaf[j] for name, leaf in others.items()}, f"agent {i}'s output by agent {j}'s input")


@law(20, "parameters")
def gradient_reaches_own_slot(s: Subject) -> None:
    """∂L_i / ∂P[ℓ][s] = 0 for s ≠ σ_ℓ(i).

    An agent's loss trains its own slots and no other.
    """
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in s.own.items()}
    for i, output in enumerate(replace(s, params=leaves).outputs()):
        found = torch.autograd.grad(
            s.loss(output), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(leaves, found, strict=True):
            others = [slot for slot in range(s.slots[name].n_slots) if slot != s.slots[name][i]]
            zero({f"{name}[{slot}]": gradient[slot] for slot in others}, f"agent {i}'s loss")
        if not any(bool((gradient != 0).any()) for gradient in found):
            broken(f"agent {i}'s loss: expected a nonzero gradient on its own slots, got zero on {list(leaves)}")


def _trained_by(s: Subject, agents: Sequence[int], train: bool) -> tuple[dict[int, Tree], dict[str, Tensor]]:
    """The outputs of some agents, and the gradient of their losses alone."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in s.own.items()}
    t = replace(s, params=leaves)
    outputs = t.trained(key=s.key())[0] if train else t.outputs()
    loss = torch.stack([s.loss(outputs[i]) for i in agents]).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {i: outputs[i] for i in agents}, dict(zip(leaves, found, strict=True))


@law(22, "local", "several agents", "parameters", "settings")
def masked_agents_are_inert(s: Subject) -> None:
    """L = Σ_{i ∈ K} L_i: y_K, ∂L/∂P and ∂L/∂x_K do not change with x_j for j ∉ K, and are those of K alone.

    Agents that the loss leaves out change neither outputs nor gradients of the others, as if they were not there.
    """
    rng = s.rng()
    kept = sorted(rng.sample(range(s.n), rng.randrange(1, s.n)))
    # Whoever is masked gets another's input, larger: what stands in for agents that are gone is anything.
    source = [i if i in kept else (i + 1) % s.n for i in range(s.n)]
    alive = torch.tensor([i in kept for i in range(s.n)])

    def spoil(leaf: Tensor) -> Tensor:
        return (
            torch.where(alive.view(-1, *[1] * (leaf.ndim - 1)), leaf, 3 * leaf + 1)
            if leaf.is_floating_point()
            else leaf
        )

    def spoiled(tree: Tree, dim: int | None) -> Tree:
        return tree if dim is None else tree_map(spoil, tree)

    t = s.taking(source)
    inputs = tuple(spoiled(tree, dim) for tree, dim in zip(t.inputs, s.dims[:-1], strict=True))
    t = replace(t, inputs=inputs, kwargs=spoiled(dict(t.kwargs), s.dims[-1]))
    for train in (False, True):
        wanted, found = _trained_by(s, kept, train), _trained_by(t, kept, train)
        for i in kept:
            agree(found[0][i], wanted[0][i], f"all but {kept} masked, their inputs changed, agent {i}: output")
        agree(found[1], wanted[1], f"all but {kept} masked, their inputs changed: gradient of the loss")
    alone = _trained_by(s.keeping(kept), range(len(kept)), False)
    agree(alone[1], _trained_by(s, kept, False)[1], f"all but {kept} masked, or not there: gradient of the loss")


@law(22, "centralized", "masks agents", "several agents", "parameters")
def masked_critics_look_away(s: Subject) -> None:
    """∂y / ∂x_j = 0 and y(x, m) does not change with x_j, where m_j = 0; ∂L / ∂P neither.

    What a masked agent observes changes neither the values of the others nor any gradient.
    """
    seen: dict[str, Tensor] = dict(s.inputs[0])
    alive = seen["alive"]  # [n, *B, 1]

    def given(obs: Tensor) -> Subject:
        return replace(s, inputs=({**seen, "obs": obs}, *s.inputs[1:]))

    other = given(torch.where(alive, seen["obs"], 3 * seen["obs"] + 1))
    wanted, found = _trained_by(s, range(s.n), False), _trained_by(other, range(s.n), False)
    for i in range(s.n):
        agree(found[0][i], wanted[0][i], f"what masked agents observe is changed, critic of agent {i}: output")
    agree(found[1], wanted[1], "what masked agents observe is changed: gradient of the loss")
    obs = seen["obs"].clone().requires_grad_()
    for i, output in enumerate(given(obs).outputs()):
        gradient = torch.autograd.grad(s.loss(output), obs, retain_graph=True, materialize_grads=True)[0]
        zero({"of masked agents": torch.where(alive, 0, gradient)}, f"the critic of agent {i} by the observations")
        if bool(alive.any()) and not bool((gradient != 0).any()):
            broken(
                f"the critic of agent {i} by the observations of agents that are there: expected a gradient, got zero"
            )


@law(23, "local", "settings", "several agents")
def dropped_agents(s: Subject) -> None:
    """y(x∘K) = y(x)∘K for any choice K of agents.

    Who is left does the same without the others.
    """
    rng, outputs = s.rng(), s.outputs()
    kept: Sequence[int] = sorted(rng.sample(range(s.n), rng.randrange(1, s.n)))
    fewer: list[Tree] = s.keeping(kept).outputs()
    for i, j in enumerate(kept):
        agree(fewer[i], outputs[j], f"only the agents {list(kept)}: output of agent {j}")
