"""A row of the table, and the settings of the run that it gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Contest, Measured

__all__ = ["ROOT", "Row", "Setup", "compiled", "example", "graphed", "inference", "leaf_copies"]

ROOT = Path(__file__).parents[1]

Size = tuple[int, int, int]  # agents, hidden width, batch


@dataclass(frozen=True)
class Setup:
    """The device and the amount of work: ``quick`` leaves out long compilations, ``tiny`` shrinks all sizes."""

    device: str = "cpu"
    quick: bool = False
    tiny: bool = False

    def sizes(self, *sizes: Size) -> list[Size]:
        """The sizes, or under ``tiny`` one that takes no time."""
        return [(3, 4, 2)] if self.tiny else list(sizes)

    def randn(self, *shape: int) -> Tensor:
        """Random numbers on the device."""
        return torch.randn(*shape, device=self.device)

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Row:
    """A row of the table: contests, measured one after the other, and perhaps a figure over all of them."""

    name: str
    contests: Callable[[Setup], Iterator[Contest]]
    summary: Callable[[Sequence[Measured]], list[Measured]] | None = None
    slow: bool = False  # left out by --quick


def example(name: str) -> Any:
    """A file of ``examples/`` as a module: the documented code is measured."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)


def inference(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A call under ``no_grad``."""

    def variant() -> Any:
        with torch.no_grad():
            return function(*args)

    return variant


def leaf_copies(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that require grad."""
    return {name: leaf.clone().requires_grad_() for name, leaf in params.items()}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile(fullgraph=True)`` of a function, for static shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def graphed(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A function captured once as a CUDA graph, and its replay; raises if it synchronises with the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*args)

    def replay() -> Any:
        graph.replay()
        return out

    return replay
