"""What happens to the outputs when agents change places (laws 11 to 17)."""

from __future__ import annotations

import torch
from torch import Tensor

from functional_marl._pytrees import tree_map
from functional_marl.laws._capabilities import (
    AGENTS_IN_OUTPUTS,
    ANONYMOUS,
    CENTRALIZED,
    CLUSTER,
    IDS,
    INDEPENDENT,
    LINES_UP,
    LOCAL,
    NOT_CENTRALIZED,
    NOT_ONE_CLASS,
    NUMBERS,
    POOLED,
    REPEATABLE,
    RUNS,
    SEVERAL_AGENTS,
    SHARED,
    SLOTS,
    WIDE_INPUTS,
)
from functional_marl.laws._compare import agree, broken, differ, gap
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._subject import Subject

__all__ = [
    "centralized_rows_are_equal",
    "cluster_equivariance",
    "equal_inputs_equal_outputs",
    "ids_break_equivariance",
    "ids_tell_agents_apart",
    "independent_equivariance",
    "pooled_critics_are_symmetric",
    "shared_equivariance",
]

_CALLS = (RUNS, NUMBERS, SEVERAL_AGENTS, AGENTS_IN_OUTPUTS)


def _follow(s: Subject, moved: Subject, order: list[int]) -> None:
    """Raise unless agent ``i`` of ``moved`` gives what agent ``order[i]`` of ``s`` gives."""
    before, after = s.outputs(), moved.outputs()
    swapped = [i for i, j in enumerate(order) if i != j]
    what = (
        f"agents {swapped[0]} and {swapped[1]} change places" if len(swapped) == 2 else f"agents in the order {order}"
    )
    for i, j in enumerate(order):
        agree(after[i], before[j], f"{what}, agent {i} with the input of agent {j}: output")


@law(11, *_CALLS, SHARED, NOT_CENTRALIZED, ANONYMOUS, REPEATABLE)
def shared_equivariance(s: Subject) -> None:
    """y(x∘π) = y(x)∘π.

    Shared: permuting the agents' inputs permutes the outputs, also where all agents exchange messages with all.
    """
    order = s.permutation()
    _follow(s, s.taking(order), order)


@law(12, *_CALLS, INDEPENDENT, LOCAL, ANONYMOUS, LINES_UP, REPEATABLE)
def independent_equivariance(s: Subject) -> None:
    """y(P∘π, x∘π) = y(P, x)∘π.

    Independent: permuting inputs and parameters together permutes the outputs.
    """
    order = s.permutation()
    _follow(s, s.taking(order).exchanging(order), order)


@law(13, *_CALLS, CLUSTER, NOT_ONE_CLASS, NOT_CENTRALIZED, ANONYMOUS, REPEATABLE)
def cluster_equivariance(s: Subject) -> None:
    """y(x∘π) = y(x)∘π for every π with σ∘π = σ.

    Agents that share everything may change places among themselves.
    """
    order = s.cluster_permutation()
    _follow(s, s.taking(order), order)


@law(14, *_CALLS, CLUSTER, NOT_CENTRALIZED, ANONYMOUS, REPEATABLE)
def equal_inputs_equal_outputs(s: Subject) -> None:
    """x_i = x_j and σ(i) = σ(j) imply y_i = y_j.

    Equal inputs in one slot give equal outputs.
    """
    classes = s.classes()
    leader = [next(members[0] for members in classes if i in members) for i in range(s.n)]
    outputs = s.taking(leader).outputs()
    for i, j in enumerate(leader):
        agree(outputs[i], outputs[j], f"agents {j} and {i} with equal inputs and networks: output")


@law(15, *_CALLS, SHARED, CENTRALIZED, ANONYMOUS, REPEATABLE)
def centralized_rows_are_equal(s: Subject) -> None:
    """y_i = y_j.

    Centralized, shared and nothing random: all agents have the same output where only the joint input goes in.
    """
    outputs = s.joint_inputs_alone().outputs()
    for i in range(1, s.n):
        agree(outputs[i], outputs[0], f"agents 0 and {i}: output of one network for one joint input")


@law(16, POOLED, CENTRALIZED, SEVERAL_AGENTS)
def pooled_critics_are_symmetric(s: Subject) -> None:
    """y_i(x∘π, m∘π) = y_i(x, m) for every π.

    A critic that pools over the agents that its mask leaves has the same output in whatever order they come.
    """
    order, wanted = s.permutation(), s.outputs()
    outputs = s.taking(order, joint_only=True).outputs()
    for i in range(s.n):
        agree(outputs[i], wanted[i], f"the joint input in the order {order}, critic of agent {i}: output")


@law(17, SLOTS, SHARED, LOCAL, SEVERAL_AGENTS, WIDE_INPUTS)
def ids_break_equivariance(s: NetworkSubject) -> None:
    """y([x∘π, id]) ≠ y([x, id])∘π, and y([x, id]∘π) = y([x, id])∘π.

    Agent ids tell agents of one network apart, through the id alone: whoever takes another's features and
    id gives the other's output.
    """
    x: Tensor = s.inputs[0][..., : -s.n]  # [n, *B, F]; the ids take the place of n features
    order = s.permutation()

    def with_ids(features: Tensor) -> NetworkSubject:
        dim = s.dims[0] or 0
        given = s.ops.with_agent_ids(features.movedim(0, dim), dim)
        if given.shape[-1] != features.shape[-1] + s.n:
            broken(f"with_agent_ids: expected {features.shape[-1]} + {s.n} features, got {given.shape[-1]}")
        agree(given.movedim(dim, 0)[..., : -s.n], features, "with_agent_ids: the features")
        return s.with_inputs((given.movedim(dim, 0),))

    plain = with_ids(x)
    moved = with_ids(x[order]).outputs()
    for i, j in enumerate(order):
        if i != j:
            differ(moved[i], plain.outputs()[j], f"agent {i} with the features of agent {j}, each with its own id")
    _follow(plain, plain.taking(order), order)
    same = with_ids(tree_map(lambda leaf: leaf[[0] * s.n], x)).outputs()
    for i in range(1, s.n):
        differ(same[i], same[0], f"agents 0 and {i} with equal features and their own ids: output")
    ids = plain.inputs[0][..., -s.n :].reshape(s.n, -1, s.n)
    if not torch.equal(ids, torch.eye(s.n, dtype=ids.dtype)[:, None].expand_as(ids)):
        broken("with_agent_ids: expected one-hot ids, row i for agent i")


@law(17, *_CALLS, IDS, REPEATABLE, whole_batch=True, every_case=False)
def ids_tell_agents_apart(s: ModuleSubject) -> None:
    """x_i = x_j for all i, j, and y_i ≠ y_j for some i, j.

    Ids are used: for equal inputs some two agents have different outputs, in one of eight draws.
    """
    for draw in range(8):
        case = s.redrawn(s.seed + draw)
        outputs = case.taking([s.agents[0]] * s.n).outputs()
        if any(gap(a, b) for other in outputs[1:] for a, b in zip(other, outputs[0], strict=True)):
            return
    broken("agents with equal inputs: expected different outputs, as ids= claims, got the same in 8 draws")
