"""The tables of findings, which ``make findings`` writes, and the readings that it writes them from."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- make findings writes this -->", "<!-- until here -->"


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]


def in_readme() -> list[str]:
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(MARKS[0])
    return rows(rest.partition(MARKS[1])[0])


def test_the_readme_shows_what_the_page_shows() -> None:
    page = (ROOT / "findings" / "FINDINGS.md").read_text(encoding="utf-8")
    section = page.partition("## What a user meets")[2].partition("\n## ")[0]
    assert in_readme() == rows(section)
    assert "## Not read a second time" not in page


def test_each_reading_has_its_row_and_each_row_its_reading() -> None:
    tree = ast.parse((ROOT / "findings" / "readings.py").read_text(encoding="utf-8"))
    readings = next(
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "READINGS"
    )
    assert readings is not None
    known = {(library, name, str(law)): text for (library, name, law), text in ast.literal_eval(readings).items()}
    found: dict[tuple[str, str, str], str] = {}
    for row in in_readme():
        library, network, law, _, text = [cell.strip() for cell in row.strip("|").split(" | ")]
        found[library.split()[0], network.split("`")[1], law.split()[0]] = text
    assert found == known
