"""The sharing presets, and that one entry in the table adds another."""

from __future__ import annotations

import pytest

import functional_marl as fm
from functional_marl._sharing import Sharing, resolve
from functional_marl._sharing.presets import PRESETS


def test_the_presets_are_full_sharing_and_none() -> None:
    assert {name: preset(3) for name, preset in PRESETS.items()} == {
        "shared": Sharing([0, 0, 0]),
        "independent": Sharing([0, 1, 2]),
    }
    assert Sharing.shared(3) == Sharing([0, 0, 0])
    assert Sharing.independent(3) == Sharing([0, 1, 2])
    assert Sharing.shared(1) == Sharing.independent(1)


def test_an_entry_in_the_table_is_a_new_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "halves", lambda n_agents: Sharing([2 * i // n_agents for i in range(n_agents)]))
    assert resolve({"0.*": "halves", "*": "shared"}, 4, ["0.weight", "0.bias", "2.weight"]) == {
        "0.weight": Sharing([0, 0, 1, 1]),
        "0.bias": Sharing([0, 0, 1, 1]),
        "2.weight": Sharing.shared(4),
    }
    with pytest.raises(
        fm.SharingError, match="sharing: expected 'shared', 'independent', 'halves', a list of slots or"
    ):
        resolve("thirds", 4, ["weight"])
