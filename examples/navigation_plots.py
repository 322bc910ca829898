"""The pictures of ``navigation.py``: learning curves and rollouts, from plain data."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
COLORS = (*OKABE_ITO, "#8C564B", "#888833")  # distinguishable for the color-blind, and two more for teams of ten
GREY = "#777777"
AGENT_RADIUS = 0.1


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Write to the path yielded, which replaces ``path`` when it is complete."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def draw_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], ceilings: Mapping[str, float]) -> None:
    """Mean episode reward against frames, one curve of ``(frames, reward)`` per sharing, with the ceilings."""
    figure: Any = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    for color, (sharing, points) in zip(cycle(COLORS, len(curves)), curves.items(), strict=True):
        frames, rewards = zip(*points, strict=True)
        axes.plot(frames, rewards, color=color, linewidth=2.2, marker="o", markersize=4.5, label=sharing)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for name, height in ceilings.items():
        axes.axhline(height, color=GREY, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1)
        axes.annotate(name, (1, height), (6, 0), fontsize=11, color="#555555", **beside)
    heights = [*ceilings.values(), *(reward for points in curves.values() for _, reward in points)]
    axes.set_ylim(top=max(heights, default=1.0) + 0.1)
    axes.set_xlabel("frames", fontsize=12)
    axes.set_ylabel("mean episode reward", fontsize=12)
    axes.set_title("VMAS navigation: one network, different sharings", fontsize=14, loc="left", pad=12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(loc="lower right", fontsize=11, frameon=False)
    save(figure, path)


def draw_rollout(path: Path, title: str, positions: Tensor, goals: Tensor, steps: Tensor, rewards: Tensor) -> None:
    """Draw each agent's path from its start to the end of its episode, in six environments.

    ``positions: [T + 1, 6, n, 2]``, ``goals: [6, n, 2]``, ``steps: [6]`` until the end, ``rewards: [6]``.
    """
    figure: Any = Figure(figsize=(11.7, 9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    agents = list(enumerate(cycle(COLORS, goals.shape[1])))
    for env, panel in enumerate(figure.subplots(2, 3).flat):
        panel.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal", facecolor="#F6F6F4")
        panel.spines[:].set_color("#CCCCCC")
        panel.set_title(f"reward {rewards[env]:.2f}", fontsize=12)
        for agent, color in agents:
            trail = positions[: int(steps[env]) + 1, env, agent].numpy()
            radius = AGENT_RADIUS * (1 - 0.7 * agent / len(agents))  # so that agents at the same place are all visible
            panel.plot(*trail.T, color=color, linewidth=2.4, alpha=0.75, solid_capstyle="round", zorder=2)
            panel.plot(*trail[0], "o", markersize=8, color="white", markeredgecolor=color, mew=2, zorder=3)
            panel.add_patch(Circle(trail[-1], radius, facecolor=color, edgecolor="white", zorder=4))
            panel.plot(*goals[env, agent].numpy(), "*", markersize=17, color=color, mec="black", mew=0.9, zorder=5)
    figure.suptitle(title, fontsize=15)
    shapes = {"start": ("o", 8, "white"), "end": ("o", 13, GREY), "goal": ("*", 16, GREY)}
    keys = [
        Line2D([], [], linestyle="", marker=marker, markersize=size, color=face, mec=GREY, mew=1.5, label=name)
        for name, (marker, size, face) in shapes.items()
    ]
    keys += [Line2D([], [], color=color, linewidth=4, label=f"agent {agent}") for agent, color in agents]
    tight: Any = {"fontsize": 11.5, "frameon": False, "handlelength": 1, "columnspacing": 1.1}
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 7), **tight)
    save(figure, path)


def cycle(colors: Sequence[str], count: int) -> list[str]:
    """The first ``count`` colors, repeated if there are too few."""
    return [colors[i % len(colors)] for i in range(count)]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; the file appears when it is complete."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=130)
