"""From layers to steps: linear layers in a row become one step, and activations run inside the layer before them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from functional_marl._errors import Unsupported
from functional_marl._lowering.linear_kernels import Affine, run_dense, run_dense_whole, run_shared
from functional_marl._lowering.rows import plain_layout
from functional_marl._lowering.steps import (
    Activation,
    Fusible,
    Layer,
    PassThrough,
    Pointwise,
    Run,
    Step,
    Value,
)
from functional_marl._sharing import Sharing

__all__ = ["LinearRun", "fuse", "over_images", "sequence"]


@dataclass(frozen=True)
class LinearRun:
    """A step: linear layers in a row with one slot map, over any axes between the agents and the features."""

    layers: tuple[Affine, ...]
    sharing: Sharing

    def __call__(self, run: Run, h: Tensor, mapped: bool) -> Value:
        """The output, mapped if the layers are not shared by all agents."""
        layers, sharing = self.layers, self.sharing
        if h.ndim < 1 + mapped:
            raise Unsupported("a linear layer over a number")
        if sharing.is_shared:
            if mapped and h.ndim > 2 and not h.is_contiguous():  # in the caller's layout: agents ahead of the features
                return run_shared(layers, run.params, h.movedim(0, -2)).movedim(-2, 0), mapped
            return run_shared(layers, run.params, h), mapped
        batch = h.shape[mapped:-1]
        flat = h.reshape(*h.shape[:mapped], math.prod(batch), h.shape[-1])
        out = (run_dense if mapped else run_dense_whole)(layers, run.params, flat, sharing)
        return out.reshape(run.n_agents, *batch, out.shape[-1]), True


def fuse(layers: Iterable[Layer]) -> list[Step]:
    """The steps of layers in order."""
    steps: list[Step] = []
    for sharing, members in itertools.groupby(_with_activations(layers), _slot_map):
        if sharing is None:
            steps += [layer for layer in members if not isinstance(layer, Affine)]
        else:
            steps.append(LinearRun(tuple(layer for layer in members if isinstance(layer, Affine)), sharing))
    return steps


def _slot_map(layer: Affine | Step) -> Sharing | None:
    return layer.sharing if isinstance(layer, Affine) else None


def _with_activations(layers: Iterable[Layer]) -> Iterator[Affine | Step]:
    """Linear layers and steps. An activation goes into the linear or fusible layer before it.

    Only the first one writes over its input: the backward of the next one may need what the first one computed.
    """
    ahead: Affine | Fusible | None = None
    activations: list[Activation] = []
    for layer in layers:
        if ahead is not None and isinstance(layer, Pointwise):
            activations.append(layer.function if activations else layer.in_place or layer.function)
            continue
        if ahead is not None:
            yield _closed(ahead, activations)
        ahead, activations = None, []
        if isinstance(layer, (Affine, Fusible)):
            ahead = layer
        elif isinstance(layer, Pointwise):
            yield _elementwise(layer.function)
        else:
            yield layer.step if isinstance(layer, PassThrough) else layer
    if ahead is not None:
        yield _closed(ahead, activations)


def _closed(layer: Affine | Fusible, activations: Sequence[Activation]) -> Affine | Step:
    """The layer with the activations after it."""
    if isinstance(layer, Affine):
        return replace(layer, activations=tuple(activations))
    return layer.make(activations)


def _elementwise(function: Activation) -> Step:
    return lambda run, h, mapped: (function(h), mapped)


def sequence(layers: Iterable[Layer]) -> Step:
    """Layers in order as one step."""
    steps = fuse(layers)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        for inner in steps:
            h, mapped = inner(run, h, mapped)
        return h, mapped

    return step


def over_images(layers: Iterable[Layer], *, lone_as_is: bool) -> Step:
    """Layers over ``[*B, C, H, W]`` that see one batch axis.

    With ``lone_as_is`` they see an image without batch axes as it is; else with a batch axis of size 1.
    """
    inside = sequence(layers)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        lead = h.shape[mapped:-3]
        if lone_as_is and not lead:
            return inside(run, h, mapped)
        h, mapped = inside(run, h.reshape(*h.shape[:mapped], math.prod(lead), *h.shape[-3:]), mapped)
        return plain_layout(h, mapped).reshape(*h.shape[:mapped], *lead, *h.shape[mapped + 1 :]), mapped

    return step
