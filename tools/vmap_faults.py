"""Which operations ``torch.func.vmap`` computes wrongly: a loop over agents and vmap, on torch's own samples.

    python tools/vmap_faults.py            # some minutes; needs scipy and expecttest for torch's samples
    python tools/vmap_faults.py roll clamp # only these: prints every wrong case, writes no table

It writes ``functional_marl/_strategies/vmap_fault_tables/<torch's version>.tsv``, which
``_strategies/vmap_faults.py`` reads. Run it once a version of torch, and look at each new row.

A case is a sample of torch's OpInfo database, in a variant (function, method, in place), with each tensor mapped or
not. It counts where the loop works and vmap gives other values, shapes, types or gradients, raises only in backward, or
kills the process. What raises in the forward does not count: "auto" then takes the loop. Left out are random
operations, and those whose result is left open (``empty``). The situation of a row is the narrowest of a few
that holds in all cases that go wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from vmap_cases import Entry, NoCase, cases, everything

from functional_marl._strategies import vmap_faults as faults

SECONDS = 300  # for one operation
WORKERS = int(os.environ.get("WORKERS", os.cpu_count() or 1))
TABLES = Path(faults.__file__).parent / "vmap_fault_tables"
# The result is uninitialized memory.
OPEN = ("empty", "resize")
KILLS = "kills the process"


def examine(name: str, found: Callable[[], Iterator[Entry]], out: Any) -> None:
    """Write a line for each case of an operation: function names with situations, and the fault."""
    for entry in found():
        text = ""
        for case in cases(entry):
            text = f"{entry[0]} {[list(t.shape) for t in case.tensors]} {case.tensors[0].dtype} mapped {case.mapped}"

            def log(names: dict[str, set[str]], fault: str = KILLS, text: str = text) -> None:
                listed = {k: sorted(v) for k, v in names.items()}
                out.write(json.dumps({"op": name, "case": text, "names": listed, "fault": fault}) + "\n")
                out.flush()

            for apart in (True, False):
                names: dict[str, set[str]] = {}
                try:
                    fault = case.fault(apart, names, log)
                except NoCase:
                    continue
                log(names, fault)
                break


# --- the table -----------------------------------------------------------------------------------------


def run(only: list[str]) -> Iterator[dict[str, Any]]:
    """Every case of every operation. Each operation has its own process, because some kill it."""
    todo = [
        (name, found)
        for name, found in everything()
        if (name in only if only else not any(word in name for word in OPEN))
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(k)) for k in range(WORKERS)]
        workers: list[int] = []
        for k, file in enumerate(files):
            workers.append(os.fork())
            if workers[-1] == 0:
                with file.open("w") as out:
                    for name, found in todo[k::WORKERS]:
                        out.writelines(apart(name, found, Path(folder, f"{k}.part")))
                os._exit(0)
        if sum(os.waitpid(worker, 0)[1] for worker in workers):
            raise RuntimeError("a worker failed")
        for file in files:
            yield from map(json.loads, file.read_text().splitlines())


def apart(name: str, found: Callable[[], Iterator[Entry]], file: Path) -> Iterator[str]:
    """The lines of one operation."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            with file.open("w") as out:
                examine(name, found, out)
        except BaseException as error:
            print(f"{name}: {type(error).__name__} {str(error)[:200]}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    lines = file.read_text().splitlines()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        print(f"{name}: longer than {SECONDS} s", file=sys.stderr)
        lines = lines[:-1]
    for line, after in itertools.pairwise([*lines, ""]):
        if KILLS not in line or not after:
            yield line + "\n"


def rows(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """``(name, situations, what is wrong)`` from all cases."""
    wrong: dict[str, list[tuple[set[str], str]]] = defaultdict(list)
    right: dict[str, list[set[str]]] = defaultdict(list)
    for case in found:
        names = {k: set(v) for k, v in case["names"].items() if k != "__get__"}
        for name, seen in names.items():
            if not case["fault"]:
                right[name].append(seen)
            elif len(names) == 1:
                wrong[name].append((seen, case["fault"]))
    for case in found:  # if an operation calls several functions, known wrong ones explain the fault
        names = [k for k in case["names"] if k != "__get__"]
        if case["fault"] and len(names) != 1 and not set(names) & wrong.keys():
            print(f"not in the table: {case['op']} {case['case']}: {case['fault']} {names}", file=sys.stderr)
    table: list[tuple[str, str, str]] = []
    for name, bad in sorted(wrong.items()):
        by_situation: dict[str, set[str]] = defaultdict(set)
        for what in {fault for _, fault in bad}:
            when = situation([seen for seen, fault in bad if fault == what], right[name])
            by_situation[when].add(what)
        table += [(name, when, ", ".join(sorted(what))) for when, what in sorted(by_situation.items())]
    return table


def situation(bad: list[set[str]], good: list[set[str]]) -> str:
    """The narrowest situation that holds in all wrong cases: the one that holds in the fewest right cases."""
    words = (faults.ALWAYS, faults.INTEGERS, faults.WHOLE, faults.NUMBER, faults.MIXED)
    pairs = [f"{a}+{b}" for a, b in itertools.combinations(words[1:], 2)]
    options: list[str] = []
    counts = Counter(o for seen in bad for o in seen - {*words, faults.POSITIONAL})
    while left := [seen for seen in bad if not seen & set(options)]:
        rest = [o for o in counts if any(o in seen for seen in left)]
        if not rest:
            break
        options.append(min(rest, key=lambda o: (sum(o in seen for seen in good), -counts[o])))
    fits = [
        when for when in (*words, *pairs, ",".join(sorted(options))) if all(faults.holds(when, seen) for seen in bad)
    ]
    return min(fits, key=lambda when: sum(faults.holds(when, seen) for seen in good))


def main() -> None:
    """Write the table, or print the wrong cases of some operations."""
    torch.set_num_threads(1)
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    warnings.simplefilter("ignore")
    found = list(run(sys.argv[1:]))
    if sys.argv[1:]:
        for case in found:
            if case["fault"]:
                print(case["op"], case["case"], case["fault"], case["names"])
        for row in rows(found):
            print(*row, sep="\t")
        return
    version = ".".join(torch.__version__.split(".")[:2])
    lines = [f"# torch {torch.__version__}: what torch.func.vmap computes wrongly; by tools/vmap_faults.py"]
    lines += ["\t".join(row) for row in rows(found)]
    (TABLES / f"{version}.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
