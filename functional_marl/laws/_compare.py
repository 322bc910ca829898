"""How laws compare values: up to rounding or to the bit, and never two NaNs for agreement."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten, leaf_names

__all__ = ["Broken", "agree", "broken", "differ", "gap", "zero"]

# Relative to the largest number of a leaf: products are summed in another order in another evaluation.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.complex128: 1e-9, torch.complex64: 1e-4}
_COARSE = 3e-2
# Continuous samples differ by more than this unless they are the same sample.
_APART = 1e-7


class Broken(AssertionError):
    """What a law found; :class:`functional_marl.laws.Law` puts its own name in front."""


def broken(found: str) -> None:
    """Raise what a law found."""
    raise Broken(found)


def agree(found: Tree, wanted: Tree, where: str, *, exact: bool = False, oracle: bool = False) -> None:
    """Raise unless two trees have equal paths, shapes, dtypes and values, up to rounding or to the bit.

    Two NaNs agree only if ``oracle``: the wanted values are those of the network of one agent, or data that a law
    made itself. Between two calls of one module NaN shows nothing.
    """
    names, expected = leaf_names(found, where), leaf_names(wanted, where)
    if names != expected:
        broken(f"{where}: expected the leaves {expected}, got {names}")
    for name, leaf, want in zip(names, flatten(found)[0], flatten(wanted)[0], strict=True):
        if not isinstance(leaf, Tensor) or not isinstance(want, Tensor):
            if type(leaf) is not type(want) or leaf != want:
                broken(f"{name}: expected {want!r}, got {leaf!r}")
        elif leaf.shape != want.shape:
            broken(f"{name}: expected shape {list(want.shape)}, got {list(leaf.shape)}")
        elif leaf.dtype != want.dtype:
            broken(f"{name}: expected {want.dtype}, got {leaf.dtype}")
        elif off := gap(leaf, want, exact=exact, oracle=oracle or exact):
            broken(f"{name}: {off}")


def gap(leaf: Tensor, want: Tensor, *, exact: bool = False, oracle: bool = False) -> str:
    """Where and by how much two tensors differ; empty if they do not."""
    leaf, want = leaf.detach(), want.detach()
    same = leaf == want
    nans = (leaf != leaf) & (want != want)
    if oracle:
        same = same | nans
    elif bool(nans.any()):
        at = tuple(int(i) for i in nans.nonzero()[0])
        return f"nan in both at {list(at)} ({int(nans.sum())} of {nans.numel()} numbers), which shows no agreement"
    if not exact and (leaf.is_floating_point() or leaf.is_complex()):
        size = want.abs().nan_to_num(0.0, 0.0, 0.0).max() if want.numel() else want.new_zeros(())
        same = same | ((leaf - want).abs() <= _TOLERANCE.get(leaf.dtype, _COARSE) * (1.0 + size))
    if bool(same.all()):
        return ""
    at = tuple(int(i) for i in (~same).nonzero()[0])
    return f"expected {want[at].item()!r} at {list(at)}, got {leaf[at].item()!r} ({int((~same).sum())} differ)"


def differ(one: Tree, other: Tree, where: str) -> None:
    """Raise if two trees of tensors hold the same numbers."""
    for a, b in zip(flatten(one)[0], flatten(other)[0], strict=True):
        if isinstance(a, Tensor) and a.numel() and bool(((a.detach() - b.detach()).abs() > _APART).any()):
            return
    broken(f"{where}: expected different numbers, got the same")


def zero(gradients: Mapping[str, Tensor], where: str) -> None:
    """Raise unless every gradient is zero."""
    for name, gradient in gradients.items():
        if bool((gradient != 0).any()):
            broken(f"{where} on {name}: expected a zero gradient, got {float(gradient.abs().max()):.3g}")
