"""The report of a check: its text, its files, and how it is indexed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import functional_marl as fm
from functional_marl.laws import Report, Verdict, check

FACTS: dict[str, Any] = {
    "n_agents": 3,
    "sharing": "shared (claimed by the module)",
    "inferred": "independent",
    "view": "local",
    "randomness": None,
}
SNIPPET = "import torch\nLAWS['local_jacobian'](subject)"
BROKEN = Verdict(
    18,
    "local_jacobian",
    "violated",
    "local_jacobian: agent 0's output changes with agent 1's input\n    ∂y_i / ∂x_j = 0",
    4,
    {"agents": [0, 1], "rows": 1, "seed": 7},
    SNIPPET,
    statement="An agent's output depends\n    on its own input alone.",
)
HELD = Verdict(11, "shared_equivariance", "holds", cases=20)
SILENT = Verdict(21, "detached_groups", "not applicable", "there are no groups")
EXCLUDED = Verdict(51, "compile_is_eager", "skipped", "excluded by --skip")


def report(*verdicts: Verdict, **facts: Any) -> Report:
    return Report("Policy", FACTS | facts, verdicts, "2026.1")


def twice(verdict: Verdict, **other: Any) -> tuple[Verdict, Verdict]:
    """A verdict in evaluation and another in training."""
    return verdict, replace(verdict, train=True, **other)


# --- text -------------------------------------------------------------------------------------------------


def test_the_whole_text() -> None:
    """Verdict, claim, violation with its case and how to reproduce it, what holds, what does not apply."""
    text = str(report(BROKEN, HELD, SILENT, EXCLUDED))
    assert (
        text
        == """\
VIOLATED: 1 law of 2; Policy does not keep what it claims
claim: sharing shared (claimed by the module); local; 3 agents; in evaluation
inferred: independent

local_jacobian
  An agent's output depends on its own input alone.
  found: agent 0's output changes with agent 1's input
  smallest case: agents 0, 1; rows 1; seed 7
  reproduce:
      import torch
      LAWS['local_jacobian'](subject)

1 law holds: shared_equivariance.

1 law skipped: compile_is_eager.

