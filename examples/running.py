"""Common parts of the smaller examples: the command line, the table of metrics and the axes of the picture."""

import argparse
import csv
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def positive(text: str) -> int:
    """Parse the value of an option that is 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def make_parser(description: str | None, *, iterations: int, out: str) -> argparse.ArgumentParser:
    """The options that every example has: ``iterations``, ``seed`` and ``out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=positive, default=iterations, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same curves (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="default: %(default)s")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options. A wrong one is a usage error, before any work. Afterwards the folder ``out`` exists."""
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed: expected 0 to 2**32 - 1, got {options.seed}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        parser.error(f"--out: cannot write to {options.out}: {error.strerror}")
    return options


@contextmanager
def writing(path: Path, fields: Sequence[str]) -> Generator[Callable[[Mapping[str, Any]], None]]:
    """Write a CSV file through the function yielded; each row is on disk when that function returns."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()

        def write(row: Mapping[str, Any]) -> None:
            table.writerow(row)
            file.flush()

        yield write


def make_axes(title: str, height: str) -> tuple[Any, Any]:
    """A figure and its axes: frames on the x axis, ``height`` on the y axis."""
    figure: Any = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("frames", fontsize=12)
    axes.set_ylabel(height, fontsize=12)
    axes.set_title(title, fontsize=14, loc="left", pad=12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
