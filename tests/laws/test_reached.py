"""What a mask of agents and elements says: sets, the axis along which they change, slots, tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from functional_marl._sharing import Sharing
from functional_marl.laws._reached import Inferred, Reached, reached


def leaf(*sets: str, name: str = "w", shape: tuple[int, ...] | None = None) -> Reached:
    """A leaf whose elements are trained by these agents: ``leaf("01", "", "2")`` has three."""
    n = 1 + max([int(agent) for agents in sets for agent in agents] or [0])
    mask = torch.tensor([[str(i) in agents for agents in sets] for i in range(n)])
    return reached(name, mask.view(n, *(shape or (len(sets),))))


def by_loop(mask: Tensor) -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], tuple[int, ...]]]:
    sets: dict[tuple[int, ...], int] = {}
    at: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index in torch.cartesian_prod(*[torch.arange(size) for size in mask.shape[1:]]).tolist():
        agents = tuple(i for i in range(len(mask)) if mask[(i, *index)])
        if agents:
            sets[agents] = sets.get(agents, 0) + 1
            at.setdefault(agents, tuple(index))
    return dict(sorted(sets.items())), at


@pytest.mark.parametrize("seed", range(5))
def test_sets_are_those_of_a_loop(seed: int) -> None:
    mask = torch.rand((3, 2, 3, 4), generator=torch.Generator().manual_seed(seed)) < 0.3
    found = reached("w", mask)
    sets, at = by_loop(mask)
    assert (found.name, found.shape, dict(found.sets), dict(found.at)) == ("w", (2, 3, 4), sets, at)
    assert list(found.sets) == list(sets)
    assert (found.axis, found.along, found.is_buffer) == (None, (), False)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_of_a_stack(axis: int) -> None:
    mask = torch.zeros(3, 4, 4, 4, dtype=torch.bool)
    for place, agent in ((0, 2), (1, 0), (3, 1)):  # nobody reaches place 2
        mask[agent].select(axis, place).fill_(True)
    found = reached("w", mask)
    assert (found.axis, found.along) == (axis, ((2,), (0,), (), (1,)))
    assert found.sets == {(0,): 16, (1,): 16, (2,): 16}
    first = {0: 1, 1: 3, 2: 0}
    assert found.at == {(i,): tuple(first[i] if k == axis else 0 for k in range(3)) for i in range(3)}
    assert [found.own(i) for i in range(3)] == [(*(slice(None),) * axis, first[i]) for i in range(3)]
    assert found.own(3) is None
    assert found.lines_up
    assert str(found) == f"{{0}} {{1}} {{2}} along axis {axis}"


def test_one_set_has_no_axis() -> None:
    found = leaf("01", "01", "")
    assert (found.sets, found.axis, found.along) == ({(0, 1): 2}, None, ())
    assert [found.own(i) for i in range(3)] == [(), (), None]
    assert found.lines_up
    assert str(found) == "{0,1}"


def test_nobody() -> None:
    found = leaf("", "")
    assert (found.sets, found.at, found.axis, found.slots, str(found)) == ({}, {}, None, (), "no agent")
    assert found.lines_up
    assert found.own(0) is None


def test_places_of_two_agents_do_not_line_up() -> None:
    assert not leaf("0", "0", "1").lines_up
    assert not leaf("01", "12").lines_up
    assert leaf("0", "1", "").lines_up
    mixed = leaf("0", "1", "1", "0", shape=(2, 2))
    assert (mixed.axis, mixed.lines_up) == (None, False)
    assert str(mixed) == "{0} {1}"


@pytest.mark.parametrize(
    ("sets", "slots", "sharing"),
    [
        (("0", "1"), ((0,), (1,)), [0, 1]),
        (("1", "0"), ((0,), (1,)), [0, 1]),
        (("01", ""), ((0, 1),), [0, 0]),
        (("02", "1"), ((0, 2), (1,)), [0, 1, 0]),
        (("01", "1"), None, None),
        (("1", "1"), ((1,),), None),
    ],
)
def test_slots(sets: tuple[str, ...], slots: Any, sharing: list[int] | None) -> None:
    found = leaf(*sets)
    assert found.slots == slots
    assert found.sharing(len({*"".join(sets)} | {"0"}) if sharing else 2) == (sharing and Sharing(sharing))


@pytest.mark.parametrize(
    ("sets", "shape", "apart"),
    [
        (("0", "1", "2"), (3,), True),
        (("2", "1", "0"), (3,), True),
        (("0", "1", "2", "012"), (4,), True),
        (("0", "1", "2", "012", "012"), (5,), True),
        (("0", "1", "2", "012", "01"), (5,), False),
        (("0", "1", "12"), (3,), False),
        (("0", "0", "1"), (3,), False),
        (("0", "1"), (2, 1), True),
        (("0", "1"), (2, 1, 1), False),
        (("01", "01"), (2,), True),  # no set changes: nothing is told apart, and nothing contradicts it
    ],
)
def test_what_looks_like_ids(sets: tuple[str, ...], shape: tuple[int, ...], apart: bool) -> None:
    assert leaf(*sets, shape=shape).tells_apart is apart


def module(*leaves: tuple[str, ...], n: int = 3) -> Inferred:
    return Inferred(n, tuple(leaf(*sets, name=f"leaf{k}") for k, sets in enumerate(leaves)))


@pytest.mark.parametrize(
    ("leaves", "sharing"),
    [
        ([("012",)], "shared"),
        ([("012", "")], "shared"),
        ([("0", "1", "2")], "independent"),
        ([("0",), ("1",), ("2",)], "independent"),
        ([("01", "2"), ("2", "01")], [0, 0, 1]),
        ([("0", "12")], [0, 1, 1]),
        ([("02", "1")], [0, 1, 0]),
        ([("012",), ("0", "1", "2")], None),
        ([("0", "1")], None),
        ([("01", "12")], None),
        ([("",)], None),
    ],
)
def test_the_sharing_of_a_module(leaves: list[tuple[str, ...]], sharing: Any) -> None:
    found = module(*leaves)
    assert found.sharing == sharing
    assert found.slots == {each.name: each.slots for each in found.leaves}
    if sharing is not None:
        one = {"shared": [0, 0, 0], "independent": [0, 1, 2]}
        expected = Sharing(one[sharing] if isinstance(sharing, str) else sharing)
        assert found.claims() == {each.name: expected for each in found.leaves}
        assert found.settled


def test_claims_where_leaves_differ() -> None:
    found = module(("012",), ("0", "12"), ("01", "12"), ("1",))
    assert found.claims() == {
        "leaf0": Sharing([0, 0, 0]),
        "leaf1": Sharing([0, 1, 1]),
        "leaf2": Sharing([0, 1, 2]),
        "leaf3": Sharing([0, 1, 0]),
    }
    assert found["leaf1"] is found.leaves[1]


def test_settled() -> None:
    assert module(("012",), ("0", "1", "2"), ("",)).settled
    assert not module(("012",), ("0", "1")).settled
    assert not module(("01", "12")).settled


def test_what_each_agent_uses() -> None:
    every = slice(None)
    found = module(("012",), ("2", "1", "0"))
    assert found.apart == [[("leaf0", ()), ("leaf1", (k,))] for k in (2, 1, 0)]
    assert module(("0",), ("1",), ("2",)).apart == [[(f"leaf{k}", ())] for k in range(3)]
    assert module(("0", "0", "1"), n=2).apart is None  # two places for one agent
    assert module(("01",), ("0",), n=2).apart is None  # agent 0 has one more
    stacked = Inferred(2, (leaf("0", "1", "0", "1", shape=(2, 2)),))
    assert stacked.apart == [[("w", (every, 0))], [("w", (every, 1))]]


def test_the_table() -> None:
    found = Inferred(3, (leaf("012", name="trunk.weight", shape=(1, 1)), leaf("0", "1", "2", name="head")))
    assert found.tabulate().splitlines() == [
        "sharing of 3 agents: mixed",
        "trunk.weight  [1, 1]  {0,1,2}",
        "head          [3]     {0} {1} {2} along axis 0",
    ]
    assert str(found) == found.tabulate()
    assert module(("012",)).tabulate().splitlines()[0] == "sharing of 3 agents: shared"
    assert Inferred(2, ()).tabulate() == "sharing of 2 agents: mixed"
