"""Run the table: ``python -m benchmarks.run [--quick] [--only ROW] [--device cuda]``.

One process, one thread, all variants of a row in turns. With ``--quick`` there are few rounds, and rows that compile
or train for a long time are left out. Trust a ratio close to 1 if two runs agree: pass the first run's file to the
second as ``--against``.

On a CUDA device the same table is timed by CUDA events, and forwards are captured as CUDA graphs too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import construction, forward, jax_cases, layers, steps
from benchmarks.setup import ROOT, Row, Setup
from benchmarks.table import header, line, machine, plot, write_json
from benchmarks.timing import Budget, Measured, measure

__all__ = ["ROWS", "main", "run_row"]

ROWS = [
    Row("forward", forward.forward),
    Row("facade", forward.facade),
    Row("shared", forward.shared),
    Row("unlowered", forward.unlowered),
    Row("backward", forward.backward),
    Row("step", steps.steps),
    Row("memory", forward.memory),
    Row("initialization", construction.initialization),
    Row("facade construction", construction.facade_construction),
    Row("gru", layers.gru),
    Row("convnet", layers.convnet),
    Row("clusters", layers.clusters),
    Row("clusters memory", layers.clusters_memory),
    Row("import", construction.import_time),
    Row("large", forward.large),
    Row("step compiled", steps.steps_compiled, slow=True),
    Row("forward compiled", forward.forward_compiled, slow=True),
    Row("population", steps.population, slow=True),
    Row("navigation", steps.navigation, slow=True),
    Row("jax", jax_cases.contests, jax_cases.geometric_means, slow=True),
]


def run_row(row: Row, setup: Setup, budget: Budget, before: dict[str, float]) -> list[Measured]:
    """Measure one row and print its lines immediately."""
    results: list[Measured] = []
    for contest in row.contests(setup):
        for measured in measure(row.name, contest, budget, setup.device):
            print(line(measured, before), flush=True)
            results.append(measured)
    for measured in row.summary(results) if row.summary else ():
        print(line(measured, before), flush=True)
        results.append(measured)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write its files, and return the exit code: 1 if a row failed."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="Speed and memory, compared with torchrl, kernels by hand and JAX.")
    parser.add_argument("--quick", action="store_true", help="few rounds, without the rows that compile or train")
    parser.add_argument("--tiny", action="store_true", help="one round of tiny sizes: only to see that everything runs")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="ROW", help=f"one of {', '.join(names)}; may be repeated"
    )
    parser.add_argument("--skip", action="append", choices=names, metavar="ROW", default=[])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="for each contest (default: 4; quick: 0.4)")
    parser.add_argument("--against", type=Path, help="the JSON file of an earlier run, shown next to this one's")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    setup = Setup(options.device, options.quick, options.tiny)
    seconds = options.seconds or (0.4 if options.quick else 4.0)
    budget = Budget.tiny() if options.tiny else Budget(seconds)
    before: dict[str, float] = {}
    if options.against:
        before = {r["key"]: r["ratio"] for r in json.loads(options.against.read_text())["results"]}
    facts = machine(options.device)
    facts["command"] = shlex.join(["python", "-m", "benchmarks.run", *(sys.argv[1:] if argv is None else argv)])
    print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
    print(header())

    began, results, failed = time.perf_counter(), list[Measured](), list[str]()
    chosen = [row for row in ROWS if row.name in options.only] if options.only else ROWS
    for row in chosen:
        if row.name in options.skip or (options.quick and row.slow and not options.only):
            continue
        try:
            results += run_row(row, setup, budget, before)
        except jax_cases.NoJax as why:
            print(f"{row.name}: left out: {why}", flush=True)
        except Exception:  # the other rows still count
            traceback.print_exc()
            failed.append(row.name)
    facts["seconds"] = round(time.perf_counter() - began, 1)
    write_json(options.out / f"{options.device}.json", results, facts)
    plot(options.out / f"{options.device}.png", results, facts)
    counts = {verdict: sum(m.verdict.rstrip("?") == verdict for m in results) for verdict in ("met", "missed")}
    print(f"{counts['met']} met, {counts['missed']} missed, in {facts['seconds']} s; files in {options.out}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
