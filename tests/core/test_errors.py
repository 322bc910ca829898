"""The errors under their public names."""

from __future__ import annotations

import pickle

import pytest

import functional_marl as fm
from functional_marl import _errors


@pytest.mark.parametrize("name", _errors.__all__)
def test_tracebacks_and_pickles_have_the_public_name(name: str) -> None:
    error = getattr(fm, name)
    assert f"{error.__module__}.{error.__qualname__}" == f"functional_marl.{name}"
    again = pickle.loads(pickle.dumps(error("why")))
    assert type(again) is error
    assert again.args == ("why",)


def test_wrong_arguments_raise_value_errors_and_randomness_a_runtime_error() -> None:
    assert all(issubclass(error, ValueError) for error in (fm.StructureError, fm.SharingError, fm.GroupingError))
    assert issubclass(fm.RandomnessError, RuntimeError)
    assert issubclass(fm.StrategyWarning, UserWarning)
