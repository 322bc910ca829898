"""Each law holds on right subjects, and on wrong ones it fails and names the agents, slots and leaves at fault.

The cases are stored, so that all run in seconds; properties/ looks for others. See topic_cases.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from functional_marl.laws import LAWS, LawViolation, NetworkSubject, Subject
from properties import mutants_calls as mutants_calls
from properties import mutants_modules as mutants_modules
from properties import mutants_more as mutants_more
from properties import mutants_trees as mutants_trees
from properties.mutants import MUTANTS
from tests.laws.topic_cases import FILE, LEFT_OUT, case_of, named

ROWS: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))
RIGHT = [row for row in ROWS if "mutant" not in row]
WRONG = [row for row in ROWS if "mutant" in row]
_SLOW = "ignore:There is a performance drop:UserWarning"


def _id(row: dict[str, Any]) -> str:
    return f"{LAWS[row['law']].topic}-{row['law']}-{row.get('mutant', 'right')}"


@pytest.mark.filterwarnings(_SLOW)
@pytest.mark.parametrize("row", RIGHT, ids=_id)
def test_holds(row: dict[str, Any]) -> None:
    LAWS[row["law"]](case_of(row["case"]))


@pytest.mark.filterwarnings(_SLOW)
@pytest.mark.parametrize("row", WRONG, ids=_id)
def test_fails(row: dict[str, Any]) -> None:
    law = LAWS[row["law"]]
    mutant = next(each for each in MUTANTS if (each.law, each.name) == (row["law"], row["mutant"]))
    with pytest.raises(LawViolation) as raised:
        law(mutant.of(case_of(row["case"])))
    assert raised.value.law is law
    assert named(raised.value.found) == row["named"]
    assert not raised.value.found.startswith(("None", "expected")), "it does not name what is wrong"


def test_every_law_and_mutant_has_a_case() -> None:
    laws = {
        law.name
        for law in LAWS.values()
        if law.topic not in LEFT_OUT and (law.about is not Subject or law.is_about(NetworkSubject))
    }
    assert {row["law"] for row in RIGHT} == laws
    mutants = {(each.law, each.name) for each in MUTANTS if each.law in laws}
    assert mutants == {(row["law"], row["mutant"]) for row in WRONG}


def test_what_a_violation_names() -> None:
    assert named("agents 0 and 12, head.0.weight[3]: expected 0.25 at [0, 1], got 1") == [
        "0",
        "12",
        "head.0.weight",
        "3",
    ]
