"""Stub until the helper's file is merged."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def _lazy(leaf: Any) -> bool:
    return leaf is not None and nn.parameter.is_lazy(leaf)


@contextmanager
def seeded(seed: int, others: int | None = None) -> Generator[None]:
    """torch's global generators under a seed; put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def kept(module: nn.Module) -> Generator[Any]:
    """Parameters, buffers and training flags are what they were, afterwards."""
    flags = {part: part.training for part in module.modules()}
    tables = [
        (table, dict(table))
        for part in module.modules()
        for table in [part.__dict__.get("_buffers")]
        if isinstance(table, dict)
    ]
    held = [(leaf, leaf.detach().clone()) for leaf in (*module.parameters(), *module.buffers()) if not _lazy(leaf)]
    try:
        yield Snapshot(module)
    finally:
        for part, flag in flags.items():
            part.training = flag
        for table, was in tables:
            if table.keys() == was.keys() and not any(_lazy(leaf) for leaf in was.values()):
                table.update(was)
        with torch.no_grad():
            for leaf, was in held:
                if not leaf.is_meta and leaf.shape == was.shape and not torch.equal(leaf, was):
                    leaf.data.copy_(was)  # autograd counts no version: a graph may hold the leaf


class Snapshot:
    """Stub."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def changed(self) -> list[str]:
        """Stub."""
        return []


def all_modules(module: nn.Module) -> list[nn.Module]:
    """Stub."""
    return list(module.modules())
