"""Calls of our own networks leave nothing behind: for each assertion a library that breaks just it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from functional_marl.laws import LAWS, LawViolation
from functional_marl.laws._zoo_subject import zoo_subject


def found(law: str, subject: Any) -> str:
    """What a law says of a subject that breaks it."""
    with pytest.raises(LawViolation) as raised:
        LAWS[law](subject)
    return raised.value.found


def with_ops(name: str = "mlp", **changed: Callable[..., Any]) -> Any:
    subject = zoo_subject(name, n_agents=2)
    return replace(subject, ops=replace(subject.ops, **changed))


def around(operation: str, act: Callable[[tuple[Any, ...], dict[str, Any]], object]) -> dict[str, Any]:
    """The operation, with an action before it that sees the arguments."""
    library: Any = getattr(zoo_subject("mlp", n_agents=2).ops, operation)

    def changed(*args: Any, **kwargs: Any) -> Any:
        act(args, kwargs)
        return library(*args, **kwargs)

    return {operation: changed}


def test_parameters_that_evaluation_writes() -> None:
    def act(args: Any, kwargs: Any) -> None:
        next(iter(args[1].values())).data.add_(1)

    said = found("nothing_is_changed", with_ops(**around("apply", act)))
    assert said.startswith("after evaluation['params']['0.weight']: ")


def test_parameters_that_are_written_with_the_same_numbers() -> None:
    def act(args: Any, kwargs: Any) -> None:
        next(iter(args[1].values())).add_(0)

    said = found("nothing_is_changed", with_ops(**around("apply", act)))
    assert said == "after evaluation: written in place, though with the same numbers"


def test_parameters_that_training_writes() -> None:
    def act(args: Any, kwargs: Any) -> None:
        if kwargs.get("train"):
            next(iter(args[1].values())).data.add_(1)

    assert found("nothing_is_changed", with_ops(**around("apply", act))).startswith(
        "after training['params']['0.weight']: "
    )


GENERATORS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(1),
    "random": random.random,
    "numpy": np.random.random,
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("operation", ["init_params", "init_state", "split", "fold_in", "apply"])
def test_generators_that_move(name: str, operation: str) -> None:
    subject = with_ops(**around(operation, lambda args, kwargs: GENERATORS[name]()))
    assert found("generators_are_untouched", subject) == f"the global generator of {name} moved during calls with a key"


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_that_are_read(name: str) -> None:
    """Read and put back: nothing moves, but the seed makes a difference."""
    library: Any = zoo_subject("mlp", n_agents=2).ops.init_params

    def changed(*args: Any, **kwargs: Any) -> Any:
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        drawn: Any = GENERATORS[name]()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        return {leaf: value + float(drawn) for leaf, value in library(*args, **kwargs).items()}

    said = found("generators_are_untouched", with_ops(init_params=changed))
    assert said.startswith("results under two seeds of the global generators[0]['0.bias']: expected ")


def test_inputs_that_evaluation_writes() -> None:
    def act(args: Any, kwargs: Any) -> None:
        args[2].data.add_(1)

    said = found("nothing_is_changed", with_ops(**around("apply", act)))
    assert said.startswith("after evaluation['inputs'][0]: expected ")


def test_keyword_inputs_that_evaluation_writes() -> None:
    def act(args: Any, kwargs: Any) -> None:
        if kwargs["kwargs"]:
            kwargs["kwargs"]["gain"].data.add_(1)

    said = found("nothing_is_changed", with_ops("trees", **around("apply", act)))
    assert said.startswith("after evaluation['kwargs']['gain']: expected ")
