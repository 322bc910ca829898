"""The laws that a module from anywhere is asked: by calling it, and by the gradients of its parameters.

Where a law of our own networks needs nothing more than calls, it is that law; the others say the same in
terms of calls. All of them are in :data:`FOREIGN`, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from functional_marl.laws import equivariance
from functional_marl.laws.foreign_subject import Foreign
from functional_marl.laws.host import CheckError, kept, seeded
from functional_marl.laws.infer import Reached, inferred, pairs_of_parts, part
from functional_marl.laws.law import Law, agree, broken, differ, gap

__all__ = ["FOREIGN", "alone", "asked"]

FOREIGN: dict[str, Law] = {}


def asked(number: int, *where: str, default: bool = True, cost: int = 1) -> Callable[[Callable[[Any], None]], Law]:
    """Make a function a law for modules from elsewhere; ``default`` ones are about sharing."""

    def enter(check: Callable[[Any], None]) -> Law:
        made = Law(number, check, where, default, cost, "FOREIGN")
        FOREIGN[made.name] = made
        return made

    return enter


asked(11, "runs", "several agents", "shared", "local", "outputs by agent", "nothing random")(
    equivariance.shared_equivariance.check
)
asked(13, "runs", "a cluster", "local", "outputs by agent", "nothing random")(equivariance.cluster_equivariance.check)
asked(14, "runs", "a cluster", "local", "outputs by agent", "nothing random")(
    equivariance.equal_inputs_equal_outputs.check
)


# --- equivalence ------------------------------------------------------------------------------------------


@asked(2, "local", "one agent's network", "nothing random if it runs")
def agents_are_networks(s: Foreign) -> None:
    """y_i = f(θ_i, x_i).

    Every agent's output is what the network of one agent gives for its input and its parameters; so sharing
    is the same as independent agents that hold copies.
    """
    outputs: Any = None
    fault = s.host.fault
    if fault is None:
        outputs = s.outputs()
    for i in range(s.n) if fault is None else s.pair:
        one = alone(s, i)
        if fault is not None:
            shapes = [list(leaf.shape) for leaf in one]
            broken(f"agent {i}: expected outputs of shape {shapes}, got {type(fault).__name__}: {_short(fault)}")
        agree(outputs[i], one, f"agent {i}, against the network of one agent: output")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def alone(s: Foreign, agent: int) -> list[Tensor]:
    """One agent's output of the network of one agent."""
    from functional_marl._pytrees import flatten

    host = s.host
    if host.groups is not None:
        raise CheckError("groups of agents have networks of their own")
    args, kwargs = host.rebuild(s.seen_by(agent))
    with kept(host.module), seeded(s.seed):
        host.module.train(s.train)
        call = host.one_agent(agent)
        if call is None:
            call = _filled(s, agent)
        output = call(*args, **kwargs)
        return flatten(host.select(output) if host.select else output)[0]


def _filled(s: Foreign, agent: int) -> Callable[..., Any]:
    """The user's network of one agent with the parameters that the agent has in the module."""
    assert s.host.single is not None
    net = s.host.single().train(s.train)
    if s.host.fault is not None:
        return net
    apart = inferred(s.host).apart
    names = dict(net.named_parameters(remove_duplicate=False))
    if apart is None or len(apart[agent]) != len(names) or list(net.buffers()):
        raise CheckError("the agents' parameters do not line up with those of the network of one agent")
    own = {name: part(s.host, where) for name, where in zip(names, apart[agent], strict=True)}
    if any(leaf.shape != names[name].shape for name, leaf in own.items()):
        raise CheckError("the agents' parameters do not line up with those of the network of one agent")
    return lambda *args, **kwargs: functional_call(net, own, args, kwargs, tie_weights=False)


# --- equivariance -----------------------------------------------------------------------------------------


@asked(
    12, "runs", "several agents", "independent", "local", "outputs by agent", "parameters by agent", "nothing random"
)
def independent_equivariance(s: Foreign) -> None:
    """y(P∘π, x∘π) = y(P, x)∘π.

    Independent: two agents that change places with inputs and parameters change outputs.
    """
    i, j = s.pair
    before = s.outputs()
    with kept(s.host.module), torch.no_grad():
        for a, b in pairs_of_parts(s, i, j):
            was = a.clone()
            a.copy_(b)
            b.copy_(was)
        after = s.taking(s.permutation()).outputs()
    for k, source in enumerate(s.permutation()):
        agree(after[k], before[source], f"agents {i} and {j} changed places, agent {k}: output")


@asked(15, "runs", "several agents", "shared", "centralized", "outputs by agent", "nothing random")
def centralized_rows_are_equal(s: Foreign) -> None:
    """y_i = y_j.

    Centralized, shared and nothing random: all agents say the same.
    """
    outputs = s.outputs()
    i, j = s.pair
    agree(outputs[j], outputs[i], f"agents {i} and {j}: output of one network for one joint input")


