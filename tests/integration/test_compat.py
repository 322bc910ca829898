"""``make compat``: the versions that it tests, and how it writes the table of ``COMPATIBILITY.md``."""

from __future__ import annotations

import platform
import tomllib
from pathlib import Path

from tools.compat import COMMAND, HEAD, PAGE, ROOT, ROWS, Versions, line, merged
from tools.marked import read_marked, write_marked


def test_the_oldest_tested_torch_is_the_lower_bound_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = min(ROWS, key=lambda row: [int(n) for n in row.torch.split(".")]).torch
    (bound,) = [text for text in project["dependencies"] if text.startswith("torch>=")]
    assert bound == f"torch>={oldest.rpartition('.')[0]}"
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["torch"] in [row.torch for row in ROWS]


def test_a_new_row_replaces_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {COMMAND} writes this -->\n\n<!-- until here -->\nafter\n")
    old, new = Versions("2.9.1", "1", "2"), Versions("2.13.0", "1", "2")
    for row in (line(new, 1, (5, 0, 1)), line(old, 7, (4, 1, 1)), line(new, 1, (6, 0, 0))):
        write_marked(page, COMMAND, merged(read_marked(page, COMMAND), [row]))
    python = ".".join(platform.python_version_tuple()[:2])
    assert read_marked(page, COMMAND).splitlines() == [
        *HEAD.splitlines(),
        f"| {python} | 2.9.1 | 1 | 2 | 1 of 7 | 4 | 1 | 1 |",
        f"| {python} | 2.13.0 | 1 | 2 | all | 6 | 0 | 0 |",
    ]


def test_the_page_has_the_table() -> None:
    assert read_marked(PAGE, COMMAND).startswith(HEAD)
    assert "| 2.13.0 |" in read_marked(PAGE, COMMAND)
