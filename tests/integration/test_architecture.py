"""``ARCHITECTURE.md`` and its picture show the imports as they are, and ``tools/marked.py`` replaces a table."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from tools.architecture import COMMAND, PAGE, PICTURE, graph, shown, table
from tools.imports import LAYERS, ORDER
from tools.marked import read_marked, write_marked


def test_the_table_is_up_to_date() -> None:
    assert read_marked(PAGE, COMMAND) == table(), f"run `{COMMAND}`"


def test_the_picture_is_up_to_date() -> None:
    text = html.unescape(PICTURE.read_text(encoding="utf-8"))
    assert table() in text, f"run `{COMMAND}`"


def test_each_module_has_a_row_and_a_purpose() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table().splitlines()[2:]]
    assert [(row[0], row[1]) for row in reversed(rows)] == [
        (layer, f"`{shown(name)}`") for layer, names in LAYERS.items() for name in names
    ]
    assert all(len(row[2]) > 10 for row in rows)


def test_imports_that_others_imply_are_left_out() -> None:
    arrows = graph()
    assert set(arrows.nodes) == set(ORDER)
    assert all(ORDER.index(b) < ORDER.index(a) for a, b in arrows.edges)
    assert list(arrows.successors("")) == [ORDER[-2]]  # the package imports all, and laws all but the package


def test_marked_text_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- make it writes this -->\nold\n<!-- until here -->\nafter\n", encoding="utf-8")
    write_marked(page, "make it", "| new |\n| row |")
    assert read_marked(page, "make it") == "| new |\n| row |"
    assert page.read_text(encoding="utf-8").startswith("before\n<!--")
    assert page.read_text(encoding="utf-8").endswith("-->\nafter\n")


@pytest.mark.parametrize("text", ["", "<!-- make it writes this -->\n", "<!-- until here -->\n"])
def test_a_page_without_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"page.md: expected a line '<!-- make it writes this -->'"):
        write_marked(page, "make it", "new")
    assert page.read_text(encoding="utf-8") == text
