"""How cost grows: agents 2 to 4,096 and width 16 to 1,024, time and peak memory, ours and torchrl's.

``python -m benchmarks.growth [--quick]``: a plot of microseconds and megabytes, and the same as JSON. Each
plot also has a curve of the work itself (multiplications): no curve of ours may grow faster than it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import functional_marl as fm
from benchmarks.baselines import FEATURES, OUTPUTS, leaves_of, torchrl_mlp
from benchmarks.memory import peak_bytes
from benchmarks.setup import ROOT, inference, leaf_copies
from benchmarks.table import machine
from benchmarks.timing import Budget, Claim, Contest, measure

__all__ = ["main", "measure_at"]

Point = dict[str, Any]


def _pass(function: Callable[..., Any], leaves: list[Any], *args: Any) -> Callable[[], None]:
    def variant() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*args).square().mean().backward()

    return variant


def measure_at(agents: int, width: int, batch: int, budget: Budget, device: str = "cpu") -> Point:
    """Median seconds and peak bytes of a forward, and of a forward and backward, by torchrl and by us."""
    reference = torchrl_mlp(agents, width, device=device)
    net = fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents)
    values, x = leaves_of(reference), torch.randn(batch, agents, FEATURES, device=device)
    params, run = leaf_copies(values), partial(fm.apply, net)
    theirs = [leaf for _, leaf in reference.params.flatten_keys(".").items()]
    point: Point = {"agents": agents, "width": width, "batch": batch}
    point["work"] = agents * batch * width * (FEATURES + width + OUTPUTS)
    for what, variants in {
        "forward": {"torchrl": inference(reference, x), "ours": inference(run, values, x)},
        "backward": {"torchrl": _pass(reference, theirs, x), "ours": _pass(run, list(params.values()), params, x)},
    }.items():
        claims = [Claim("ours", "torchrl")]
        (timed,) = measure("growth", Contest(what, variants, claims), budget, device)
        point[what] = {
            "seconds": {"ours": timed.ours, "torchrl": timed.other},
            "bytes": {name: peak_bytes(variant, device) for name, variant in variants.items()},
            "ratio": timed.ratio,
        }
    return point


def plot(path: Path, curves: dict[str, list[Point]], facts: dict[str, Any]) -> None:
    """Two columns (agents, width), two rows (time, memory)."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(9, 6.5), sharex="col", layout="constrained", squeeze=False)
    for column, (over, points) in enumerate(curves.items()):
        at = [point[over] for point in points]
        for row, (unit, scale) in enumerate({"seconds": 1e3, "bytes": 1e-6}.items()):
            axis = axes[row][column]
            for name, color in (("torchrl", "#D55E00"), ("ours", "#0072B2")):
                for what, style in (("forward", "-"), ("backward", "--")):
                    label = name + (", with backward" if what == "backward" else "")
                    figures = [point[what][unit][name] * scale for point in points]
                    axis.plot(at, figures, style, marker="o", ms=3, color=color, label=label)
            if unit == "seconds":
                last = points[-1]
                work = [last["forward"]["seconds"]["ours"] * 1e3 * point["work"] / last["work"] for point in points]
                axis.plot(at, work, ":", color="gray", label="in proportion to the work")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylabel("ms" if unit == "seconds" else "MB at the peak")
        fixed = {"agents": "width", "width": "agents"}[over]
        axes[0][column].set_title(f"{fixed} {points[0][fixed]}, batch {points[0]['batch']}", fontsize=9)
        axes[1][column].set_xlabel(over)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{facts['cpu']}, {facts['threads']} thread, torch {facts['torch']}", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def steepest(points: Sequence[Point], what: str = "forward") -> float:
    """The largest of (growth of our time) over (growth of the work) between neighbouring sizes."""
    pairs = list(itertools.pairwise(points))
    growths = [(b[what]["seconds"]["ours"] / a[what]["seconds"]["ours"]) / (b["work"] / a["work"]) for a, b in pairs]
    return max(growths, default=0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both curves, print them, and write the plot and the JSON."""
    parser = argparse.ArgumentParser(description="Time and peak memory against agents and width.")
    parser.add_argument("--quick", action="store_true", help="every other size, few rounds")
    parser.add_argument("--tiny", action="store_true", help="two sizes, one round: only to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    step = 2 if options.quick else 1
    sizes = {"agents": [2**k for k in range(1, 13, step)], "width": [2**k for k in range(4, 11, step)]}
    if options.tiny:
        sizes = {"agents": [2, 4], "width": [4, 8]}
    budget = Budget.tiny() if options.tiny else Budget(0.3 if options.quick else 2.0, least_rounds=3)
    curves: dict[str, list[Point]] = {}
    facts = machine(options.device)
    for over, values in sizes.items():
        for value in values:
            agents, width = (value, 64) if over == "agents" else (8, value)
            point = measure_at(agents, width, 2 if options.tiny else options.batch, budget, options.device)
            curves.setdefault(over, []).append(point)
            parts = [f"{what} {point[what]['ratio']:.2f}x the speed, "
                     f"{point[what]['bytes']['ours'] / max(1, point[what]['bytes']['torchrl']):.2f} of the memory"
                     for what in ("forward", "backward")]  # fmt: skip
            print(f"{agents} agents, width {width}: {'; '.join(parts)}", flush=True)
        growth = [f"{what} {steepest(curves[over], what):.2f}" for what in ("forward", "backward")]
        print(f"steepest growth of our time over that of the work, over {over}: {', '.join(growth)}")
    ratio = statistics.geometric_mean(point["forward"]["ratio"] for points in curves.values() for point in points)
    print(f"forward, geometric mean over all sizes: {ratio:.2f} times torchrl's speed")
    (options.out / "growth.json").write_text(json.dumps({"machine": facts, "curves": curves}, indent=1) + "\n")
    plot(options.out / "growth.png", curves, facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
