"""What a factory does to its leaves, written down once and played again a slot at a time.

Building a module costs some 300 us for three linear layers, nearly all of it Python around six draws. A
factory that only fills its leaves in place (``uniform_``, ``normal_``, ``fill_``, ...) can be played on rows
of the stacked parameters; any other has no tape. A tape is used only where it gives, under another seed,
bitwise what the factory gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl.modes import LocalMode, is_random
from functional_marl.skeleton import named_tensors

__all__ = ["Tape", "record"]


@dataclass(frozen=True)
class Tape:
    """In-place operations on leaves, in order, and the leaves that none of them writes."""

    operations: tuple[tuple[Any, str, tuple[Any, ...], dict[str, Any], bool], ...]  # op, leaf, args, kwargs, draws
    constants: dict[str, Tensor]
    dtype: torch.dtype  # torch's default when it was recorded

    def fits(self) -> bool:
        """Whether a factory would build on the CPU now and in the dtypes of then."""
        return self.dtype == torch.get_default_dtype() and torch.get_default_device().type == "cpu"

    def play(self, rows: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        """Fill one slot's leaves; without a generator the draws come from torch's global one.

        ``rows`` holds every leaf of the tape, constants too: contiguous, on the CPU, of the leaf's shape and
        dtype.
        """
        for operation, name, args, kwargs, draws in self.operations:
            if draws and generator is not None:
                operation(rows[name], *args, generator=generator, **kwargs)
            else:
                operation(rows[name], *args, **kwargs)
        for name, value in self.constants.items():
            rows[name].copy_(value)


class _Recorder(LocalMode):
    """Keeps every operation that draws or writes; the tensors stay alive, so that no memory is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[Any, tuple[Any, ...], dict[str, Any], bool]] = []
        self.reads = False  # whether Python saw a number: what it does may depend on what was drawn

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and write it down."""
        kwargs = kwargs or {}
        draws = is_random(func, args, kwargs)
        if draws or func._schema.is_mutable:
            self.log.append((func, args, kwargs, draws))
        self.reads = self.reads or func in _READING
        return func(*args, **kwargs)


_READING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


def record(draw: Callable[[int], nn.Module]) -> Tape | None:
    """The tape of a factory, or None where it does more than fill its leaves.

    ``draw`` builds a module as a function of a seed alone, drawing from a generator of that seed.
    """
    with _Recorder() as recorder:
        module = draw(0)
    leaves = _leaves(module)
    if recorder.reads or any(not _plain(leaf) for leaf in leaves.values()):
        return None
    at = {leaf.untyped_storage().data_ptr(): name for name, leaf in leaves.items() if leaf.numel()}
    operations: list[tuple[Any, str, tuple[Any, ...], dict[str, Any], bool]] = []
    for func, args, kwargs, draws in recorder.log:
        target = args[0] if args and isinstance(args[0], Tensor) else None
        name = None if target is None or not target.numel() else at.get(target.untyped_storage().data_ptr())
        if name is None:
            if draws:
                return None  # a draw that is no leaf: the stream would be another without it
            continue
        assert target is not None
        rest = {key: value for key, value in kwargs.items() if key != "generator"}
        whole = target.shape == leaves[name].shape and target.is_contiguous()
        in_place = func._schema.name.endswith("_")
        if not (whole and in_place) or any(isinstance(value, Tensor) for value in (*args[1:], *rest.values())):
            return None
        operations.append((func, name, args[1:], rest, draws))
    written = {name for _, name, *_ in operations}
    constants = {name: leaf.clone() for name, leaf in leaves.items() if name not in written}
    tape = Tape(tuple(operations), constants, torch.get_default_dtype())
    rows = {name: torch.full_like(leaf, 7) for name, leaf in leaves.items()}
    tape.play(rows, torch.Generator().manual_seed(1))
    other = _leaves(draw(1))
    same = other.keys() == rows.keys() and all(rows[k].equal(other[k]) for k in rows)
    return tape if same else None


def _leaves(module: nn.Module) -> dict[str, Tensor]:
    return {**named_tensors(module, "_parameters")[0], **named_tensors(module, "_buffers")[0]}


def _plain(leaf: Tensor) -> bool:
    """Whether a leaf is a whole storage on the CPU and nothing special."""
    return (
        leaf.device.type == "cpu"
        and type(leaf) in (Tensor, nn.Parameter)
        and leaf.is_contiguous()
        and leaf.numel() * leaf.element_size() == leaf.untyped_storage().nbytes()
    )
