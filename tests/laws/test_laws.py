"""How laws speak: what they are asked of, what they say, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import functional_marl as fm
from functional_marl.laws import (
    LAWS,
    Grouped,
    Law,
    LawViolation,
    ModuleSubject,
    NetworkSubject,
    NotApplicable,
    zoo_subject,
)
from functional_marl.laws._compare import Broken, agree, differ, zero
from functional_marl.laws._law import law

every = pytest.mark.parametrize("each", LAWS.values(), ids=list(LAWS))


@every
def test_says_itself_in_mathematics_and_in_english(each: Law) -> None:
    assert each.formula
    assert "\n\n" not in each.formula
    assert each.english.rstrip().endswith(".")
    assert LAWS[each.name] is each
    assert each.__doc__ is not None
    assert each.formula in each.__doc__


def test_a_violation_names_the_law_the_agents_and_the_numbers() -> None:
    s = zoo_subject("mlp", n_agents=2)

    def leaky(*args: object, **how: object) -> torch.Tensor:
        y = fm.apply(*args, **how)  # pyright: ignore
        return y + torch.tensor([0.0, 1.0])[:, None]

    with pytest.raises(
        LawViolation, match=r"^agents_are_networks: strategy auto, agent 1, .*: output: expected .*, got"
    ):
        LAWS["agents_are_networks"](replace(s, ops=replace(s.ops, apply=leaky)))
    with pytest.raises(LawViolation) as found:
        LAWS["agents_are_networks"](replace(s, ops=replace(s.ops, apply=leaky)))
    assert found.value.law is LAWS["agents_are_networks"]
    assert "y_i = f(θ_i, x_i)" in str(found.value)


def test_a_law_does_not_pass_where_it_says_nothing() -> None:
    s = zoo_subject("mlp", n_agents=2)
    with pytest.raises(NotApplicable, match="shared_equivariance: not all agents share everything"):
        LAWS["shared_equivariance"](s)
    assert not LAWS["independent_equivariance"].why_not(s)
    assert LAWS["group_layout"].why_not(s) == "it is about a Grouped, not a NetworkSubject"


def test_a_law_knows_which_kinds_of_subject_it_is_about() -> None:
    kinds = (NetworkSubject, ModuleSubject, Grouped)
    for name, wanted in {
        "local_jacobian": (True, True, False),
        "stack_round_trip": (True, False, False),
        "batch_axes_are_free": (False, True, False),
        "group_layout": (False, False, True),
    }.items():
        assert tuple(LAWS[name].is_about(kind) for kind in kinds) == wanted


def test_laws_have_names_of_their_own() -> None:
    def agents_are_networks(s: object) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="expected a new name, got 'agents_are_networks'"):
        law(1)(agents_are_networks)


def test_outputs_without_the_agents_break_a_law() -> None:
    s = zoo_subject("mlp", n_agents=2)
    flat = replace(s, ops=replace(s.ops, apply=lambda *args, **how: torch.zeros(3)))
    with pytest.raises(LawViolation, match=r"outputs: expected 2 agents at dim 0, got shape \[3\]"):
        LAWS["local_jacobian"](flat)


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, r"expected the leaves \[\"here\['b'\]\"\]"),
        (torch.ones(2), torch.ones(3), r"here: expected shape \[3\], got \[2\]"),
        (torch.ones(2), torch.ones(2).double(), "here: expected torch.float64, got torch.float32"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), r"expected 3.0 at \[1\], got 2.0 \(1 differ\)"),
        (torch.tensor(torch.nan), torch.tensor(1.0), "expected 1.0 at"),
        (torch.tensor([1, torch.nan]), torch.tensor([1, torch.nan]), r"nan in both at \[1\] \(1 of 2 numbers\)"),
        (1, 2, "here: expected 2, got 1"),
        (1, torch.tensor(1), "expected tensor"),
    ],
)
def test_agree_says_what_differs(found: object, wanted: object, message: str) -> None:
    with pytest.raises(Broken, match=message):
        agree(found, wanted, "here")


def test_agree_up_to_rounding_or_to_the_bit() -> None:
    one = torch.tensor([1.0, torch.nan, torch.inf], dtype=torch.float64)
    agree(one, one.clone(), "", exact=True)
    agree(one + 1e-12, one, "", oracle=True)
    with pytest.raises(Broken, match="1 differ"):
        agree(one + 1e-12, one, "", exact=True)
    with pytest.raises(Broken, match="1 differ"):
        agree(one + 1e-6, one, "", oracle=True)


def test_differ_and_zero() -> None:
    differ(torch.zeros(2), torch.ones(2), "here")
    with pytest.raises(Broken, match="here: expected different numbers, got the same"):
        differ((torch.zeros(2), torch.zeros(0)), (torch.zeros(2), torch.zeros(0)), "here")
    zero({"v": torch.zeros(2)}, "here")
    with pytest.raises(Broken, match="here on w: expected a zero gradient, got 2"):
        zero({"w": torch.tensor([0.0, -2.0])}, "here")


def test_laws_need_no_hypothesis() -> None:
    code = "import sys, functional_marl.laws; assert 'hypothesis' not in sys.modules; "
    code += "import functional_marl.laws.strategies; assert 'hypothesis' in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
