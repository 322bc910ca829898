"""A slot map as a value: which agent owns which copy of a parameter leaf.

All copies of a leaf are one tensor ``P: [S, *leaf]``. Agent ``i`` computes with ``P[slots[i]]``. Full sharing, no
sharing, clusters and sharing per layer are all such maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from functional_marl._arguments import as_index, is_list, short_repr
from functional_marl._errors import SharingError

__all__ = ["Sharing"]


class Sharing(Sequence[int]):
    """A map from agents to slots: ``sharing[i]`` is the slot of agent ``i``.

    It is immutable, hashable and kept as given: ``[2, 1, 2]`` over three slots is valid, and slot 0 is then unused
    (so agent 0 can try the network of agent 2). Equality is exact. :meth:`same_partition` compares which agents
    share, whatever the numbers of their slots.

    Args:
        slots: one slot for each agent, each in ``range(n_slots)``.
        n_slots: the number of slots ``S``; by default the largest slot plus one.

    Raises:
        SharingError: no agents, a slot that is not an int, or one outside ``range(n_slots)``.

    The word and the cases follow selective parameter sharing (SePS, Christianos et al. 2021,
    arXiv:2102.07475).

    >>> Sharing([0, 0, 1])
    Sharing([0, 0, 1], n_slots=2)
    >>> Sharing.independent(3) == Sharing([0, 1, 2])
    True
    """

    __slots__ = ("_members", "_n_slots", "_slots")

    def __init__(self, slots: Iterable[int], n_slots: int | None = None) -> None:
        try:
            if not is_list(slots):
                raise TypeError
            given = tuple(as_index(slot, "slot") for slot in slots)
        except (TypeError, ValueError, RuntimeError):  # a tensor on the meta device raises RuntimeError
            raise SharingError(f"sharing: expected one int slot for each agent, got {short_repr(slots)}") from None
        if not given:
            raise SharingError("sharing: expected at least one agent, got none")
        count = max(given) + 1 if n_slots is None else as_index(n_slots, "n_slots", error=SharingError)
        wrong = [f"agent {i} in slot {s}" for i, s in enumerate(given) if not 0 <= s < count]
        if wrong:
            raise SharingError(
                f"sharing {list(given)}: expected slots in 0..{count - 1}, got {', '.join(wrong)}; "
                "give n_slots= or renumber the slots"
            )
        self._slots = given
        self._n_slots = count
        self._members: dict[int, tuple[int, ...]] | None = None

    @classmethod
    def shared(cls, n_agents: int) -> Sharing:
        """Every agent in slot 0 (``share_params=True`` in torchrl).

        >>> Sharing.shared(3)
        Sharing([0, 0, 0], n_slots=1)
        """
        return cls([0] * as_index(n_agents, "n_agents", 1, error=SharingError), 1)

    @classmethod
    def independent(cls, n_agents: int) -> Sharing:
        """Each agent in its own slot (``share_params=False`` in torchrl).

        >>> Sharing.independent(3)
        Sharing([0, 1, 2], n_slots=3)
        """
        return cls(range(as_index(n_agents, "n_agents", 1, error=SharingError)))

    @property
    def slots(self) -> tuple[int, ...]:
        """The slot of each agent."""
        return self._slots

    @property
    def n_slots(self) -> int:
        """The number of slots ``S``, used or not."""
        return self._n_slots

    @property
    def n_agents(self) -> int:
        """The number of agents."""
        return len(self._slots)

    @property
    def is_shared(self) -> bool:
        """Whether there is only one slot."""
        return self._n_slots == 1

    @property
    def is_independent(self) -> bool:
        """Whether each agent ``i`` is alone in slot ``i``, and there are no other slots."""
        return self._slots == tuple(range(self._n_slots))

    def members(self, slot: int) -> tuple[int, ...]:
        """The agents in a slot, in order.

        Raises:
            SharingError: no such slot.

        >>> Sharing([0, 1, 0]).members(0)
        (0, 2)
        """
        index = as_index(slot, "slot", error=SharingError)
        if not 0 <= index < self._n_slots:
            raise SharingError(f"slot: expected one of 0..{self._n_slots - 1}, got {index}")
        if self._members is None:  # of all slots at once: a search for each slot would take slots x agents steps
            found: dict[int, list[int]] = {}
            for agent, own in enumerate(self._slots):
                found.setdefault(own, []).append(agent)
            self._members = {own: tuple(agents) for own, agents in found.items()}
        return self._members.get(index, ())

    def unused(self) -> tuple[int, ...]:
        """The slots without an agent.

        >>> Sharing([2, 1, 2]).unused()
        (0,)
        """
        used = set(self._slots)
        return tuple(s for s in range(self._n_slots) if s not in used)

    def canonical(self) -> Sharing:
        """The same partition of the agents, with slots numbered by first appearance and none unused.

        >>> Sharing([2, 1, 2]).canonical()
        Sharing([0, 1, 0], n_slots=2)
        """
        order = {slot: k for k, slot in enumerate(dict.fromkeys(self._slots))}
        return Sharing([order[slot] for slot in self._slots])

    def same_partition(self, other: Sharing) -> bool:
        """Whether the same agents share, whatever the numbers of their slots.

        Raises:
            SharingError: ``other`` is no Sharing.

        >>> Sharing([1, 0]).same_partition(Sharing([0, 1]))
        True
        """
        return self.canonical() == _as_sharing(other, "same_partition").canonical()

    def refines(self, other: Sharing) -> bool:
        """Whether agents that share a slot here share one in ``other`` too: going from ``other`` to this loses nothing.

        Raises:
            SharingError: ``other`` is no Sharing, or has another number of agents.

        >>> Sharing.independent(2).refines(Sharing.shared(2))
        True
        """
        if self.n_agents != _as_sharing(other, "refines").n_agents:
            raise SharingError(f"refines: expected a sharing of {self.n_agents} agents, got {other.n_agents}: {other}")
        pairs = set(zip(self._slots, other._slots, strict=True))
        return len(pairs) == len(set(self._slots))

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self._slots[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sharing):
            return NotImplemented
        return (self._slots, self._n_slots) == (other._slots, other._n_slots)

    def __hash__(self) -> int:
        return hash((self._slots, self._n_slots))

    def __repr__(self) -> str:
        return f"Sharing({list(self._slots)}, n_slots={self._n_slots})"

    def __reduce__(self) -> tuple[type[Sharing], tuple[tuple[int, ...], int]]:
        return (Sharing, (self._slots, self._n_slots))


def _as_sharing(other: Any, what: str) -> Sharing:
    if not isinstance(other, Sharing):
        fix = "make one: fm.Sharing([0, 0, 1])"
        raise SharingError(f"{what}: expected a Sharing as other, got {short_repr(other)}; {fix}")
    return other
