"""Options of pytest for ``functional_marl.laws.parametrize_with_laws``: ``--laws-examples`` and ``--laws-json``.

Properties of each test name its law, so that the file of ``--junitxml`` has them too. Works with pytest-xdist: what a
worker finds travels with the reports of its tests.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_ATTRIBUTE = "functional_marl_law"  # of a test's report: what was found, as JSON
_NUMBERS = ("number", "law", "train")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("functional_marl", "laws of multi-agent networks (functional_marl)")
    group.addoption("--laws-examples", type=_count, metavar="N", help="cases for each law (default 20)")
    group.addoption("--laws-json", metavar="PATH", help="write the reports of all subjects to a JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """Collect reports where they are written: with xdist, in the controller alone."""
    path: str | None = config.getoption("--laws-json")
    if path is not None and not hasattr(config, "workerinput"):
        if Path(path).is_dir():
            raise pytest.UsageError(f"--laws-json: expected the name of a file, got the folder {path}")
        config.pluginmanager.register(_JsonFile(Path(path)), "functional_marl_json")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Name the law in the properties of its test, and set how many cases it is checked on."""
    law = _law_of(item)
    if law is not None:
        item.user_properties += [("law", law.law.name), ("law_number", law.law.number)]
        law.examples = item.config.getoption("--laws-examples")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what a law found to the report of its test."""
    report = yield
    law = _law_of(item)
    if law is not None and item.config.getoption("--laws-json") is not None:
        excluded = call.when == "setup" and report.skipped
        if excluded or call.when == "call":
            found = law.found(item.nodeid.partition("[")[0], excluded)
            setattr(report, _ATTRIBUTE, json.dumps(found, default=str))
    return report


def _law_of(item: pytest.Item) -> Any:
    """The law that a test was parametrized with. The package is not imported for it."""
    module: Any = sys.modules.get("functional_marl.laws._parametrize")
    params = getattr(getattr(item, "callspec", None), "params", {})
    return next((value for value in params.values() if module and isinstance(value, module.SubjectLaw)), None)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


class _JsonFile:
    """Merges what the tests found into one report for each subject, and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, str], dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = getattr(report, _ATTRIBUTE, None)
        if text is None:
            return
        found: dict[str, Any] = json.loads(text)
        merged = self.found.setdefault((found["test"], found["subject"]), {"laws": {}})
        laws = merged["laws"]
        laws.update({tuple(law[name] for name in _NUMBERS): law for law in found["laws"]})  # a rerun replaces
        merged.update({name: value for name, value in found.items() if name != "laws"})

    def pytest_sessionfinish(self) -> None:
        reports: list[dict[str, Any]] = []
        for _, merged in sorted(self.found.items()):
            laws = [law for _, law in sorted(merged["laws"].items())]
            ok = all(law["verdict"] != "violated" or law["expected"] for law in laws)
            reports.append({**merged, "ok": ok, "laws": laws})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        part.write_text(json.dumps({"ok": all(r["ok"] for r in reports), "reports": reports}, indent=2) + "\n")
        part.replace(self.path)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        count = len(self.found)
        terminalreporter.write_line(f"laws: the reports of {count} subject{'s' * (count != 1)} are in {self.path}")
