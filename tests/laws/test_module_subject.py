"""A module as a subject: what is found out about it, its gradients, steps, copies and networks of one agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl._sharing import Sharing
from functional_marl.laws import CheckError, Claims, module_subject
from functional_marl.laws._module_subject import ModuleSubject, _gradients
from tests.laws.check_cases import GROUPS, Critic, Groups, Listed, X, claim, one


def subject(build: Callable[[], nn.Module] = Listed, train: bool = False, **said: Any) -> ModuleSubject:
    torch.manual_seed(0)
    return module_subject(build(), Claims(**(claim() | said)), agents=(0, 2), seed=3, train=train)


class Acts(nn.Module):
    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.act = nn.Linear(6, 2), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def acts(act: Callable[[Any, Tensor], Tensor], **how: Any) -> ModuleSubject:
    return subject(lambda: Acts(act), **how)


# --- what is found out -----------------------------------------------------------------------------------


def test_sharing_is_the_claimed_one_or_the_inferred_one() -> None:
    assert set(subject().slots.values()) == {Sharing([0, 1, 2])}
    assert set(subject(sharing="shared").slots.values()) == {Sharing([0, 0, 0])}
    assert set(subject(lambda: Listed((0, 0, 1))).slots.values()) == {Sharing([0, 0, 1])}


def test_agents_and_permutations() -> None:
    s = subject(sharing="shared")
    assert (s.agents, s.permutation(), s.cluster_permutation()) == ([0, 2], [2, 1, 0], [2, 1, 0])
    assert subject(sharing=[0, 0, 1]).cluster_permutation() == [0, 1, 2]
    assert subject(sharing=[0, 1, 0]).cluster_permutation() == [2, 1, 0]
    same = module_subject(one(), Claims(**claim("shared")), agents=(1, 1))
    assert (same.agents, same.permutation()) == ([1], [0, 1, 2])


def test_draws() -> None:
    quiet, always = acts(lambda m, x: m.net(x)), acts(lambda m, x: m.net(x) + torch.rand(()))
    training = acts(lambda m, x: m.net(x) + (torch.rand(()) if m.training else 0))
    assert (quiet.repeatable, quiet.draws_in_training) == (True, False)
    assert (always.repeatable, always.draws_in_training) == (False, True)
    assert (training.repeatable, training.draws_in_training) == (True, True)
    assert not acts(training.host.module.act, train=True).repeatable  # pyright: ignore


def test_numbers_and_faults() -> None:
    assert subject().gives_numbers
    assert not acts(lambda m, x: m.net(x) / 0 * 0).gives_numbers
    assert subject().fault is None
    assert isinstance(subject(lambda: nn.Linear(5, 2)).fault, RuntimeError)


def test_inputs_and_outputs() -> None:
    assert subject().inputs_are_float
    embedding = subject(lambda: nn.Embedding(5, 2), example=torch.zeros(4, 3, dtype=torch.int64), agent_dim=1)
    assert not embedding.inputs_are_float
    assert subject().has_agents_in_outputs
    assert not acts(lambda m, x: m.net(x).sum(1), out_agent_dim=None).has_agents_in_outputs


def test_messages_and_ids() -> None:
    graph = [[1], [0], []]
    rows: list[tuple[dict[str, Any], bool, bool]] = [
        ({}, False, False),
        ({"ids": True}, True, False),
        ({"communication": True}, False, True),
        ({"communication": False}, False, False),
        ({"communication": graph}, True, True),
    ]
    for how, apart, messages in rows:
        s = subject(sharing="shared", **how)
        assert (s.tells_agents_apart, s.communicates) == (apart, messages), how
        assert s.trains_unevenly is (how.get("communication") == graph)
    assert subject(communication=graph).hears == [{0, 1}, {0, 1}, {2}]


def test_a_batch_norm_makes_agents_of_one_network_rows() -> None:
    def build() -> nn.Module:
        return Acts(lambda m, x: m.net(x - x.mean((0, 1)) if m.training else x))

    assert subject(build, sharing="shared").hears == [{0}, {1}, {2}]
    assert subject(build, True, sharing="shared").hears == [{0, 1, 2}] * 3
    assert subject(build, True, sharing=[0, 0, 1]).hears == [{0, 1}, {0, 1}, {2}]
    assert subject(one, True, sharing="shared").hears == [{0}, {1}, {2}]


def test_gradients_of_parameters_and_inputs() -> None:
    assert subject().trains
    assert not acts(lambda m, x: m.net(x).detach() + x[..., :2]).trains
    assert not subject(nn.Identity).trains
    assert subject().carries_gradients
    assert not acts(lambda m, x: m.net(x).detach()).carries_gradients
    assert subject().lines_up
    assert not acts(lambda m, x: m.net(x).detach()).lines_up


def test_copies() -> None:
    assert subject().copies

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError

    assert not subject(lambda: Stubborn(6, 2)).copies


def test_who_trains_what() -> None:
    found = {leaf.name: set(leaf.sets) for leaf in subject(lambda: Listed((0, 0, 1))).reached()}
    assert found["nets.0.0.weight"] == {(0, 1)}
    assert found["nets.1.2.bias"] == {(2,)}


def test_kinds() -> None:
    s = module_subject(Groups(), Claims(**GROUPS), agents=(0, 1))
    assert s.kind(0) == s.kind(1) == (0, 1)
    assert s.kind(2) == (2, 3, 4)


# --- gradients and steps ---------------------------------------------------------------------------------


def test_gradients_by_agent_of_inputs() -> None:
    s = acts(lambda m, x: x * torch.tensor([1.0, 2.0, 3.0])[:, None])
    watched, gradients = s.watching_inputs()
    outputs = watched.outputs()
    rows = gradients(outputs[1][0].sum())
    assert [list(row) for row in rows] == [["inputs[0]"]] * 3
    assert [float(row["inputs[0]"].abs().max()) for row in rows] == [0.0, 2.0, 0.0]
    assert rows[1]["inputs[0]"].shape == (4, 6)
    assert watched.is_joint("inputs[0]")
    nans = gradients(outputs[0][0].sum() * torch.tensor(float("nan")))
    assert not any(bool(row["inputs[0]"].any()) for row in nans)


def test_gradients_of_parameters_but_frozen_ones() -> None:
    s = subject(sharing="independent")
    s.host.module.nets[0][0].weight.requires_grad_(False)  # pyright: ignore
    watched, gradients = s.watching_parameters()
    found = gradients(watched.outputs()[2][0].sum())
    assert "nets.0.0.weight" not in found
    assert not found["nets.1.0.weight"].any()
    assert found["nets.2.0.weight"].any()


def test_gradients_of_a_loss_that_depends_on_nothing() -> None:
    leaf = torch.ones(2, requires_grad=True)
    assert [g.tolist() for g in _gradients(torch.ones(()), [leaf])] == [[0.0, 0.0]]
    assert list(_gradients(leaf.sum(), [])) == []
    other = torch.ones(3, requires_grad=True)
    assert [g.tolist() for g in _gradients(leaf.sum(), [leaf, other])] == [[1.0, 1.0], [0.0, 0.0, 0.0]]


def test_the_gradient_of_one_agent_is_weighted() -> None:
    s = subject(one, sharing="shared")
    watched, gradients = s.watching_parameters()
    outputs = watched.outputs()
    for agent in range(3):
        expected = gradients((agent + 1) * s.loss(outputs[agent]))
        found = s.gradient_of(agent)
        assert all(torch.allclose(found[name], expected[name]) for name in expected)


def test_a_step_moves_each_number_by_at_most_a_twentieth() -> None:
    s = subject(one, sharing="shared")
    before = {name: leaf.detach().clone() for name, leaf in s.host.params().items()}
    after = s.stepped(lambda outputs: 1e3 * s.training_loss(outputs)).numbers
    steps = torch.cat([(after[name] - leaf).flatten() for name, leaf in before.items()])
    assert float(steps.abs().max()) == pytest.approx(0.05, rel=1e-3)
    _, gradients = s.watching_parameters()
    found = gradients(s.training_loss(s.outputs(train=True)))
    assert all(bool(((after[name] - before[name]) * found[name] <= 0).all()) for name in before)
    assert all(torch.equal(leaf, before[name]) for name, leaf in s.host.params().items())


def test_a_step_keeps_what_training_writes() -> None:
    s = subject(lambda: nn.BatchNorm1d(3), example=torch.zeros(4, 3, 6))
    numbers = s.stepped(s.training_loss).numbers
    assert numbers["running_mean"].abs().sum() > 0
    assert s.host.buffers()["running_mean"].abs().sum() == 0
    assert numbers.keys() == {*s.host.params(), *s.host.buffers()}
    assert s.with_numbers_of(s.stepped(s.training_loss)).numbers.keys() == numbers.keys()


def test_agents_exchange_their_numbers() -> None:
    s = subject()
    moved = s.exchanging([2, 1, 0]).taking([2, 1, 0])
    for agent, source in enumerate((2, 1, 0)):
        assert torch.allclose(moved.outputs()[agent][0], s.outputs()[source][0])
    assert s.exchanging([0, 1, 2]).numbers == {}
    pairs = s.counterparts(0, 2)
    assert len(pairs) == 4
    nets: Any = s.host.module.nets
    assert torch.equal(pairs[0][0], nets[0][0].weight)
    assert torch.equal(pairs[0][1], nets[2][0].weight)


# --- other kinds of numbers, and one agent ---------------------------------------------------------------


def test_another_dtype() -> None:
    s = subject()
    wide = s.in_kind(torch.device("cpu"), torch.float64)
    assert wide.outputs()[0][0].dtype == torch.float64
    assert {leaf.dtype for leaf in s.host.params().values()} == {torch.float32}
    assert torch.allclose(wide.outputs()[1][0].float(), s.outputs()[1][0])
    mask = subject(lambda: Acts(lambda m, x: m.net(x)), example=X)
    assert mask.in_kind(torch.device("cpu"), torch.float64).leaves[0].dtype == torch.float64

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copy")

    with pytest.raises(CheckError, match=r"^the module does not go to torch.float64: TypeError: no copy$"):
        subject(lambda: Stubborn(6, 2)).in_kind(torch.device("cpu"), torch.float64)


def test_the_network_of_one_agent() -> None:
    s = subject(single=one, sharing="independent")
    assert s.known_alone
    for agent in range(3):
        assert torch.allclose(s.alone(agent)[0], s.outputs()[agent][0])
    assert not subject().known_alone
    for how in ({"centralized": True}, {"communication": True}, {"ids": True}):
        assert not subject(one, single=one, sharing="shared", **how).known_alone
    assert torch.equal(s.single(1)[0].weight, s.single(1)[0].weight)  # pyright: ignore
    assert not torch.equal(s.single(1)[0].weight, s.single(2)[0].weight)  # pyright: ignore


def test_a_lazy_network_of_one_agent_sees_its_inputs() -> None:
    s = subject(single=lambda: nn.LazyLinear(2))
    assert s.single(0).weight.shape == (2, 6)  # pyright: ignore
    critic = subject(lambda: Critic(True), centralized=True, single=lambda: nn.LazyLinear(1))
    with pytest.raises(CheckError, match=r"^one agent's network is lazy, and what it would see is not known$"):
        critic.single(0)


@pytest.mark.parametrize(
    "single",
    [
        lambda: nn.Linear(6, 2),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)),
    ],
)
def test_another_network_of_one_agent_does_not_fit(single: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        CheckError, match=r"^the agents' parameters do not line up with those of the network of one agent$"
    ):
        subject(single=single).alone(0)
