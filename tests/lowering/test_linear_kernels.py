"""Batched products: the size rules change speed alone."""

from typing import Any

import pytest

import functional_marl as fm
from functional_marl._lowering import linear_kernels as dense
from tests.builders import numbers
from tests.lowering.test_plan import assert_plan_is_loop


@pytest.mark.parametrize("sharing", ["independent", [0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 2], [2, 1, 0, 2, 1, 0]])
@pytest.mark.parametrize("rules", [{"CHUNK_ABOVE": 0, "CHUNK": 1_000}, {"FEATURE_MAJOR_FROM": 1}, {"GATHER_UP_TO": 0}])
def test_size_rules_change_no_number(sharing: Any, rules: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rules.items():
        monkeypatch.setattr(dense, name, value)
    net = fm.network(fm.nets.mlp(6, 8, 3), 6, sharing=sharing)
    assert_plan_is_loop(net, (numbers(9, 6, 6),))
