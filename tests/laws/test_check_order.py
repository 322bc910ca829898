"""Which cases ``check`` looks at, in which order, and what becomes of errors; the facts of a report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl._sharing import Sharing
from functional_marl.laws import LAWS, CheckError, Claims, check
from functional_marl.laws._check import _Check, _sharing_words, _shown, laws_named
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._module_under_test import ModuleUnderTest
from tests.laws.check_cases import GROUPS, Groups, Listed, Stacked, X, claim, one


def cases(law: str, build: Any = one, examples: int = 20, seed: int = 0, **said: Any) -> list[tuple[Any, ...]]:
    host = ModuleUnderTest(build(), Claims(**(claim("shared") | said)))
    return [(case.pair, case.size, case.seed) for case in _Check(examples, seed).cases(LAWS[law], host, False)]


def test_half_of_the_cases_have_one_row_and_the_pairs_take_turns() -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = cases("local_jacobian", examples=8, seed=5)
    assert found == [(pairs[k % 3], 1 if k < 4 else None, 5 + k) for k in range(8)]
    assert len(cases("local_jacobian")) == 20


def test_every_pair_has_its_turn_with_one_row_and_with_all() -> None:
    found = cases("local_jacobian", examples=2)
    assert [pair for pair, size, _ in found if size == 1] == [(0, 1), (0, 2), (1, 2)]
    assert [pair for pair, size, _ in found if size is None] == [(0, 1), (0, 2), (1, 2)]
    costly = next(law for law in laws_named("default") if law.cost == 2 and law.every_case and not law.whole_batch)
    assert len(cases(costly.name, examples=2)) == 3
    assert len(cases(costly.name, examples=20)) == 10


def test_one_case_is_enough_for_some_laws() -> None:
    assert cases("gradient_reaches_own_slot", seed=4) == [((0, 1), None, 4)]


def test_whole_batches() -> None:
    law = next(law for law in laws_named("default") if law.whole_batch)
    assert {size for _, size, _ in cases(law.name)} == {None}
    assert {size for _, size, _ in cases("local_jacobian", example=lambda generator: X)} == {None}


def test_pairs_that_can_take_each_others_place() -> None:
    groups: dict[str, Any] = GROUPS | {"sharing": [0, 0, 1, 1, 1], "centralized": None}
    together = {pair for pair, _, _ in cases("equal_inputs_equal_outputs", Groups, **groups)}
    assert together == {(0, 1), (2, 3), (2, 4), (3, 4)}
    every = {pair for pair, _, _ in cases("local_jacobian", Groups, **groups)}
    assert len(every) == 10
    clusters = {pair for pair, _, _ in cases("equal_inputs_equal_outputs", Listed, sharing=[0, 1, 0])}
    assert clusters == {(0, 2)}


def test_pairs_that_share_nothing() -> None:
    apart = {pair for pair, _, _ in cases("training_others_changes_nothing", Listed, sharing=[0, 1, 0])}
    assert apart == {(0, 1), (1, 2)}


def test_no_pair() -> None:
    with pytest.raises(CheckError, match=r"^no two agents have inputs of one form$"):
        cases("equal_inputs_equal_outputs", Listed, sharing=[0, 1, 2])
    assert cases("local_jacobian", n_agents=1, example=X[:, :1])[0] == ((0, 0), 1, 0)


def test_laws_by_name_and_topic() -> None:
    named = [law.name for law in laws_named("local_jacobian, shared_equivariance")]
    assert sorted(named) == ["local_jacobian", "shared_equivariance"]
    assert laws_named(["local_jacobian"]) == [LAWS["local_jacobian"]]
    assert {law.topic for law in laws_named("symmetry")} == {"symmetry"}
    default, every = laws_named("default"), laws_named("all")
    assert [law for law in every if law.default] == default
    with pytest.raises(CheckError, match=r"^laws: expected 'default', 'all', names .* got no_law, nor_this$"):
        laws_named("no_law,symmetry,nor_this")


class Raises(nn.Module):
    """Raises in calls with so many rows."""

    def __init__(self, *rows: int) -> None:
        super().__init__()
        self.net, self.rows = nn.Linear(6, 2), rows

    def forward(self, x: Tensor) -> Tensor:
        if len(x) in self.rows:
            raise ValueError(f"{len(x)} rows")
        return self.net(x)


def test_a_module_that_takes_no_batch_of_one() -> None:
    verdict = check(Raises(1), **claim("shared"), laws=["local_jacobian"])["local_jacobian"]
    assert (verdict.verdict, verdict.cases) == ("holds", 10)
    with pytest.raises(CheckError, match=r"^the module raises on the example: ValueError: 4 rows$"):
        check(Raises(4), **claim("shared"))


def test_a_violation_has_the_case_and_what_makes_it_again() -> None:
    report = check(one(), **claim("independent"), laws=["gradient_reaches_own_slot"], seed=3)
    (verdict,) = report.violated
    assert verdict.case == {"agents": [0, 1], "rows": [4], "seed": 3}
    assert verdict.cases == 1
    assert verdict.snippet.startswith("from functional_marl.laws import ") or "LAWS[" in verdict.snippet
    assert "LAWS['gradient_reaches_own_slot'](module_subject(module, " in verdict.snippet
    assert verdict.statement == LAWS["gradient_reaches_own_slot"].english


def test_the_case_in_words() -> None:
    host = ModuleUnderTest(one(), Claims(**claim("shared")))
    whole, small = ModuleSubject(host, seed=7), ModuleSubject(host, size=1, seed=8)
    assert _shown(whole, "agents 2 and 0 differ") == {"agents": [0, 2], "rows": [4], "seed": 7}
    assert _shown(small, "agent 1: agent 1 again\nagent 2") == {"agents": [1], "rows": 1, "seed": 8}
    assert _shown(small, "nobody") == {"rows": 1, "seed": 8}


def test_facts() -> None:
    facts = check(one(), **claim("shared"), laws=["local_jacobian"], examples=1).facts
    assert facts == {
        "n_agents": 3,
        "sharing": "shared (claimed by you)",
        "inferred": "shared",
        "view": "local",
        "randomness": None,
    }
    facts = check(Stacked(), **claim(ids=True, communication=True), laws=["outputs_are_numbers"], examples=1).facts
    assert (facts["view"], facts["ids"], facts["sharing"]) == ("communicating", True, None)
    assert facts["inferred"] == {
        "heads": "{0} {1} {2} along axis 0",
        "trunk.weight": "{0,1,2}",
        "trunk.bias": "{0,1,2}",
    }
    assert check(nn.Identity(), **claim(), laws=["outputs_are_numbers"]).facts["inferred"] is None
    central = check(one(), **claim("shared", True), laws=["outputs_are_numbers"], examples=1)
    assert central.facts["view"] == "centralized"


def test_sharing_in_words() -> None:
    assert _sharing_words("shared") == "shared"
    assert _sharing_words(Sharing([0, 0, 1])) == [0, 0, 1]
    assert _sharing_words({"a": Sharing([0, 1]), "b": [0, 1]}) == [0, 1]
    assert _sharing_words({"a": "shared", "*": "independent"}) == {"a": "shared", "*": "independent"}
    assert _sharing_words({}) is None


def test_modes() -> None:
    def modes(module: nn.Module, train: bool | None = None) -> list[bool]:
        report = check(module, **claim(), laws=["local_jacobian"], examples=1, train=train)
        return [verdict.train for verdict in report]

    norm = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5))
    assert modes(one()) == [False]
    assert modes(norm) == [False, True]
    assert modes(norm, False) == [False]
    assert modes(one(), True) == [True]


def test_claims_and_keywords() -> None:
    claims = Claims(X, n_agents=3, sharing="shared")
    assert check(one(), claims, laws=["local_jacobian"], examples=1)
    assert not check(one(), claims, sharing="independent", laws=["gradient_reaches_own_slot"])
    with pytest.raises(CheckError, match=r"^claims: .*shraing.*; the fields are those of Claims$"):
        check(one(), claims, shraing="shared")
    with pytest.raises(CheckError, match=r"^claims: .*shraing.*; the fields are those of Claims$"):
        check(one(), shraing="shared")


def test_names_seeds_and_laws_that_are_left_out() -> None:
    seen: list[str] = []

    def progress(laws: Any) -> Any:
        seen.extend(law.name for law in laws)
        return laws

    words = ["local_jacobian", "outputs_are_numbers", "gradient_reaches_own_slot"]
    report = check(
        one, **claim("shared"), laws=words, skip=["local_jacobian"], name="policy", examples=1, progress=progress
    )
    assert sorted(seen) == ["gradient_reaches_own_slot", "outputs_are_numbers"]
    assert report["local_jacobian"].verdict == "skipped"
    assert report["local_jacobian"].why == "skip="
    assert report.to_dict()["subject"] == "policy"
    assert check(one(), **claim("shared"), laws=words, examples=1).to_dict()["subject"] == "Sequential"


def test_a_function_builds_under_the_seed() -> None:
    built: list[Tensor] = []

    def build() -> nn.Module:
        module = one()
        built.append(next(module.parameters()).detach().clone())
        return module

    for seed in (1, 1, 2):
        check(build, **claim("shared"), laws=["outputs_are_numbers"], examples=1, seed=seed)
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_laws_about_calls_come_first() -> None:
    first = ["outputs_are_numbers", "results_follow_the_seed", "evaluation_draws_nothing", "calls_leave_no_memory"]
    assert [law.name for law in laws_named("all")][:4] == first
    assert [law.name for law in laws_named("default")][:4] == first
    assert not any(law.first for law in laws_named("all")[4:])
