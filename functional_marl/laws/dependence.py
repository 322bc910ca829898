"""Laws 18 to 20 and 23: who may depend on whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from functional_marl.laws.law import agree, broken, law, zero
from functional_marl.laws.subject import Subject
from functional_marl.trees import Tree, flatten, leaf_names, tree_map

__all__ = ["centralized_sees_all", "dropped_agents", "gradient_reaches_own_slot", "local_jacobian"]


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


@law(18, "local", "float inputs")
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


@law(19, "centralized", "float inputs")
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
