"""``tabulate``: a network printed as a table."""

from __future__ import annotations

import torch

from functional_marl._check_params import check_network
from functional_marl._network import Network

__all__ = ["tabulate"]


def tabulate(net: Network) -> str:
    """A table of the leaves, who shares them, how many numbers they hold, and how apply will evaluate.

    Raises:
        StructureError: ``net`` is no network.

    >>> from torch import nn
    >>> from functional_marl import network
    >>> print(tabulate(network(lambda: nn.Linear(4, 2), n_agents=3, sharing={"bias": "shared", "*": [0, 0, 1]})))
    leaf    shape      agents -> slots  numbers
    weight  [2, 2, 4]  0 0 1                 16
    bias    [1, 2]     shared                 2
    3 agents, 18 numbers; strategy auto: plan in evaluation, plan in training
    """
    check_network(net)
    rows = [("leaf", "shape", "agents -> slots", "numbers")]
    total = 0
    for shapes, slots, mark in (
        (net.param_shapes, net.sharing, ""),
        (net.state_shapes, net.state_sharing, " (buffer)"),
    ):
        for name, shape in shapes.items():
            numbers = torch.Size(shape).numel()
            total += 0 if mark else numbers
            sharing = slots[name]
            word = "shared" if sharing.is_shared else "independent" if sharing.is_independent else ""
            rows.append((name + mark, str(list(shape)), word or " ".join(map(str, sharing)), str(numbers)))
    widths = [max(len(row[c]) for row in rows) for c in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row[:3], widths[:3], strict=True)) for row in rows]
    lines = [f"{line}  {row[3].rjust(widths[3])}" for line, row in zip(lines, rows, strict=True)]
    modes = zip(net.evaluators, ("evaluation", "training"), strict=True)
    how = ", ".join(f"{evaluator.describe()} in {mode}" for evaluator, mode in modes)
    lines.append(f"{net.n_agents} agents, {total} numbers; strategy {net.strategy}: {how}")
    return "\n".join(lines)
