"""The command line of ``navigation.py``: wrong options are reported before any work."""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

SHARINGS = ("shared", "shared-ids", "independent")
MOST_AGENTS = 10  # VMAS samples positions until none overlap: with too many agents it would never end


def parse_options(argv: Sequence[str] | None, *, description: str | None, iterations: int) -> argparse.Namespace:
    """Options ``sharing`` (a list of names), ``agents``, ``iterations``, ``seed`` and ``out`` (a folder)."""
    kinds = f"one of {', '.join(SHARINGS)}, or one slot per agent, such as 0,0,1"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharing", action="append", help=f"{kinds}; may be repeated (default: those named)")
    parser.add_argument("--agents", type=int, default=2, help=f"1 to {MOST_AGENTS} (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=iterations, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same curves (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/navigation"), help="default: %(default)s")
    options = parser.parse_args(argv)

    if not 1 <= options.agents <= MOST_AGENTS:
        parser.error(f"--agents: expected 1 to {MOST_AGENTS}, got {options.agents}")
    if options.iterations < 1:
        parser.error(f"--iterations: expected 1 or more, got {options.iterations}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed: expected 0 to 2**32 - 1, got {options.seed}")

    sharings: list[str] = list(dict.fromkeys(options.sharing or SHARINGS))  # each once, in the order given
    for sharing in sharings:
        slots = [] if sharing in SHARINGS else sharing.split(",")
        if not all(re.fullmatch("[0-9]+", slot) for slot in slots):
            parser.error(f"--sharing: expected {kinds}, got {sharing!r}")
        if slots and (len(slots) != options.agents or max(map(int, slots)) >= options.agents):
            parser.error(f"--sharing: expected {options.agents} slots below {options.agents}, got {sharing!r}")

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        parser.error(f"--out: cannot write to {options.out}: {error.strerror}")
    options.sharing = sharings
    return options
