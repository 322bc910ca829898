"""From agents to params: one-agent trees stacked into slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._arguments import as_index, short_repr
from functional_marl._checks import mismatches
from functional_marl._errors import StructureError
from functional_marl._module.leaves import named_tensors
from functional_marl._parameters.merging import Merge, check_merge, merged_rows
from functional_marl._pytrees import Params
from functional_marl._sharing import SharingSpec, resolve
from functional_marl._tensordict import as_flat_dict

__all__ = ["stack_agents"]


def stack_agents(
    trees: Sequence[Mapping[str, Tensor] | nn.Module] | Mapping[str, Tensor] | nn.Module,
    *,
    n_agents: int | None = None,
    sharing: SharingSpec = "independent",
    merge: Merge = "error",
) -> Params:
    """Params from one-agent trees: new tensors ``[S, *leaf]`` without grad.

    Args:
        trees: a flat dict of dotted names (or a module) for each agent; or a single one with ``n_agents=``,
            for a pretrained network in any sharing.
        n_agents: the number of agents, if ``trees`` is a single tree.
        sharing: as in :func:`network`, over the names of the trees.
        merge: agents of one slot must be equal (``"error"``), are averaged (``"mean"``, as FedAvg, McMahan et
            al. 2017, arXiv:1602.05629), or the first one is taken (``"first"``).

    Raises:
        StructureError: trees that differ in names, shapes, dtypes or devices.
        SharingError: agents of a slot that differ under ``merge="error"``; a slot without agents.

    >>> p = {"w": torch.ones(2)}
    >>> stack_agents([p, p, {"w": torch.zeros(2)}], sharing=[0, 0, 1])["w"]
    tensor([[1., 1.],
            [0., 0.]])
    """
    if isinstance(trees, (Mapping, nn.Module)) or not isinstance(trees, Sequence):
        if n_agents is None:
            raise StructureError("stack_agents: one tree alone needs n_agents=; several trees go in a list")
        trees = [cast(Any, trees)] * as_index(n_agents, "n_agents", 1)
    elif n_agents is not None and as_index(n_agents, "n_agents", 1) != len(trees):
        raise StructureError(f"stack_agents: expected n_agents={n_agents} trees, got {len(trees)}")
    if not trees:
        raise StructureError("stack_agents: expected at least one tree, got none")
    flat = [
        named_tensors(t, "_parameters") if isinstance(t, nn.Module) else as_flat_dict(t, f"trees[{i}]")
        for i, t in enumerate(trees)
    ]
    lines = [
        f"trees[0][{name!r}]: expected a tensor, got {short_repr(leaf)}"
        for name, leaf in flat[0].items()
        if not isinstance(leaf, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]
    ]
    if not lines:
        first = {name: tuple(leaf.shape) for name, leaf in flat[0].items()}
        lines = [line for i, tree in enumerate(flat) for line in mismatches(tree, first, f"trees[{i}]")]
        lines = lines or [line for i, tree in enumerate(flat) for line in _unlike(tree, flat[0], f"trees[{i}]")]
    if lines:
        raise StructureError("stack_agents: the agents' trees differ from that of agent 0\n" + "\n".join(lines))
    check_merge(merge)
    slots = resolve(sharing, len(flat), flat[0])
    out: Params = {}
    for name in flat[0]:
        # A tensor that several agents have is stacked once.
        row_of: dict[int, int] = {}
        source = [row_of.setdefault(id(tree[name]), len(row_of)) for tree in flat]
        rows = dict(zip(source, (tree[name] for tree in flat), strict=True))
        out[name] = merged_rows(
            torch.stack([leaf.detach() for leaf in rows.values()]), source, slots[name], merge, name
        )
    return out


def _unlike(tree: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> list[str]:
    """A line for every leaf of another dtype, device or layout than in ``like``: stacking would cast it, or fail."""
    kinds = [(name, (leaf.dtype, leaf.device, leaf.layout), like[name]) for name, leaf in tree.items()]
    return [
        f"{what}[{name!r}]: expected {other.dtype} on {other.device}, {other.layout}, got {', '.join(map(str, kind))}"
        for name, kind, other in kinds
        if kind != (other.dtype, other.device, other.layout)
    ]