# --- dependence -------------------------------------------------------------------------------------------


@asked(18, "runs", "several agents", "local", "outputs by agent")
def local_jacobian(s: Foreign) -> None:
    """∂y_i / ∂x_j = 0 and y_i(x) does not change with x_j, for i ≠ j.

    Local: no agent's output depends on another agent's input.
    """
    other, before = s.redrawn(s.seed + 1000), s.outputs()
    for i, j in (s.pair, s.pair[::-1]):
        after = s.with_agent(j, other).outputs(seed=s.seed)
        agree(after[i], before[i], f"agent {i}'s output when agent {j}'s input changes")
    if not s.answers("float inputs") or not s.answers("gradients of inputs"):
        return
    wanted = s.wanting_gradients()
    outputs = wanted.outputs()
    for i, j in (s.pair, s.pair[::-1]):
        for name, gradient in _input_gradients(wanted, outputs[i], j).items():
            if bool((gradient != 0).any()):
                broken(
                    f"agent {i}'s output by {name} of agent {j}: expected a zero gradient, "
                    f"got {float(gradient.abs().max()):.3g}"
                )


def _input_gradients(s: Foreign, output: list[Tensor], agent: int) -> dict[str, Tensor]:
    """The gradient of an agent's loss with respect to the float inputs of another (or the same)."""
    loss, host = s.loss(output), s.host
    leaves = {
        place: leaf
        for place, leaf in zip(host.places, s.leaves, strict=True)
        if leaf.requires_grad and place.dim is not None
    }
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    parts = {place.name: place.of(agent, g) for place, g in zip(leaves, found, strict=True)}
    return {name: g for name, g in parts.items() if g is not None}


@asked(19, "runs", "several agents", "centralized", "float inputs", "gradients of inputs")
def centralized_sees_all(s: Foreign) -> None:
    """∂y_i / ∂x_j ≠ 0 for all i, j.

    Centralized: an agent's output that depends on its own input depends on every other agent's.
    """
    i, j = s.pair
    seen = dict.fromkeys(((i, i), (i, j), (j, j), (j, i)), False)
    for draw in range(8):
        wanted = replace(s, rows=None, leaves=(), seed=s.seed + draw).wanting_gradients()
        outputs = wanted.outputs()
        for a, b in seen:
            found = _input_gradients(wanted, outputs[a], b)
            seen[a, b] |= any(bool((g != 0).any()) for g in found.values())
        if all(seen.values()):
            return
    for a, b in ((i, j), (j, i)):
        if seen[a, a] and not seen[a, b]:
            broken(f"agent {a}'s output by the inputs of agent {b}: expected a nonzero gradient, got zero in 8 draws")


@asked(20, "runs", "gradients", "outputs by agent")
def gradient_reaches_own_slot(s: Foreign) -> None:
    """∂L_i / ∂P[ℓ][s] = 0 for s ≠ σ_ℓ(i), and agents of one slot train the same numbers.

    Which agents' losses reach which numbers is what the sharing says.
    """
    found = inferred(s.host, s.train)
    for leaf in found.leaves:
        slots = list(s.claims[leaf.name])
        for agents in leaf.sets:
            _belongs(leaf, agents, slots)
    reached = {agent for leaf in found.leaves for agents in leaf.sets for agent in agents}
    for i in range(s.n):
        if reached and i not in reached:
            broken(f"agent {i}'s loss: expected a nonzero gradient on some parameter, got zero on all")


def _belongs(leaf: Reached, agents: tuple[int, ...], slots: list[int]) -> None:
    """Raise unless the agents that train a number are those of one slot."""
    where = f"{leaf.name}{list(leaf.at[agents])}"
    count = f"{leaf.sets[agents]} of {sum(leaf.sets.values())} numbers"
    for k, i in enumerate(agents):
        for j in agents[k + 1 :]:
            if slots[i] != slots[j]:
                broken(f"agents {i} and {j} both train {where} ({count}), and the claim {slots} keeps them apart")
    for i in agents:
        for j in range(len(slots)):
            if j not in agents and slots[i] == slots[j]:
                broken(f"agent {i} trains {where} ({count}) and agent {j} does not, and the claim {slots} shares it")


# --- gradients --------------------------------------------------------------------------------------------


def _gradients(s: Foreign, loss: Tensor) -> dict[str, Tensor]:
    params = {name: leaf for name, leaf in s.host.params().items() if leaf.requires_grad}
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, found, strict=True))


