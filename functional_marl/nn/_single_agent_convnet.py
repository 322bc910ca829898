"""``ConvNet``: the network of one agent inside of ``MultiAgentConvNet``; ``SquashDims`` flattens its features.

Options, layer names, ``state_dict`` keys, ``repr`` and the order of random numbers are those of
``torchrl.modules.ConvNet`` (pytorch.org/rl), so that seeds and checkpoints of torchrl work here. torchrl is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._arguments import as_index, short_repr
from functional_marl._errors import StructureError
from functional_marl._lowering import Context, Layer, Step, lowering_rule, over_images
from functional_marl.nn._layer_options import (
    LayerMaker,
    Options,
    add_layers,
    as_size,
    check_class,
    check_device,
    make_layer,
    options_by_layer,
)

__all__ = ["ConvNet", "SquashDims"]

_LEAST = {"num_cells": 1, "kernel_sizes": 1, "strides": 1, "paddings": 0}


class SquashDims(nn.Module):
    """Flatten the last ``ndims_in`` axes: ``[*B, a, b, c] -> [*B, a * b * c]``.

    >>> SquashDims()(torch.zeros(5, 2, 3, 4)).shape
    torch.Size([5, 24])
    """

    def __init__(self, ndims_in: int = 3) -> None:
        super().__init__()
        self.ndims_in = as_index(ndims_in, "ndims_in", 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, ...] -> [*B, F]``."""
        return x.flatten(-self.ndims_in, -1)


