"""Params in labelled parts: split by name, trained apart, combined again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import functional_marl as fm
from tests.builders import N, Tensors, mlp, numbers


def test_parts_hold_the_same_tensors_and_can_be_combined() -> None:
    params = fm.init_params(fm.network(mlp, N), 0)
    parts = fm.partition(params, {"0.*": "frozen", "*.bias": "slow", "*": "trained"})
    assert {label: list(part) for label, part in parts.items()} == {
        "frozen": ["0.weight", "0.bias"],
        "slow": ["2.bias"],
        "trained": ["2.weight"],
    }
    whole = fm.combine(*parts.values())
    assert whole.keys() == params.keys()
    assert all(whole[name] is params[name] for name in params)
    assert fm.combine() == {}


def test_one_part_trains_while_the_other_is_frozen() -> None:
    net = fm.network(mlp, N)
    parts = fm.partition(fm.init_params(net, 0), {"0.*": "frozen", "*": "trained"})
    x = numbers(5, N, 4)
    loss: Callable[[Tensors], Tensor] = lambda t: fm.apply(net, fm.combine(parts["frozen"], t), x).pow(2).sum()
    grads = torch.func.grad(loss)(parts["trained"])
    assert list(grads) == ["2.weight", "2.bias"]
    assert all(bool(g.any()) for g in grads.values())


def test_a_leaf_in_no_part_or_in_two_raises() -> None:
    with pytest.raises(fm.StructureError, match=r"no pattern of \['0.\*'\] matches \['2.w'\]; end the patterns"):
        fm.partition({"0.w": 1, "2.w": 2}, {"0.*": "a"})
    with pytest.raises(fm.StructureError, match=r"\['a', 'b'\] are in more than one part"):
        fm.combine({"a": 1, "b": 2, "c": 3}, {"b": 1, "a": 2})


def test_a_pattern_without_a_leaf_raises() -> None:
    with pytest.raises(fm.StructureError, match=r"partition: the patterns \['3.\*'\] decide no leaf"):
        fm.partition({"0.w": 1, "2.w": 2}, {"3.*": "frozen", "*": "trained"})


def test_params_without_leaves_give_empty_parts() -> None:
    assert fm.partition({}, {"0.*": "frozen", "*": "trained"}) == {"frozen": {}, "trained": {}}


def test_a_filter_as_in_equinox_raises_and_names_patterns() -> None:
    with pytest.raises(fm.StructureError, match=r"patterns: expected a dict from pattern to label, such as .*, got"):
        fm.partition({"w": 1}, callable)  # pyright: ignore[reportArgumentType]