@asked(24, "runs", "several agents", "gradients", "outputs by agent")
def slot_gradient_is_the_sum(s: Foreign) -> None:
    """∂ Σ_i L_i / ∂P = Σ_i ∂L_i / ∂P.

    A parameter's gradient is the sum of what each agent's loss alone gives.
    """
    together = _gradients(s, s.training_loss(s.outputs()))
    rows = [_gradients(s, (i + 1) * s.loss(s.outputs()[i])) for i in range(s.n)]
    # Rounding is that of the largest gradient on the way: ahead of a norm a bias gets none, but its rounding.
    largest = torch.stack(
        [leaf.abs().max().double().cpu() for row in rows for leaf in row.values() if leaf.numel()]
    ).max()
    for name, gradient in together.items():
        total = torch.stack([row[name] for row in rows]).sum(0)
        found, wanted = (torch.cat([leaf.flatten(), largest[None].to(leaf)]) for leaf in (gradient, total))
        agree(found, wanted, f"all {s.n} agents together: gradient of {name}, flat")


@asked(25, "runs", "a cluster", "local", "gradients", "outputs by agent", "nothing random")
def tied_agents_stay_tied(s: Foreign) -> None:
    """σ(i) = σ(j) and x_i = x_j imply y_i = y_j after a step of training, too.

    Agents of one slot stay one through training: copies that only start alike drift apart.
    """
    together = [members for members in s.classes() if len(members) > 1]
    with kept(s.host.module):
        found = _gradients(s, s.training_loss(s.outputs()))
        with torch.no_grad():
            for name, leaf in s.host.params().items():
                if name in found:
                    size = found[name].abs().max() + 1e-12
                    leaf.sub_(0.05 * found[name] / size)
        for members in together:
            order = [members[0] if i in members else i for i in range(s.n)]
            outputs = s.taking(order).outputs()
            for j in members[1:]:
                agree(outputs[j], outputs[members[0]], f"after a step, agents {members[0]} and {j} alike: output")


# --- randomness -------------------------------------------------------------------------------------------


@asked(41, "runs")
def results_follow_the_seed(s: Foreign) -> None:
    """seed = seed' implies equal outputs, in evaluation and in training.

    Calls draw from torch's generator and from nothing else.
    """
    for train in (False, True):
        try:
            one = s.outputs(train=train)
        except RuntimeError as error:
            raise CheckError(f"the module raises in training: {_short(error)}") from None
        agree(s.outputs(train=train), one, f"two calls under seed {s.seed}, train={train}: outputs", exact=True)


@asked(44, "runs", "several agents", "independent", "parameters by agent")
def slots_differ(s: Foreign) -> None:
    """s ≠ s' implies P[s] ≠ P[s'].

    No two agents start as the same network.
    """
    i, j = s.pair
    pairs = pairs_of_parts(s, i, j)
    if pairs:
        differ([a for a, _ in pairs], [b for _, b in pairs], f"all parameters of the agents {i} and {j}")


@asked(45, "runs", "several agents", "outputs by agent", "random in training", "a claim of randomness", cost=2)
def randomness_has_one_meaning(s: Foreign) -> None:
    """'same': m_i = m_j; 'different': m_i ≠ m_j; 'error': raises; under every sharing.

    In training, agents with equal parameters and equal inputs draw as the word says.
    """
    i, j = s.pair
    mode = s.host.randomness
    if j not in s.host.group_of(i):
        raise CheckError("agents of different groups cannot be made alike")

    def drawn(draw: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Agent i under a seed and under another, agent j under the first, all of one input."""
        alike = replace(s, rows=None, leaves=(), seed=s.seed + draw).alike()
        outputs, again = (alike.outputs(train=True, seed=alike.seed + more) for more in (0, 1))
        return outputs[i], again[i], outputs[j]

    with kept(s.host.module), torch.no_grad():
        if not s.answers("shared"):
            for a, b in pairs_of_parts(s, i, j):
                b.copy_(a)
        try:
            drawn(0)
        except RuntimeError as error:
            if mode == "error":
                return
            broken(f"randomness {mode!r}: expected outputs of training, got {_short(error)}")
        if mode == "error":
            broken("randomness 'error': expected an error at the first draw, got outputs")
        _draws_as_said(drawn, mode, f"agents {i} and {j} alike: output")


_SEEN = 32  # draws that show, where two agents agree by chance on half of them and on all of them never


def _draws_as_said(
    drawn: Callable[[int], tuple[list[Tensor], list[Tensor], list[Tensor]]], mode: str | None, where: str
) -> None:
    """Raise unless two agents always draw the same, or at times not, as the word says."""
    if mode == "same":
        for draw in range(8):
            one, _, other = drawn(draw)
            agree(other, one, f"randomness 'same', draw {draw}, {where}")
        return
    seen = 0
    for draw in range(8 * _SEEN):
        one, again, other = drawn(draw)
        if not _equal(one, other):
            return
        # A mask may fall on a unit that is dead for this input, or be the same by chance: that says nothing.
        seen += not _equal(one, again)
        if draw == _SEEN and not seen:
            break
        if seen == _SEEN:
            broken(f"randomness 'different', {where}: expected different numbers in one of {seen} draws, got the same")
    raise CheckError(f"draws are seen in an agent's outputs too seldom to tell: {seen} times")


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return not any(gap(a, b) for a, b in zip(one, other, strict=True))
