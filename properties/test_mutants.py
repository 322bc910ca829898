"""Each law rejects its mutants on cases from its own strategies, and the error names this law."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import functional_marl.laws
from functional_marl.laws import LAWS, LawViolation
from functional_marl.laws.strategies import cases
from properties import mutants_calls as mutants_calls
from properties import mutants_modules as mutants_modules
from properties import mutants_more as mutants_more
from properties import mutants_trees as mutants_trees
from properties.mutants import MUTANTS, Mutant
from properties.test_laws import GENERATED

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
@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.law}: {m.name}" for m in MUTANTS])
def test_rejected(mutant: Mutant) -> None:
    law = LAWS[mutant.law]

    @HUNT
    @given(cases(law))
    def search(case: object) -> None:
        law(mutant.of(case))

    with pytest.raises(LawViolation, match=rf"^{law.name}: ") as found:
        search()
    assert found.value.law is law
    assert found.value.snippet.splitlines()[-1].strip() in str(found.value)
    exec(found.value.snippet, {})  # the case without the mutant: no error


def test_every_law_has_a_mutant() -> None:
    without = {law.name for law in GENERATED} - {mutant.law for mutant in MUTANTS}
    assert not without


@pytest.mark.parametrize("topic", sorted({law.topic for law in LAWS.values()}))
def test_every_topic_has_more_mutants_than_laws(topic: str) -> None:
    laws = {law.name for law in GENERATED if law.topic == topic}
    mutants = [mutant for mutant in MUTANTS if mutant.law in laws]
    # Compilers have one mutant each: a rule that is used only when tracing.
    assert len(mutants) > len(laws) or topic == "compilation"


def test_no_law_is_forgotten() -> None:
    """A law in a file that ``functional_marl.laws`` does not import would never be checked."""
    files = Path(functional_marl.laws.__file__).parent.glob("*.py")
    text = "\n".join(path.read_text("utf-8") for path in files)
    written = re.findall(r"^@law\(.*?^def (\w+)", text, re.MULTILINE | re.DOTALL)
    assert sorted(written) == sorted(LAWS)
