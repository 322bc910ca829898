"""Slot maps as values: what is accepted, what is equal, and what they compute."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import functional_marl as fm
from functional_marl._sharing import Sharing


def partition_of(slots: Any) -> set[frozenset[int]]:
    """The sets of agents that share a slot, from the definition."""
    return {frozenset(j for j, t in enumerate(slots) if t == s) for s in slots}


def all_maps(n_agents: int, n_slots: int) -> list[Sharing]:
    """Every map from ``n_agents`` agents to ``n_slots`` slots."""
    grids = torch.cartesian_prod(*[torch.arange(n_slots)] * n_agents).view(-1, n_agents).tolist()
    return [Sharing(slots, n_slots) for slots in grids]


MAPS = [s for n_slots in (1, 2, 3) for s in all_maps(3, n_slots)]


@pytest.mark.parametrize(
    "slots",
    [[0, 0, 1], (0, 0, 1), np.array([0, 0, 1]), torch.tensor([0, 0, 1]), iter([0, 0, 1]), Sharing([0, 0, 1])],
    ids=["list", "tuple", "numpy", "torch", "iterator", "sharing"],
)
def test_slots_of_any_kind_are_kept_as_python_ints(slots: Any) -> None:
    sharing = Sharing(slots)
    assert sharing.slots == (0, 0, 1)
    assert {type(slot) for slot in sharing.slots} == {int}
    assert sharing.n_slots == 2
    assert sharing.n_agents == 3


def test_slots_are_kept_as_given() -> None:
    sharing = Sharing([2, 1, 2], 4)
    assert sharing.slots == (2, 1, 2)
    assert sharing.n_slots == 4
    assert sharing.unused() == (0, 3)
    assert [sharing.members(s) for s in range(4)] == [(), (1,), (0, 2), ()]


@pytest.mark.parametrize("sharing", MAPS, ids=repr)
def test_is_shared_and_is_independent_follow_their_definitions(sharing: Sharing) -> None:
    assert sharing.is_shared == (sharing == Sharing.shared(3))
    assert sharing.is_independent == (sharing == Sharing.independent(3))


def test_equality_is_exact_and_hashes_agree() -> None:
    assert len(set(MAPS)) == len(MAPS) == len({hash(s) for s in MAPS})
    assert {Sharing(s.slots, s.n_slots) for s in MAPS} == set(MAPS)
    assert Sharing([0, 0]) != Sharing([0, 0], 2)
    assert Sharing([0, 0]) != (0, 0)


@pytest.mark.parametrize("sharing", MAPS, ids=repr)
def test_canonical_is_the_same_partition_in_order_of_appearance(sharing: Sharing) -> None:
    canonical = sharing.canonical()
    assert partition_of(canonical) == partition_of(sharing)
    assert canonical.unused() == ()
    first_seen = list(dict.fromkeys(canonical.slots))
    assert first_seen == list(range(canonical.n_slots))
    assert canonical.canonical() == canonical


@pytest.mark.parametrize("sharing", MAPS, ids=repr)
def test_same_partition_and_refines_follow_their_definitions(sharing: Sharing) -> None:
    for other in MAPS:
        assert sharing.same_partition(other) == (partition_of(sharing) == partition_of(other))
        together = [(i, j) for i in range(3) for j in range(3) if sharing.slots[i] == sharing.slots[j]]
        assert sharing.refines(other) == all(other.slots[i] == other.slots[j] for i, j in together)


def test_a_sharing_is_a_sequence_of_slots() -> None:
    sharing = Sharing([2, 1, 2])
    assert list(sharing) == [2, 1, 2]
    assert len(sharing) == 3
    assert sharing[-1] == 2
    assert sharing[:2] == (2, 1)
    assert 1 in sharing
    assert 0 not in sharing


def test_a_sharing_cannot_be_changed() -> None:
    sharing = Sharing([0, 1])
    for name in ("slots", "n_slots", "n_agents", "anything"):
        with pytest.raises(AttributeError):
            setattr(sharing, name, 1)


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal(copy_of: Any) -> None:
    sharing = Sharing([2, 1, 2], 5)
    assert copy_of(sharing) == sharing
    assert hash(copy_of(sharing)) == hash(sharing)


def test_the_repr_evaluates_to_an_equal_sharing() -> None:
    for sharing in MAPS:
        assert eval(repr(sharing), {"Sharing": Sharing}) == sharing


@pytest.mark.parametrize(
    ("slots", "n_slots", "message"),
    [
        ([], None, "^sharing: expected at least one agent, got none$"),
        ([0, 2], 2, r"sharing \[0, 2\]: expected slots in 0..1, got agent 1 in slot 2; give n_slots="),
        ([-1, 0], None, "got agent 0 in slot -1"),
        ([-1, 7], 3, "got agent 0 in slot -1, agent 1 in slot 7"),
        ([0.0, 1.0], None, "one int slot for each agent"),
        ([True, False], None, "one int slot for each agent"),
        ([None], None, "one int slot for each agent"),
        ("01", None, "one int slot for each agent, got '01'"),
        (3, None, "one int slot for each agent, got 3"),
        ([0], True, "n_slots: expected an int, got True"),
        ([0], "1", "n_slots: expected an int, got '1'"),
        ([0], 0, "got agent 0 in slot 0"),
    ],
)
def test_wrong_slots_raise(slots: Any, n_slots: Any, message: str) -> None:
    with pytest.raises(fm.SharingError, match=message):
        Sharing(slots, n_slots)


def test_refines_raises_for_another_number_of_agents() -> None:
    with pytest.raises(fm.SharingError, match="expected a sharing of 2 agents, got 3"):
        Sharing([0, 1]).refines(Sharing([0, 1, 2]))


def wrong(value: Any) -> Any:
    """A value of a type that the annotation does not allow."""
    return value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sharing.shared(0), "n_agents: expected a positive int, got 0"),
        (lambda: Sharing.independent(0), "n_agents: expected a positive int, got 0"),
        (lambda: Sharing.shared(wrong("a")), "n_agents: expected a positive int, got 'a'"),
        (lambda: Sharing.independent(wrong(2.0)), "n_agents: expected a positive int, got 2.0"),
        (lambda: Sharing([0]).members(wrong("x")), "slot: expected an int, got 'x'"),
        (lambda: Sharing([0, 1]).members(2), "slot: expected one of 0..1, got 2"),
        (lambda: Sharing([0, 1]).members(-1), "slot: expected one of 0..1, got -1"),
        (
            lambda: Sharing([0]).same_partition(wrong([0])),
            "same_partition: expected a Sharing as other, got [0]; make one: fm.Sharing([0, 0, 1])",
        ),
        (
            lambda: Sharing([0]).refines(wrong([0])),
            "refines: expected a Sharing as other, got [0]; make one: fm.Sharing([0, 0, 1])",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(fm.SharingError, match=f"^{re.escape(message)}$"):
        call()


def test_sharing_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="at least one agent"):
        Sharing([])


def test_members_are_found_once() -> None:
    """One search for all slots: a search for each takes agents x slots steps, minutes for a large team."""
    n = 200_000
    sharing = fm.Sharing(range(n))
    assert [sharing.members(slot) for slot in (0, 7, n - 1)] == [(0,), (7,), (n - 1,)]
    assert all(sharing.members(slot) == (slot,) for slot in range(n))
