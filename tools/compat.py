"""Run the tests with the oldest and the newest torch, and write the table in ``COMPATIBILITY.md``; ``make compat``.

Each row of ``ROWS`` gets an environment of its own, ``.venv-compat-<python>-<torch>``, one after the other. It is
removed afterwards: a CUDA build of torch needs 5 to 7 GB. The tests run on the CPU. Rows of other Pythons stay in the
table.

    python -m tools.compat [--only 2.13.0] [--every 7] [--keep] [-n 2] [-- arguments of pytest: tests/core -x]

``--every 7`` runs each seventh test of each file; the table shows it. With arguments for pytest the table stays as
it is.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from tools.marked import read_marked, write_marked

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "COMPATIBILITY.md"
COMMAND = "make compat"
HEAD = "| Python | torch | tensordict | torchrl | tests | passed | failed | skipped |\n" + "| --- " * 8 + "|"


class Versions(NamedTuple):
    """Versions that are tested together. All other packages are as in constraints.txt."""

    torch: str
    tensordict: str
    torchrl: str


ROWS = [
    Versions("2.13.0", "0.14.3", "0.14.1"),
    Versions("2.15.0", "0.14.3", "0.14.1"),
]


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def make(place: Path, row: Versions) -> Path:
    """Make an environment with these versions, and return its Python."""
    python = place / "bin" / "python"
    if (place / ".installed").exists():
        return python
    venv.create(place, clear=True, with_pip=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if line.split("==")[0] not in Versions._fields]
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join([*others, *(f"{k}=={v}" for k, v in row._asdict().items())]), encoding="utf-8")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "-c", constraints, "-e", f"{ROOT}[test]")
    (place / ".installed").touch()
    return python


def tested(python: Path, workers: int, every: int, report: Path, arguments: list[str]) -> tuple[int, int, int]:
    """Run the tests; return how many passed, failed and were skipped."""
    report.unlink(missing_ok=True)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "EVERY": str(every)}
    command = [
        str(python),
        "-m",
        "pytest",
        "-n",
        str(workers),
        "-p",
        "no:cacheprovider",
        "-p",
        "tools.every_nth",
        "-rfE",
        "--tb=short",
    ]
    subprocess.run([*command, f"--junitxml={report}", *arguments], cwd=ROOT, env=environment, check=False)
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    count, failed, errors, skipped = (int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped"))
    return count - failed - errors - skipped, failed + errors, skipped


def line(row: Versions, every: int, counts: tuple[int, int, int]) -> str:
    """A row of the table."""
    cells = (
        ".".join(platform.python_version_tuple()[:2]),
        *row,
        "all" if every == 1 else f"1 of {every}",
        *map(str, counts),
    )
    return f"| {' | '.join(cells)} |"


def merged(table: str, rows: list[str]) -> str:
    """The table with these rows, which replace those of the same Python and torch; sorted by version."""

    def key(row: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(n) for n in cell.strip().split(".")) for cell in row.split("|")[1:3])

    kept = {key(row): row for row in table.splitlines() if re.match(r"\| \d", row)}
    kept |= {key(row): row for row in rows}
    return "\n".join([HEAD, *(kept[k] for k in sorted(kept))])


def main() -> int:
    """Run the rows; return the number of those where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[row.torch for row in ROWS], help="one version of torch alone")
    parser.add_argument(
        "--keep", action="store_true", default=bool(os.environ.get("KEEP")), help="keep the environments"
    )
    parser.add_argument("--every", type=int, default=1, help="7 runs each seventh test of each file")
    parser.add_argument("-n", type=int, default=2, help="processes of pytest")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    red = 0
    for row in ROWS if options.only is None else [row for row in ROWS if row.torch == options.only]:
        place = ROOT / f".venv-compat-{platform.python_version_tuple()[1]}-{row.torch}"
        print(f"--- Python {platform.python_version()}, torch {row.torch}", flush=True)
        try:
            counts = tested(make(place, row), options.n, options.every, place / "report.xml", options.pytest)
        finally:
            if not options.keep:
                shutil.rmtree(place, ignore_errors=True)
        text = line(row, options.every, counts)
        print(HEAD, text, sep="\n", flush=True)
        red += counts[1] > 0
        if not options.pytest:
            write_marked(PAGE, COMMAND, merged(read_marked(PAGE, COMMAND), [text]))
    return red


if __name__ == "__main__":
    sys.exit(main())
