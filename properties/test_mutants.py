"""Each law rejects its mutants on cases from its own strategies, and the error names this law."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from functional_marl.laws import LAWS, LawViolation
from functional_marl.laws.strategies import cases
from properties import mutants_calls as mutants_calls
from properties import mutants_modules as mutants_modules
from properties import mutants_more as mutants_more
from properties import mutants_trees as mutants_trees
from properties.mutants import MUTANTS, Mutant

HUNT = settings(
    max_examples=300,
    database=None,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list[Any](HealthCheck),
)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.law.name}: {m.name}" for m in MUTANTS])
def test_rejected(mutant: Mutant) -> None:
    @HUNT
    @given(cases(mutant.law))
    def search(case: object) -> None:
        mutant.law(mutant.of(case))

    with pytest.raises(LawViolation, match=rf"law {mutant.law.number} \({mutant.law.name}\): ") as found:
        search()
    assert found.value.law is mutant.law
    assert found.value.snippet.splitlines()[-1].strip() in str(found.value)
    exec(found.value.snippet, {})  # the case without the mutant: no error


def test_every_law_has_a_mutant() -> None:
    without = set(LAWS) - {mutant.law.name for mutant in MUTANTS}
    assert not without


GROUPS = {
    "equivalence": range(1, 11),
    "equivariance": range(11, 18),
    "dependence": range(18, 24),
    "gradients": range(24, 28),
    "structure": range(28, 36),
    "shapes": range(36, 41),
    "randomness": range(41, 48),
    "purity": range(48, 52),
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=list(GROUPS))
def test_every_group_has_mutants(group: range) -> None:
    numbers = [mutant.law.number for mutant in MUTANTS]
    assert set(group) <= set(numbers)
    assert sum(number in group for number in numbers) >= 3 * len(group) / 2


def test_no_law_is_forgotten() -> None:
    assert {law.number for law in LAWS.values()} == set(range(1, 52))
