"""The table on the terminal, the JSON file and the plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Measured

__all__ = ["header", "line", "machine", "plot", "record", "write_json"]

_WIDTHS = (58, 22, 10, 10, 9, 8, 17, 6)


def machine(device: str) -> dict[str, Any]:
    """The machine and the versions, without which a figure means nothing."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            row.split(":", 1)[1].strip() for row in cpuinfo.read_text().splitlines() if row.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def header() -> str:
    """The names of the columns."""
    names = ("work", "ours against", "ours", "other", "target", "ratio", "quartiles", "rounds")
    return _columns((*names, "verdict"))


def line(measured: Measured, before: dict[str, float]) -> str:
    """One claim; ``before`` holds the ratios of an earlier run."""
    claim = measured.claim
    sign = "" if claim.bound is None else (">= " if claim.kind == "at least" else "<= ") + f"{claim.bound:g}"
    ours = claim.ours.removeprefix("ours").removeprefix(", ")
    work = f"{measured.row}: {measured.contest}" + (f" [{ours}]" if ours else "")
    earlier = before.get(_key(measured))
    cells = (
        work,
        claim.other,
        _figure(measured.ours, measured.unit),
        _figure(measured.other, measured.unit),
        sign,
        f"{measured.ratio:.2f}",
        f"{measured.low:.2f} .. {measured.high:.2f}",
        str(measured.rounds),
    )
    return _columns((*cells, measured.verdict + ("" if earlier is None else f"  (earlier {earlier:.2f})")))


def _columns(cells: Sequence[str]) -> str:
    *fixed, last = cells
    return "  ".join(cell.ljust(width) for cell, width in zip(fixed, _WIDTHS, strict=True)) + "  " + last


def _figure(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e6:.2f} MB"
    if value < 1e-3:
        return f"{value * 1e6:.1f} us"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def _key(measured: Measured) -> str:
    return "; ".join((measured.row, measured.contest, measured.claim.ours, measured.claim.other))


def record(measured: Measured) -> dict[str, Any]:
    """One claim as JSON."""
    claim = measured.claim
    return {
        "key": _key(measured),
        "row": measured.row,
        "work": measured.contest,
        "ours": claim.ours,
        "other": claim.other,
        "target": claim.bound,
        "kind": claim.kind,
        "ratio": measured.ratio,
        "quartiles": [measured.low, measured.high],
        "rounds": measured.rounds,
        "figures": [measured.ours, measured.other],
        "unit": measured.unit,
        "size": list(measured.size),
        "verdict": measured.verdict,
    }


def write_json(path: Path, results: Sequence[Measured], facts: dict[str, Any]) -> None:
    """All claims with the machine and the command."""
    path.write_text(json.dumps({"machine": facts, "results": [record(m) for m in results]}, indent=1) + "\n")


def plot(path: Path, results: Sequence[Measured], facts: dict[str, Any]) -> None:
    """Speed over torchrl against the size, one line per kind of work."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    kinds = {
        "forward": ("forward", "ours"),
        "forward and backward": ("backward", "ours"),
        "training step": ("step", "ours"),
        "training step, compiled": ("step compiled", "ours, compiled"),
        "facade, forward": ("facade", "ours"),
    }
    sizes = sorted({m.size for m in results if m.size and m.row in {row for row, _ in kinds.values()}}, key=_work)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (label, (row, ours)), color in zip(kinds.items(), _COLORS, strict=True):
        points = {
            m.size: m for m in results if (m.row, m.claim.ours, m.claim.other) == (row, ours, "torchrl") and m.size
        }
        seen = [size for size in sizes if size in points]
        if seen:
            at, ratios = [sizes.index(size) for size in seen], [points[size].ratio for size in seen]
            axes.plot(at, ratios, "o-", color=color, label=label)
            axes.vlines(at, [points[s].low for s in seen], [points[s].high for s in seen], color=color, lw=4, alpha=0.3)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log")
    ticks = [1, 2, 3, 5, 10, 20]
    axes.set_yticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(sizes)), [",".join(map(str, size)) for size in sizes])
    axes.set_xlabel("agents, width, batch (in order of work)")
    axes.set_ylabel("times as fast as torchrl's MultiAgentMLP")
    axes.set_title(f"{facts['cpu']}, {facts['threads']} thread, torch {facts['torch']}", fontsize=9)
    if axes.lines[:-1]:
        axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def _work(size: tuple[int, ...]) -> int:
    agents, width, batch = size
    return agents * width * width * batch
