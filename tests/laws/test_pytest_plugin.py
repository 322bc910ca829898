"""``parametrize_with_laws`` and its pytest plugin, run by pytest itself on laws with known verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from functional_marl.laws import Claims, _parametrize
from functional_marl.laws._parametrize import LawFailure, parametrize_with_laws
from tests.laws import fake_laws

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "functional_marl_plugins.pytest_plugin"
# An installed package has the plugin as an entry point: it would be loaded twice.
LOAD = ["-p", "no:functional_marl", "-p", PLUGIN, "-p", "no:cacheprovider"]
HEAD = """
from functional_marl.laws._parametrize import parametrize_with_laws
from tests.laws.fake_laws import BUILT, Policy
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest on a test file, in this process, with the laws of ``fake_laws``.

    Without hypothesis' plugin, which would import hypothesis anew in each run.
    """
    fake_laws.install(monkeypatch.setattr)

    def run(code: str, *options: str, load: list[str] = LOAD) -> pytest.RunResult:
        pytester.makepyfile(test_it=HEAD + code)
        return pytester.runpytest_inprocess(*load, "-p", "no:hypothesispytest", *options)

    return run


def suite(subjects: str, *arguments: str, body: str = "law()", takes: str = "law") -> str:
    listed = ", ".join([subjects, *arguments])
    return f"@parametrize_with_laws({listed})\ndef test_it({takes}):\n    {body}\n"


# --- one test for each subject and law --------------------------------------------------------------------


def test_ids_and_outcomes(run: Run) -> None:
    claims = "{'first_law': 'violated', 'second_law': 'not applicable'}"
    result = run(suite(f"[(Policy, {claims}), (Policy(), {{}})]", "laws='all'"), "-v", "-rs")
    result.assert_outcomes(passed=4, failed=1, skipped=1)
    for line in (
        "*test_it[[]Policy-first_law[]] FAILED*",
        "*test_it[[]Policy-second_law[]] SKIPPED*",
        "*test_it[[]Policy-third_law[]] PASSED*",
        "*test_it[[]Policy2-first_law[]] PASSED*",
    ):
        result.stdout.fnmatch_lines([line])
    result.stdout.fnmatch_lines(
        ["*LawFailure: first_law is violated", "*first_law: seen on Policy", "*again('first_law')"]
    )
    result.stdout.fnmatch_lines(["SKIPPED*: no groups"])


def test_either_mode_fails_the_test(run: Run) -> None:
    result = run(suite("{'net': (Policy, {'first_law': 'violated (training)'})}"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*first_law (training) is violated*"])


def test_a_law_without_a_verdict_is_skipped(run: Run) -> None:
    result = run(suite("[(Policy, {'first_law': 'none'})]"), "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: it is not about modules like this one"])


def test_a_test_may_take_the_subject_and_change_it(run: Run) -> None:
    body = "assert subject is Policy; law(7)"
    result = run(suite("{'net': (Policy, {'first_law': 'violated'})}", body=body, takes="subject, law"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*first_law: seen on int"])
    assert fake_laws.BUILT == []


def test_methods_and_other_parameters(run: Run) -> None:
    code = "import pytest\nclass TestPolicy:\n    @pytest.mark.parametrize('k', [1, 2])\n"
    code += "    @parametrize_with_laws([(Policy, {})])\n    def test_it(self, law, k):\n        law()\n"
    run(code).assert_outcomes(passed=4)


def test_further_arguments_reach_check(run: Run) -> None:
    body = "law(); assert law.report.facts['train'] is True; assert law.report.verdicts[0].cases == 3"
    run(suite("[(Policy, {})]", "train=True, examples=3", body=body)).assert_outcomes(passed=2)


def test_each_law_builds_its_own_subject_and_collection_builds_none(run: Run) -> None:
    code = suite("[(Policy, {})]", "laws='all'")
    run(code, "--collect-only").assert_outcomes()
    assert fake_laws.BUILT == []
    run(code).assert_outcomes(passed=3)
    assert fake_laws.BUILT == ["Policy"] * 3


def test_names_of_subjects() -> None:
    def build() -> nn.Module:
        return nn.Linear(1, 1)

    pairs: list[Any] = [(x, 0) for x in (nn.Linear, nn.Linear(1, 1), build, lambda: 0, (1, {}), nn.Linear(1, 1))]
    names = list(_parametrize._named(pairs))
    assert names == ["Linear", "Linear2", "build", "subject", "network", "Linear3"]
    assert list(_parametrize._named({"b": (1, 2), "a": (3, 4)})) == ["b", "a"]


# --- expected failures and excluded laws ------------------------------------------------------------------


def test_an_expected_violation_is_an_expected_failure(run: Run) -> None:
    result = run(suite("[(Policy, {'first_law': 'violated'})]", "expected={'first_law': 'issue 7'}"), "-rx")
    result.assert_outcomes(passed=1, xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL*issue 7*"])


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ("holds", "*XPASS(strict)*issue 7*"),
        (
            "not applicable",
            "*expected first_law to be violated (issue 7), but it does not apply: no groups; remove it*",
        ),
        ("raises", "*ValueError: the module raises on the example*"),
    ],
)
def test_an_expected_law_that_is_not_violated_fails(run: Run, verdict: str, line: str) -> None:
    result = run(suite(f"[(Policy, {{'first_law': {verdict!r}}})]", "expected={'first_law': 'issue 7'}"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([line])


def test_another_assertion_is_no_expected_violation(run: Run) -> None:
    code = suite("[(Policy, {'first_law': 'violated'})]", "expected={'first_law': 'issue 7'}", body="assert not law")
    run(code).assert_outcomes(failed=2)


def test_expected_may_be_a_function_of_the_subject(run: Run) -> None:
    subjects = "{'a': (Policy, {'first_law': 'violated'}), 'b': (len, {'first_law': 'violated'})}"
    expected = "expected=lambda subject: {'first_law': 'issue 7'} if subject is Policy else None"
    result = run(suite(subjects, expected, body="law(0)", takes="law"), "-v")
    result.assert_outcomes(passed=2, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["*b-first_law[]] FAILED*"])


@pytest.mark.parametrize(
    ("skip", "reason"), [("['first_law']", "excluded by skip="), ("{'first_law': 'slow'}", "slow")]
)
def test_excluded_laws_are_skipped_with_the_reason(run: Run, skip: str, reason: str) -> None:
    result = run(suite("[(Policy, {'first_law': 'violated'})]", f"skip={skip}"), "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*: {reason}"])
    assert fake_laws.BUILT == ["Policy"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"expected": {"frist_law": "x"}},
            ValueError,
            "expected: no law is called 'frist_law'; did you mean 'first_law'",
        ),
        ({"skip": ["qqq"]}, ValueError, "skip: no law is called 'qqq'; see python -m functional_marl.laws --list"),
        ({"expected": {"first_law": ""}}, ValueError, r"expected\['first_law'\]: expected a reason, got ''"),
        ({"expected": {"first_law": 3}}, ValueError, "expected a reason, got 3"),
        (
            {"expected": {"first_law": "x"}, "skip": ["first_law"]},
            ValueError,
            r"\['first_law'\] of int are also in skip=",
        ),
        ({"subjects": []}, ValueError, "subjects: expected at least one pair"),
        ({"subjects": {}}, ValueError, "subjects: expected at least one pair"),
        ({"subjects": [3]}, ValueError, r"subjects: expected pairs \(subject, Claims\(...\)\), got 3"),
        ({"subjects": {"a": (1, 2, 3)}}, ValueError, r"expected pairs .*got \(1, 2, 3\)"),
    ],
)
def test_wrong_arguments_raise_at_once(
    arguments: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_laws.install(monkeypatch.setattr)
    subjects: Any = [(1, {})]
    with pytest.raises(error, match=match):
        parametrize_with_laws(**{"subjects": subjects, **arguments})


def test_a_test_that_takes_no_law_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_laws.install(monkeypatch.setattr)
    with pytest.raises(TypeError, match=r"test: expected an argument 'law', got \['net'\]; call it: law\(\)"):

        @parametrize_with_laws([(1, {})])
        def test(net: Any) -> None: ...


def test_a_known_law_that_is_not_chosen_may_be_expected(run: Run) -> None:
    """One table of expectations serves a quick selection of laws and all of them."""
    run(suite("[(Policy, {})]", "expected={'third_law': 'issue 7'}")).assert_outcomes(passed=2)


# --- options ----------------------------------------------------------------------------------------------


def test_examples(run: Run) -> None:
    body = "law(); assert law.report.verdicts[0].cases == {}"
    code = suite("[(Policy, dict())]", body=body)
    run(code.format(20)).assert_outcomes(passed=2)
    run(code.format(7), "--laws-examples", "7").assert_outcomes(passed=2)
    code = suite("[(Policy, dict())]", "examples=5", body=body)
    run(code.format(5)).assert_outcomes(passed=2)
    run(code.format(7), "--laws-examples=7").assert_outcomes(passed=2)
    for wrong in ("0", "-1", "x", "1.5"):
        result = run(code, f"--laws-examples={wrong}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*--laws-examples: expected 1 or more, got '{wrong}'"])


def test_without_the_plugin_the_tests_run_too(run: Run) -> None:
    result = run(suite("[(Policy, {'first_law': 'violated'})]"), load=LOAD[:2])
    result.assert_outcomes(passed=1, failed=1)


ARGUMENTS = ("laws='all'", "expected={'second_law': 'issue 7'}", "skip={'third_law': 'slow'}")
BOTH = suite("{'a': (Policy, {'second_law': 'violated'})}", *ARGUMENTS) + suite(
    "{'b': (Policy, {'first_law': 'violated', 'second_law': 'not applicable', 'third_law': 'violated (training)'})}",
    "laws='all'",
).replace("test_it", "test_other")


def assert_both(found: dict[str, Any]) -> None:
    """What ``BOTH`` writes."""
    assert found["ok"] is False
    reports = found["reports"]
    assert [(report["test"], report["subject"], report["ok"]) for report in reports] == [
        ("test_it.py::test_it", "a", True),
        ("test_it.py::test_other", "b", False),
    ]
    assert [report["sharing"] for report in reports] == ["shared", "shared"]
    assert reports[0]["versions"]["laws"] == "v1"
    rows = [[(law["law"], law["train"], law["verdict"], law["expected"]) for law in r["laws"]] for r in reports]
    assert rows == [
        [
            ("first_law", False, "holds", ""),
            ("second_law", False, "violated", "issue 7"),
            ("third_law", False, "skipped", ""),
        ],
        [
            ("first_law", False, "violated", ""),
            ("second_law", False, "not applicable", ""),
            ("third_law", False, "holds", ""),
            ("third_law", True, "violated", ""),
        ],
    ]
    assert reports[0]["laws"][2]["why"] == "slow"
    assert reports[1]["laws"][0]["snippet"] == "again('first_law')"


def test_all_reports_in_one_json_file(run: Run, pytester: pytest.Pytester) -> None:
    result = run(BOTH, "--laws-json", "out/laws.json")
    result.assert_outcomes(passed=1, xfailed=1, skipped=2, failed=2)
    result.stdout.fnmatch_lines(["laws: the reports of 2 subjects are in out?laws.json"])
    assert_both(json.loads((pytester.path / "out" / "laws.json").read_text()))
    assert [path.name for path in (pytester.path / "out").iterdir()] == ["laws.json"]


def test_json_without_laws_and_without_a_file(run: Run, pytester: pytest.Pytester) -> None:
    run("def test_it(): pass", "--laws-json=a.json").assert_outcomes(passed=1)
    assert json.loads((pytester.path / "a.json").read_text()) == {"ok": True, "reports": []}
    result = run("def test_it(): pass", "--laws-json=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--laws-json: expected the name of a file, got the folder ."])


def test_a_test_that_raises_leaves_no_verdict_of_another_run(run: Run, pytester: pytest.Pytester) -> None:
    body = "law(); law.claims = {'first_law': 'raises', 'second_law': 'raises'}; law()"
    run(suite("[(Policy, {})]", body=body), "--laws-json=a.json").assert_outcomes(failed=2)
    (report,) = json.loads((pytester.path / "a.json").read_text())["reports"]
    assert report["laws"] == []


def test_junit_names_the_law(run: Run, pytester: pytest.Pytester) -> None:
    run(BOTH, "--junitxml=a.xml", "-o", "junit_family=xunit1")
    cases = list(ElementTree.parse(pytester.path / "a.xml").iter("testcase"))
    found = [{each.get("name"): each.get("value") for each in case.iter("property")} for case in cases]
    assert [(each["law"], each["law_number"]) for each in found] == [
        (name, number) for _ in "ab" for name, number in (("first_law", "1"), ("second_law", "2"), ("third_law", "3"))
    ]


# --- in processes of their own ----------------------------------------------------------------------------


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_with_xdist_the_controller_writes_what_the_workers_found(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.laws.fake_laws import install\ninstall()\n")
    (tmp_path / "test_it.py").write_text(HEAD + BOTH)
    done = python("-m", "pytest", *LOAD, "-n", "2", "--laws-json=a.json", cwd=tmp_path)
    assert "2 failed, 1 passed, 2 skipped, 1 xfailed" in done.stdout, done.stdout + done.stderr
    assert_both(json.loads((tmp_path / "a.json").read_text()))


def test_pytest_starts_without_torch(tmp_path: Path) -> None:
    """The plugin is loaded in every project of an environment with this package."""
    check = "def test_it(): assert 'functional_marl_plugins.pytest_plugin' in sys.modules and 'torch' {} sys.modules"
    (tmp_path / "test_light.py").write_text("import sys\n" + check.format("not in"))
    (tmp_path / "test_heavy.py").write_text("import sys, torch\n" + check.format("in"))
    for name in ("light", "heavy"):
        done = python("-m", "pytest", *LOAD, "--laws-json=a.json", f"test_{name}.py", cwd=tmp_path)
        assert "1 passed" in done.stdout, done.stdout + done.stderr


# --- what is declared -------------------------------------------------------------------------------------


def test_the_entry_points_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["project"]["entry-points"]
    assert groups.keys() == {"pytest11", "hypothesis"}
    loaded = {
        group: [EntryPoint(name, value, group).load() for name, value in entries.items()]
        for group, entries in groups.items()
    }
    assert loaded["pytest11"] == [import_module(PLUGIN)]
    assert loaded["hypothesis"] == [import_module("functional_marl_plugins.hypothesis_plugin").register]
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {value.split(".")[0] for entries in groups.values() for value in entries.values()} <= set(packages)


# --- on the real laws -------------------------------------------------------------------------------------


def test_on_the_real_laws() -> None:
    names = ["gradient_reaches_own_slot", "local_jacobian", "centralized_sees_all"]
    bound: dict[str, Any] = {}
    for sharing in ("shared", "independent"):
        claims = Claims(torch.zeros(3, 2, 4), n_agents=2, sharing=sharing)

        @parametrize_with_laws([(lambda: nn.Linear(4, 2), claims)], laws=names, examples=2)
        def test(law: Any) -> None: ...

        (mark,) = test.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
        bound |= {f"{sharing} {row.values[0].law.name}": row.values[0] for row in mark.args[1]}
    bound["shared local_jacobian"]()
    bound["shared gradient_reaches_own_slot"]()
    with pytest.raises(LawFailure, match=r"gradient_reaches_own_slot is violated(.|\n)*reproduce:"):
        bound["independent gradient_reaches_own_slot"]()
    with pytest.raises(pytest.skip.Exception, match="the module is not centralized"):
        bound["shared centralized_sees_all"]()
