"""From a sharing spec to one slot map for each leaf: presets, lists and patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import functional_marl as fm
from functional_marl._sharing import Sharing, resolve
from tests.builders import N, mlp

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "10.weight"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("shared", Sharing.shared(3)),
        ("independent", Sharing.independent(3)),
        ([1, 1, 0], Sharing([1, 1, 0])),
        (np.array([0, 0, 1]), Sharing([0, 0, 1])),
        (torch.tensor([0, 0, 1]), Sharing([0, 0, 1])),
        (Sharing([2, 1, 2], 5), Sharing([2, 1, 2], 5)),
    ],
    ids=["shared", "independent", "list", "numpy", "torch", "sharing"],
)
def test_a_spec_without_patterns_is_for_every_leaf(spec: Any, expected: Sharing) -> None:
    assert resolve(spec, 3, NAMES) == dict.fromkeys(NAMES, expected)


def test_patterns_match_across_dots_and_the_first_match_wins() -> None:
    got = resolve({"*.bias": [0, 0, 1], "0.*": "shared", "[2].*": "independent", "*": [1, 0, 0]}, 3, NAMES)
    assert got == {
        "0.weight": Sharing.shared(3),
        "0.bias": Sharing([0, 0, 1]),
        "2.weight": Sharing.independent(3),
        "2.bias": Sharing([0, 0, 1]),
        "10.weight": Sharing([1, 0, 0]),
    }
    assert list(got) == NAMES
    deep = resolve({"*weight": "shared", "*": "independent"}, 2, ["a.b.c.weight", "a.b.c.bias"])
    assert deep["a.b.c.weight"].is_shared
    assert deep["a.b.c.bias"].is_independent


def test_patterns_are_case_sensitive() -> None:
    got = resolve({"A.*": "shared", "a.*": "independent"}, 2, ["A.w", "a.w"])
    assert got["A.w"].is_shared
    assert got["a.w"].is_independent


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tied", "sharing: expected 'shared', 'independent', a list of slots or a Sharing, got 'tied'"),
        (True, "sharing: expected 'shared', 'independent', a list of slots or a Sharing, got True"),
        (None, "sharing: expected 'shared', 'independent', a list of slots or a Sharing, got None"),
        (3, "sharing: expected 'shared', 'independent', a list of slots or a Sharing, got 3"),
        ([0, 1], r"expected one slot for each of 3 agents, got 2: \[0, 1\]"),
        (Sharing([0, 1, 2, 3]), "expected one slot for each of 3 agents, got 4"),
        ({"*": [0]}, r"sharing\['\*'\]: expected one slot for each of 3 agents, got 1"),
        ({"*": "none"}, r"sharing\['\*'\]: expected 'shared', 'independent'"),
        ({"*": {"*": "shared"}}, "one int slot for each agent"),
        ({"0.*": "shared"}, r"no pattern of \['0.\*'\] matches \['2.weight', '2.bias', '10.weight'\]; end .* '\*'"),
        ({}, "no pattern of"),
        ({"*": "shared", "0.*": "independent"}, r"the patterns \['0.\*'\] decide no leaf \(the first match wins\)"),
        ({"7.*": "shared", "*": "shared"}, r"the patterns \['7.\*'\] decide no leaf .* over the leaves \['0.weight'"),
    ],
)
def test_a_wrong_spec_raises_and_is_named(spec: Any, message: str) -> None:
    with pytest.raises(fm.SharingError, match=message):
        resolve(spec, 3, NAMES)


@pytest.mark.parametrize("slots", [[0, 2, 2], [1, 1, 2], np.array([1, 2, 3]), (2, 2, 2)])
def test_a_list_with_an_empty_slot_raises_and_names_the_fix(slots: Any) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    calls: list[Any] = [
        lambda: fm.network(mlp, N, sharing=slots),
        lambda: fm.network(mlp, N, sharing={"0.*": "shared", "*": slots}),
        lambda: net.replace(sharing=slots),
        lambda: fm.reshare(net, params, slots, merge="first"),
        lambda: fm.stack_agents(fm.unstack_agents(net, params), sharing=slots, merge="first"),
    ]
    meant = fm.Sharing(slots)
    for call in calls:
        with pytest.raises(fm.SharingError) as caught:
            call()
        assert f"slots count from 0 without gaps: renumber them, or give fm.{meant!r}" in str(caught.value)
    assert fm.network(mlp, N, sharing=meant).sharing["0.bias"] == meant
