"""Who may depend on whom (laws 18 to 20, 22 and 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from functional_marl._pytrees import Tree
from functional_marl._sharing import Sharing
from functional_marl.laws._capabilities import (
    AGENTS_IN_OUTPUTS,
    CENTRALIZED,
    FLOAT_INPUTS,
    GRADIENTS,
    GRAPH,
    INPUT_GRADIENTS,
    LOCAL,
    MASKS_AGENTS,
    NO_MASK,
    NUMBERS,
    OWN_GRADIENTS,
    RUNS,
    SEVERAL_AGENTS,
    SLOTS,
)
from functional_marl.laws._compare import agree, broken, zero
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._reached import Reached
from functional_marl.laws._subject import Subject

__all__ = [
    "centralized_sees_all",
    "dropped_agents",
    "gradient_reaches_own_slot",
    "local_jacobian",
    "masked_agents_are_inert",
    "masked_critics_look_away",
    "messages_follow_the_graph",
]

_CALLS = (RUNS, NUMBERS, SEVERAL_AGENTS, AGENTS_IN_OUTPUTS)


def _depends_only_on_heard(s: Subject) -> None:
    """Raise if an agent's output changes with the input of one that it does not hear, in value or in gradient."""
    before, other = s.own_parts(s.outputs()), s.redrawn(s.seed + 1000)
    for j in s.agents:
        after = s.own_parts(s.with_agent(j, other).outputs())
        for i in range(s.n):
            if j not in s.hears[i]:
                agree(after[i], before[i], f"agent {i}'s output when agent {j}'s input changes")
    if not s.inputs_are_float or not s.carries_gradients:
        return
    watched, gradients = s.watching_inputs()
    outputs = s.own_parts(watched.outputs())
    for i in s.agents:
        rows = gradients(s.loss(outputs[i]))
        for j in range(s.n):
            if j not in s.hears[i]:
                zero(rows[j], f"agent {i}'s output by agent {j}'s input")
        if s.responds and not any(bool((g != 0).any()) for g in rows[i].values()):
            broken(f"agent {i}'s output by its own inputs {list(rows[i])}: expected a nonzero gradient, got zero")


@law(18, *_CALLS, LOCAL, NO_MASK)
def local_jacobian(s: Subject) -> None:
    """∂y_i / ∂x_j = 0 and y_i(x) does not change with x_j, for i ≠ j.

    Local: no agent's output depends on another agent's input.
    """
    _depends_only_on_heard(s)


@law(18, *_CALLS, GRAPH)
def messages_follow_the_graph(s: Subject) -> None:
    """∂y_i / ∂x_j = 0 and y_i(x) does not change with x_j, for each j whose messages do not reach i.

    Communicating: an agent's output depends on the inputs of those alone that it hears, over all rounds of messages.
    """
    _depends_only_on_heard(s)


@law(19, RUNS, NUMBERS, SEVERAL_AGENTS, CENTRALIZED, FLOAT_INPUTS, INPUT_GRADIENTS, NO_MASK, whole_batch=True)
def centralized_sees_all(s: Subject) -> None:
    """∂y_i / ∂x_j ≠ 0 for all i, j.

    Centralized: every agent's output depends on every agent's joint input, and on no other input of another agent.
    """
    seen: dict[tuple[int, int, str], bool] = {}
    draws = 1 if s.responds else 8
    for draw in range(draws):
        watched, gradients = (s if draw == 0 else s.redrawn(s.seed + draw)).watching_inputs()
        outputs = watched.outputs()
        for i in s.agents:
            for j, row in enumerate(gradients(s.loss(outputs[i]))):
                for name, gradient in row.items():
                    if s.is_joint(name):
                        seen[i, j, name] = seen.get((i, j, name), False) or bool((gradient != 0).any())
                    elif i != j:
                        zero({name: gradient}, f"agent {i}'s output by agent {j}'s input")
        if all(seen.values()):
            return
    for (i, j, name), found in seen.items():
        # A module need not use an input at all, but one that uses an agent's own uses the others'.
        uses = seen.get((i, i, name), any(own for (a, b, _), own in seen.items() if a == b == i))
        if not found and (uses or s.responds):
            broken(f"agent {i}'s output by {name} of agent {j}: expected a nonzero gradient, got zero in {draws} draws")


@law(20, RUNS, NUMBERS, GRADIENTS, AGENTS_IN_OUTPUTS, OWN_GRADIENTS, every_case=False)
def gradient_reaches_own_slot(s: NetworkSubject | ModuleSubject) -> None:
    """∂L_i / ∂P[ℓ][s] = 0 for s ≠ σ_ℓ(i), and agents of one slot train the same numbers.

    An agent's loss trains its own slots and no other: which agents train which numbers, and which write or read which
    buffers, is what the sharing claims.
    """
    if isinstance(s, NetworkSubject):
        _stays_in_slots(s)
        return
    reached = s.reached()
    for leaf in reached:
        if leaf.name in s.slots:
            slots = list(s.slots[leaf.name])
            for agents in leaf.sets:
                _belongs(leaf, agents, slots)
                if not s.trains_unevenly and not (s.tells_agents_apart and leaf.tells_apart):
                    _belongs_to_all(leaf, agents, slots)
    trained = {agent for leaf in reached for agents in leaf.sets for agent in agents}
    for i in range(s.n):
        if trained and i not in trained:
            broken(f"agent {i}'s loss: expected a nonzero gradient on some parameter, got zero on all")


