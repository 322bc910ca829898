"""Draw the modules of the package and their imports: ``docs/architecture.svg``, and the table in ``ARCHITECTURE.md``.

    make architecture

Both show top-level modules and packages, by the layers of ``tools/imports.py``. An import that others imply is left
out: where a imports b and b imports c, "a imports c" is no arrow of its own. The picture has no arrows into its lowest
layer, which every module may import. It keeps the table as its description, so that a test sees whether it is old.
"""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx

from tools.imports import LAYERS, ORDER, PACKAGE, inner_imports, modules_of, top
from tools.marked import write_marked

ROOT = PACKAGE.parent
PAGE = ROOT / "ARCHITECTURE.md"
PICTURE = ROOT / "docs" / "architecture.svg"
COMMAND = "make architecture"


def graph() -> Any:
    """A node for each top-level module, and an arrow for each import that no others imply."""
    arrows = nx.DiGraph()
    arrows.add_nodes_from(ORDER)
    ends = ((top(found.importer), top(found.target)) for found in inner_imports(PACKAGE))
    arrows.add_edges_from((a, b) for a, b in ends if a != b)
    return nx.transitive_reduction(arrows)


def shown(name: str) -> str:
    """The name of a module's file or folder."""
    if not name:
        return "__init__.py"
    return f"{name}/" if (PACKAGE / name).is_dir() else f"{name}.py"


def purpose(name: str) -> str:
    """The first line of a module's docstring, in Markdown."""
    text = ast.get_docstring(ast.parse(modules_of(PACKAGE)[name].read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].replace("``", "`").replace(":func:`functional_marl.", "`").replace("|", "\\|")


def table() -> str:
    """A row for each module, the highest first."""
    arrows = graph()
    lines = ["| layer | module | one idea | imports |", "| --- | --- | --- | --- |"]
    for layer, names in reversed(LAYERS.items()):
        for name in reversed(names):
            below = ", ".join(f"`{shown(other)}`" for other in sorted(arrows.successors(name), key=ORDER.index))
            lines.append(f"| {layer} | `{shown(name)}` | {purpose(name)} | {below} |")
    return "\n".join(lines)


# --- the picture -------------------------------------------------------------------------------------------

BOX, ROW = (1.62, 0.46), 0.78  # width and height of a box, and the distance of two rows, in inches
IN_A_ROW = 4  # boxes of the lowest layer
LANE, LABEL = 0.22, 1.6  # the width that an arrow takes that passes a row, and that of the layers' names
COLORS = ("#E8EEF7", "#E6F3EC", "#FBF1DF", "#F7E9EE", "#EDEAF6", "#EAF4F6", "#F3F3EC")
Stop = tuple[str, str, int]  # a box in a row, (name, "", row), or a lane for an arrow that passes it, (from, to, row)


def levels(arrows: Any) -> dict[str, int]:
    """The row of each module, from the bottom: what imports another of its layer stands above it."""
    lowest, *others = LAYERS.values()
    found = {name: k // IN_A_ROW for k, name in enumerate(lowest)}
    for names in others:
        above = len(set(found.values()))
        for k, row in enumerate(nx.topological_generations(arrows.subgraph(names).reverse())):
            found |= dict.fromkeys(sorted(row, key=ORDER.index), above + k)
    return found


def routes(arrows: Any, level: dict[str, int]) -> list[list[Stop]]:
    """Each arrow as what it meets from its start to its end: a box, a lane for each row that it passes, a box."""
    return [
        [(a, "", level[a]), *((a, b, y) for y in range(level[a] - 1, level[b], -1)), (b, "", level[b])]
        for a, b in sorted(arrows.edges)
        if b not in next(iter(LAYERS.values()))
    ]


def arrange(paths: list[list[Stop]], level: dict[str, int]) -> dict[Stop, float]:
    """Where boxes and lanes stand in their rows: near what they are connected to."""
    near: dict[Stop, list[Stop]] = {(name, "", y): [] for name, y in level.items()}
    near |= {stop: [] for path in paths for stop in path}
    for path in paths:
        for a, b in pairwise(path):
            near[a].append(b)
            near[b].append(a)
    lines: dict[int, list[Stop]] = {}
    for stop in sorted(near):
        lines.setdefault(stop[2], []).append(stop)
    at: dict[Stop, float] = dict.fromkeys(near, 0.0)
    for _ in range(50):
        for line in lines.values():
            line.sort(key=lambda stop: (sum(at[n] for n in near[stop]) / (len(near[stop]) or 1), stop))
            widths = [LANE if stop[1] else BOX[0] + 0.25 for stop in line]
            for k, stop in enumerate(line):
                at[stop] = sum(widths[:k]) + widths[k] / 2 - sum(widths) / 2
    return at


def draw(path: Path) -> None:
    """Write the picture."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.path import Path as Curve

    arrows = graph()
    level = levels(arrows)
    paths = routes(arrows, level)
    at = arrange(paths, level)
    half = max(abs(x) for x in at.values()) + BOX[0] / 2 + 0.1
    left, rows = -half - LABEL, max(level.values()) + 1
    figure: Any = Figure(figsize=(half - left, rows * ROW))
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, half), ylim=(-ROW / 2, (rows - 0.5) * ROW))
    axes.axis("off")
    for color, (layer, names) in zip(COLORS, LAYERS.items(), strict=False):
        low, high = (f(level[name] for name in names) for f in (min, max))
        bottom, tall = (low - 0.48) * ROW, (high - low + 0.96) * ROW
        axes.add_patch(Rectangle((left + 0.03, bottom), half - left - 0.06, tall, color=color, zorder=0))
        axes.text(left + 0.15, bottom + tall / 2, layer, fontsize=10, color="#555555", va="center")
    for (name, _, y), x in ((stop, x) for stop, x in at.items() if not stop[1]):
        style: Any = {"boxstyle": "round,pad=0,rounding_size=0.07", "facecolor": "white", "edgecolor": "#444444"}
        axes.add_patch(FancyBboxPatch((x - BOX[0] / 2, y * ROW - BOX[1] / 2), *BOX, zorder=3, **style))
        title = shown(name) if name else "functional_marl"
        axes.text(x, y * ROW, title, fontsize=10.5, ha="center", va="center", zorder=4)
    look: Any = {"arrowstyle": "-|>", "mutation_scale": 8, "color": "#777777", "linewidth": 0.9}
    for stops in paths:
        points = [(at[stop], stop[2] * ROW) for stop in stops]
        points[0] = points[0][0] + 0.08 * (points[1][0] - points[0][0]), points[0][1] - BOX[1] / 2
        points[-1] = points[-1][0] + 0.08 * (points[-2][0] - points[-1][0]), points[-1][1] + BOX[1] / 2
        corners, codes = [points[0]], [Curve.MOVETO]
        for (xa, ya), (xb, yb) in pairwise(points):  # vertical where it leaves and where it arrives
            corners += [(xa, ya - (ya - yb) / 2), (xb, yb + (ya - yb) / 2), (xb, yb)]
            codes += [Curve.CURVE4] * 3
        axes.add_patch(FancyArrowPatch(path=Curve(corners, codes), zorder=2, **look))
    with matplotlib.rc_context({"svg.hashsalt": "functional_marl"}):  # the same file at each run
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": table()})


def main() -> int:
    """Write both."""
    write_marked(PAGE, COMMAND, table())
    draw(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