class ConvNet(nn.Sequential):
    """Convolutions with activations between, then flat features: ``[*B, C, H, W] -> [*B, F]``.

    Args:
        in_features: ``C``; None makes the first layer lazy.
        depth: how many convolutions; by default as many as the lists below have entries.
        num_cells, kernel_sizes, strides, paddings: an int or one a layer; default channels are 32, 32, 32.
        activation_class, activation_kwargs, norm_class, norm_kwargs: activation, then norm, after each.
        bias_last_layer: has no effect; it is here because torchrl's class has it. The last convolution always has a
            bias, as in torchrl.
        aggregator_class, aggregator_kwargs: the layer behind the last convolution; None for no such layer.
        squeeze_output: drop the last two axes (of size 1).
        device: where to make the parameters.

    Raises:
        ValueError: depth 0. RuntimeError: lists of different lengths.

    After ``torchrl.modules.ConvNet`` (pytorch.org/rl).

    >>> ConvNet(in_features=3, num_cells=[8])
    ConvNet(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ELU(alpha=1.0)
      (2): SquashDims()
    )
    """

    reads: frozenset[str] = frozenset()  # the attributes that ``forward`` reads

    def __init__(
        self,
        in_features: int | None = None,
        depth: int | None = None,
        num_cells: Sequence[int] | int | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
        strides: Sequence[int | Sequence[int]] | int = 1,
        paddings: Sequence[int | Sequence[int]] | int = 0,
        activation_class: LayerMaker = nn.ELU,
        activation_kwargs: Options = None,
        norm_class: LayerMaker | None = None,
        norm_kwargs: Options = None,
        bias_last_layer: bool = True,
        aggregator_class: LayerMaker | None = SquashDims,
        aggregator_kwargs: Mapping[str, Any] | None = None,
        squeeze_output: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        in_features = None if in_features is None else as_index(in_features, "in_features", 1)
        depth, sizes = _sizes_by_layer(
            None if depth is None else as_index(depth, "depth", 0),
            {
                "num_cells": [32, 32, 32] if num_cells is None else num_cells,
                "kernel_sizes": kernel_sizes,
                "strides": strides,
                "paddings": paddings,
            },
        )
        check_class(activation_class, "activation_class")
        check_class(norm_class or nn.Identity, "norm_class")
        check_class(aggregator_class or SquashDims, "aggregator_class")
        if not isinstance(aggregator_kwargs, Mapping | None):
            raise StructureError(f"aggregator_kwargs: expected a dict or None, got {short_repr(aggregator_kwargs)}")
        check_device(device)
        super().__init__()
        self.in_features, self.depth, self.bias_last_layer = in_features, depth, bias_last_layer
        self.num_cells, self.out_features = sizes["num_cells"], sizes["num_cells"][-1]
        self.kernel_sizes, self.strides, self.paddings = sizes["kernel_sizes"], sizes["strides"], sizes["paddings"]
        self.activation_class, self.activation_kwargs = activation_class, activation_kwargs or {}
        self.norm_class, self.norm_kwargs = norm_class, norm_kwargs or {}
        self.aggregator_class, self.squeeze_output = aggregator_class, squeeze_output
        self.aggregator_kwargs = {"ndims_in": 3} if aggregator_kwargs is None else dict(aggregator_kwargs)
        norms = options_by_layer(norm_kwargs, depth, "norm_kwargs")
        activations = options_by_layer(activation_kwargs, depth, "activation_kwargs")
        add_layers(self, self._make_layers(norms, activations, device))

    def _make_layers(self, norms: Any, activations: Any, device: Any) -> list[Any]:
        layers: list[Any] = []
        channels: list[Any] = [self.in_features, *self.num_cells]
        for i in range(self.depth):
            options: dict[str, Any] = {
                "kernel_size": self.kernel_sizes[i],
                "stride": self.strides[i],
                "padding": self.paddings[i],
                "device": device,
            }
            before, after = channels[i], channels[i + 1]
            layers.append(nn.LazyConv2d(after, **options) if before is None else nn.Conv2d(before, after, **options))
            layers.append(make_layer(self.activation_class, device, **next(activations)))
            norm = next(norms)
            if self.norm_class is not None:
                layers.append(make_layer(self.norm_class, device, **norm))
        if self.aggregator_class is not None:
            layers.append(make_layer(self.aggregator_class, device, **self.aggregator_kwargs))
        if self.squeeze_output:
            layers.append(_Squeeze2d())
        return layers

    def forward(self, input: Tensor) -> Tensor:
        """``[*B, C, H, W] -> [*B, F]``. The layers see one batch axis, or none for a single image, as in torchrl."""
        batch = input.shape[:-3]
        if len(batch) <= 1:
            return super().forward(input)
        return super().forward(input.flatten(0, len(batch) - 1)).unflatten(0, batch)


def _sizes_by_layer(depth: int | None, given: dict[str, Any]) -> tuple[int, dict[str, list[Any]]]:
    """The depth, and each option as a list of ``depth`` sizes."""
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, Sequence)}
    if depth is None:
        if not lengths:
            raise ValueError(f"depth: expected a number, or a list among {list(given)}; got ints only")
        depth = list(lengths.values())[-1]
    if depth == 0:
        raise ValueError("depth: expected at least one convolution, got 0")
    if any(length != depth for length in lengths.values()):
        raise RuntimeError(f"expected {depth} values (the depth) in each list, got {lengths}")
    return depth, {
        name: [as_size(one, name, _LEAST[name]) for one in (value if name in lengths else [value] * depth)]
        for name, value in given.items()
    }


class _Squeeze2d(nn.Module):
    """Drop the last two axes, which must have size 1."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1):
            raise RuntimeError(f"squeeze_output: expected a shape [*B, C, 1, 1], got {list(x.shape)}")
        return x.squeeze(-1).squeeze(-1)

    def __repr__(self) -> str:
        return "Squeeze2dLayer()"  # torchrl's name, for the same repr


# --- the rules of the plan -----------------------------------------------------------------------------------


@lowering_rule(ConvNet, container=True)
def _lower_convnet(module: ConvNet, context: Context) -> Step:
    """Its layers over one batch axis; over a lone image as it is, as in ``forward``."""
    return over_images(context.children(module), lone_as_is=True)


@lowering_rule(SquashDims)
def _lower_squash_dims(module: SquashDims, context: Context) -> list[Layer]:
    """The same as ``nn.Flatten``."""
    return context.lower(nn.Flatten(-module.ndims_in))