def _stays_in_slots(s: NetworkSubject) -> None:
    """Raise if an agent's loss has a gradient on another slot than its own, or on none."""
    watched, gradients = s.watching_parameters()
    for i, output in enumerate(watched.outputs()):
        found = gradients(s.loss(output))
        for name, gradient in found.items():
            others = [slot for slot in range(s.slots[name].n_slots) if slot != s.slots[name][i]]
            zero({f"{name}[{slot}]": gradient[slot] for slot in others}, f"agent {i}'s loss")
        if not any(bool((gradient != 0).any()) for gradient in found.values()):
            broken(f"agent {i}'s loss: expected a nonzero gradient on its own slots, got zero on {list(found)}")


def _where(leaf: Reached, agents: tuple[int, ...]) -> tuple[str, str]:
    """Which numbers some agents have, and whether they train them."""
    where = f"{leaf.name}{list(leaf.at[agents])}"
    count = f"{leaf.sets[agents]} of {sum(leaf.sets.values())} numbers"
    return "write or read" if leaf.is_buffer else "train", f"{where} ({count})"


def _belongs(leaf: Reached, agents: tuple[int, ...], slots: list[int]) -> None:
    """Raise if agents of two slots train one number."""
    verb, where = _where(leaf, agents)
    for k, i in enumerate(agents):
        for j in agents[k + 1 :]:
            if slots[i] != slots[j]:
                broken(f"agents {i} and {j} both {verb} {where}, and the claim {slots} keeps them apart")


def _belongs_to_all(leaf: Reached, agents: tuple[int, ...], slots: list[int]) -> None:
    """Raise if some agents of a slot train a number and others do not."""
    verb, where = _where(leaf, agents)
    for i in agents:
        for j in range(len(slots)):
            if j not in agents and slots[i] == slots[j]:
                broken(f"agents {i} and {j}: {i} can {verb} {where} and {j} cannot, and the claim {slots} shares it")


def _trained_by(s: NetworkSubject, agents: Sequence[int], train: bool) -> tuple[dict[int, Tree], dict[str, Tensor]]:
    """The outputs of some agents, and the gradient of their losses alone."""
    watched, gradients = s.watching_parameters()
    outputs = watched.outputs(train=train)
    return {i: outputs[i] for i in agents}, gradients(torch.stack([s.loss(outputs[i]) for i in agents]).sum())


def _keeping(s: NetworkSubject, agents: Sequence[int]) -> NetworkSubject:
    """Only these agents, with their slots and inputs."""
    slots = {name: Sharing([s[i] for i in agents], s.n_slots) for name, s in s.slots.items()}
    net = s.net.replace(n_agents=len(agents), sharing=slots)
    return replace(s.taking(agents), net=net)


@law(22, SLOTS, LOCAL, SEVERAL_AGENTS)
def masked_agents_are_inert(s: NetworkSubject) -> None:
    """L = Σ_{i ∈ K} L_i: y_K, ∂L/∂P and ∂L/∂x_K do not change with x_j for j ∉ K, and are those of K alone.

    Agents that the loss leaves out change neither outputs nor gradients of the others, as if they were not there.
    """
    rng = s.rng()
    kept = sorted(rng.sample(range(s.n), rng.randrange(1, s.n)))
    # Whoever is masked gets another's input, larger: what stands in for agents that are gone is anything.
    source = [i if i in kept else (i + 1) % s.n for i in range(s.n)]
    alive = torch.tensor([i in kept for i in range(s.n)])

    def spoil(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return torch.where(alive.view(-1, *[1] * (leaf.ndim - 1)), leaf, 3 * leaf + 1)

    t = s.taking(source).mapped(spoil)
    for train in (False, True):
        wanted, found = _trained_by(s, kept, train), _trained_by(t, kept, train)
        for i in kept:
            agree(found[0][i], wanted[0][i], f"all but {kept} masked, their inputs changed, agent {i}: output")
        agree(found[1], wanted[1], f"all but {kept} masked, their inputs changed: gradient of the loss")
    alone = _trained_by(_keeping(s, kept), range(len(kept)), False)
    agree(alone[1], _trained_by(s, kept, False)[1], f"all but {kept} masked, or not there: gradient of the loss")


@law(22, MASKS_AGENTS, CENTRALIZED, SEVERAL_AGENTS)
def masked_critics_look_away(s: NetworkSubject) -> None:
    """∂y / ∂x_j = 0 and y(x, m) does not change with x_j, where m_j = 0; ∂L / ∂P neither.

    What a masked agent observes changes neither the values of the others nor any gradient.
    """
    seen: dict[str, Tensor] = dict(s.inputs[0])
    alive = seen["alive"]  # [n, *B, 1]

    def given(obs: Tensor) -> NetworkSubject:
        return s.with_inputs(({**seen, "obs": obs}, *s.inputs[1:]))

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


@law(23, SLOTS, LOCAL, SEVERAL_AGENTS)
def dropped_agents(s: NetworkSubject) -> None:
    """y(x∘K) = y(x)∘K for any choice K of agents.

    Those that are left give the same without the others.
    """
    rng, outputs = s.rng(), s.outputs()
    kept: Sequence[int] = sorted(rng.sample(range(s.n), rng.randrange(1, s.n)))
    fewer: list[Tree] = _keeping(s, kept).outputs()
    for i, j in enumerate(kept):
        agree(fewer[i], outputs[j], f"only the agents {list(kept)}: output of agent {j}")