1 law does not apply: --verbose, or text(verbose=True), lists why."""
    )


def test_verbose_lists_reasons_once_and_cases() -> None:
    other = replace(SILENT, number=22, law="masked_agents")
    lines = report(BROKEN, HELD, SILENT, other).text(verbose=True).splitlines()
    assert lines[-6:] == [
        "Not applicable:",
        "  there are no groups: detached_groups, masked_agents",
        "",
        "Cases:",
        "  18  local_jacobian       violated  4 cases",
        "  11  shared_equivariance  holds     20 cases",
    ]
    assert "--verbose" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        ([HELD], "The one law that applies to Policy holds."),
        ([HELD, SILENT], "The one law that applies to Policy holds."),
        ([HELD, replace(HELD, law="other")], "All 2 laws that apply to Policy hold."),
        ([*twice(HELD)], "The one law that applies to Policy holds."),
        ([SILENT, EXCLUDED], "Nothing was checked: no law applies to Policy."),
        ([*twice(BROKEN), HELD], "VIOLATED: 1 law of 2; Policy does not keep what it claims"),
        ([BROKEN, replace(BROKEN, law="other")], "VIOLATED: 2 laws of 2; Policy does not keep what it claims"),
    ],
)
def test_the_first_line_counts_laws_and_not_verdicts(verdicts: list[Verdict], line: str) -> None:
    assert str(report(*verdicts)).splitlines()[0] == line


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "claim: sharing shared (claimed by the module); local; 3 agents; in evaluation"),
        (
            {"view": "centralized", "n_agents": 1},
            "claim: sharing shared (claimed by the module); centralized; 1 agent;",
        ),
        ({"ids": True}, "claim: sharing shared (claimed by the module); local; with ids of its own; 3 agents;"),
        ({"sharing": None}, "claim: sharing independent (inferred); local; 3 agents; in evaluation"),
        ({"sharing": None, "inferred": None}, "claim: local; 3 agents; in evaluation"),
        ({"randomness": "same"}, "claim: sharing shared (claimed by the module); local; 3 agents; randomness same; in"),
    ],
)
def test_the_claim_in_a_line(facts: dict[str, Any], line: str) -> None:
    assert str(report(HELD, **facts)).splitlines()[1].startswith(line)


def test_the_modes_of_the_verdicts_are_part_of_the_claim() -> None:
    train = replace(HELD, train=True)
    cases = [((HELD,), "evaluation"), ((train,), "training"), ((HELD, train), "evaluation and training")]
    for verdicts, words in cases:
        assert str(report(*verdicts)).splitlines()[1].endswith(f"; in {words}")
    assert str(report(SILENT)).splitlines()[1].endswith("; 3 agents")


def test_facts_without_words_of_their_own_are_shown_as_they_are() -> None:
    text = str(Report("group", {"names": ["a", "b"], "nothing": None}, (HELD,)))
    assert text.splitlines()[:2] == ["The one law that applies to group holds.", "names: ['a', 'b']"]


def test_what_is_inferred_is_shown_where_it_helps() -> None:
    assert "inferred" not in str(report(HELD))
    assert "inferred: independent" in str(report(BROKEN))
    assert "inferred: independent" in report(HELD).text(verbose=True)
    assert "inferred" not in str(report(BROKEN, inferred=None))
    assert str(report(BROKEN, sharing=None)).count("inferred") == 1


def test_training_is_marked() -> None:
    sound = replace(HELD, law="sound")
    silent = replace(HELD, law="half", verdict="not applicable", why="eval")
    verdicts = [*twice(sound), replace(BROKEN, train=True), replace(BROKEN, verdict="holds", why="")]
    verdicts += [silent, replace(silent, verdict="holds", train=True)]
    text = str(report(*verdicts))
    assert "\nlocal_jacobian (training)\n" in text
    assert text.endswith("3 laws hold: sound, local_jacobian (evaluation), half (training).")


def test_long_lines_are_wrapped_and_snippets_are_not() -> None:
    long = replace(BROKEN, why=f"local_jacobian: {'word ' * 60}", snippet=f"call({'x, ' * 80})", statement="say " * 60)
    many = [replace(HELD, law=f"law_number_{k}") for k in range(40)]
    lines = str(report(long, *many, SILENT)).splitlines()
    assert max(len(line) for line in lines if "call(" not in line) <= 110
    assert f"      call({'x, ' * 80})" in lines
    assert "".join(lines).count("word") == 60


def test_the_prefix_with_the_name_is_not_repeated() -> None:
    for why in ("law 18 (local_jacobian): seen", "local_jacobian: seen", "seen"):
        assert "  found: seen\n" in str(report(replace(BROKEN, why=why)))


# --- as a value -------------------------------------------------------------------------------------------


def test_truth_order_and_index() -> None:
    assert report(HELD, SILENT)
    assert not report(HELD, BROKEN)
    assert list(report(HELD, BROKEN)) == [HELD, BROKEN]
    assert report(HELD, BROKEN).violated == [BROKEN]
    held, broken = replace(BROKEN, verdict="holds"), replace(BROKEN, train=True)
    assert report(held, broken)["local_jacobian"] is broken
    assert report(replace(broken, train=False), replace(held, train=True))["local_jacobian"].verdict == "violated"
    silent = replace(held, verdict="not applicable")
    assert report(silent, held)["local_jacobian"] is held


def test_an_unknown_law_raises_and_lists_the_laws_of_the_report() -> None:
    with pytest.raises(
        KeyError, match=r"no verdict on 'missing'; the laws are \['local_jacobian', 'detached_groups'\]"
    ):
        report(*twice(BROKEN), SILENT)["missing"]


def test_a_report_of_check() -> None:
    found = check(nn.Linear(4, 2), n_agents=2, example=torch.zeros(3, 2, 4), examples=1)
    assert found
    assert re.match(r"All \d+ laws that apply to Linear hold\.\nclaim: .*2 agents", str(found))
    ElementTree.fromstring(found.to_junit())


# --- files ------------------------------------------------------------------------------------------------


def test_json() -> None:
    found = json.loads(report(BROKEN, HELD).to_json())
    assert found["versions"] == {"laws": "2026.1", "functional_marl": fm.__version__, "torch": torch.__version__}
    assert (found["subject"], found["ok"], found["sharing"]) == ("Policy", False, "shared (claimed by the module)")
    assert [law["law"] for law in found["laws"]] == ["local_jacobian", "shared_equivariance"]
    assert found["laws"][0]["case"] == {"agents": [0, 1], "rows": 1, "seed": 7}
    assert found["laws"][0]["train"] is False


def test_junit_counts_and_reasons() -> None:
    suite = ElementTree.fromstring(report(BROKEN, *twice(HELD), SILENT, EXCLUDED).to_junit()).find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "1", "errors": "0", "skipped": "2"}
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [
        "local_jacobian",
        "shared_equivariance",
        "shared_equivariance (training)",
        "detached_groups",
        "compile_is_eager",
    ]
    assert {case.get("classname") for case in cases} == {"Policy"}
    failure = cases[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "local_jacobian: agent 0's output changes with agent 1's input"
    assert SNIPPET in (failure.text or "")
    assert [len(case) for case in cases] == [1, 0, 0, 1, 1]
    assert [skipped.get("message") for skipped in suite.iter("skipped")] == [
        "there are no groups",
        "excluded by --skip",
    ]
    properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert properties["laws_version"] == "2026.1"
    assert properties["sharing"] == "shared (claimed by the module)"


def test_junit_is_valid_with_any_text() -> None:
    odd = 'a\x00b\x1b[31m <&>" \ud800 \ufffe é ∂'
    text = report(replace(BROKEN, why=odd, snippet=odd), replace(SILENT, why=odd), inferred=odd).to_junit()
    suite = ElementTree.fromstring(text.encode("utf-8"))
    skipped = suite.find(".//skipped")
    assert skipped is not None
    assert skipped.get("message") == 'a\ufffdb\ufffd[31m <&>" \ufffd \ufffd é ∂'


def test_a_violation_without_words_still_fails_in_junit() -> None:
    text = report(replace(BROKEN, why="", snippet="", statement="")).to_junit()
    assert 'failures="1"' in text
    assert '<failure message="violated"' in text


def test_files_by_their_suffix(tmp_path: Path) -> None:
    one = report(BROKEN)
    for name, text in (("a.json", one.to_json()), ("b.XML", one.to_junit()), ("c.txt", one.text(verbose=True))):
        one.write(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text + "\n"
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.json, \.xml, \.txt, got '.*a\.html'"):
        one.write(tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
