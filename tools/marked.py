"""Text that a tool writes into a page, between two marks.

The marks are ``<!-- make compat writes this -->``, with the command that writes it, and ``<!-- until here -->``.
"""

from __future__ import annotations

from pathlib import Path

END = "<!-- until here -->"


def read_marked(page: Path, command: str) -> str:
    """The text between the marks of a command, ``make compat``, in a page."""
    return _parts(page, command)[1].strip("\n")


def write_marked(page: Path, command: str, text: str) -> None:
    """Put text between the marks of a command in a page."""
    before, _, after = _parts(page, command)
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _parts(page: Path, command: str) -> tuple[str, str, str]:
    start = f"<!-- {command} writes this -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    text, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{page}: expected a line {start!r} and behind it a line {END!r}")
    return before + start, text, end + after
