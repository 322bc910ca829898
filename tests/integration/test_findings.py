"""``FINDINGS.md``, which ``make findings`` writes, agrees with the readings that it is written from."""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "findings" / "FINDINGS.md").read_text(encoding="utf-8")


def readings() -> dict[str, Any]:
    """The constants of ``findings/readings.py``."""
    tree = ast.parse((ROOT / "findings" / "readings.py").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = ast.literal_eval(node.value)
    return found


def in_short() -> list[list[str]]:
    """The rows of the page's short table: library, network, law, smallest case, reading."""
    section = PAGE.partition("## What a user meets")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_each_reading_has_its_row_and_each_row_its_reading() -> None:
    known = {
        (library, name, law): text
        for library, classes in readings()["READINGS"].items()
        for name, laws in classes.items()
        for law, text in laws.items()
    }
    found = {
        (library.split()[0], network.split("`")[1], law.split()[0]): text
        for library, network, law, _, text in in_short()
    }
    assert found == known
    assert "## Without a second reading" not in PAGE


def test_the_notes_are_up_to_date() -> None:
    assert readings()["WITHDRAWN"] in PAGE
    assert readings()["TRIED"] in PAGE


def test_the_readme_shows_rows_of_the_page() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("| library | law | what a user meets |\n")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.split("\n\n")[0].splitlines()[1:]
    ]
    assert len(rows) == 3
    page = {(f"{library}, {network.split(':')[0]}", law, text) for library, network, law, _, text in in_short()}
    assert {tuple(row) for row in rows} <= page
