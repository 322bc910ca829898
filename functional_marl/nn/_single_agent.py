"""The networks of one agent that torchrl's multi-agent classes are made of: ``MLP`` and ``ConvNet``.

Options, layer names, ``state_dict`` keys, ``repr`` and the order of random draws are those of
``torchrl.modules.MLP`` and ``torchrl.modules.ConvNet`` (pytorch.org/rl), so that seeds and checkpoints
carry over. They do not need torchrl.
"""

from __future__ import annotations

import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._arguments import as_index, shown
from functional_marl._errors import StructureError
from functional_marl._lowering import Context, Layer, Step, lowering_rule, over_images
from functional_marl.nn._layer_options import (
    Options,
    as_features,
    as_size,
    as_sizes,
    check_class,
    check_device,
    each_layer,
)

__all__ = ["MLP", "ConvNet", "SquashDims"]

Make = Callable[..., Any]


def _made_on(make: Make, device: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``make`` makes, directly on a device where its constructor can."""
    target: Any = make.__init__ if isinstance(make, type) else make
    try:
        takes_device = "device" in inspect.signature(target).parameters
    except (TypeError, ValueError):
        takes_device = False
    if takes_device:
        return make(*args, device=device, **kwargs)
    made = make(*args, **kwargs)
    return made.to(device) if isinstance(made, nn.Module) and device is not None else made


def _as_layers(layers: list[Any]) -> list[nn.Module]:
    return [layer if isinstance(layer, nn.Module) else _Function(layer) for layer in layers]


def _lazy_class(layer_class: Make) -> Make:
    if layer_class is nn.Linear:
        return nn.LazyLinear
    torchrl = sys.modules.get("torchrl.modules")
    if torchrl is not None and layer_class is torchrl.NoisyLinear:
        return torchrl.NoisyLazyLinear
    name = getattr(layer_class, "__name__", layer_class)
    raise KeyError(f"in_features: {name} has no lazy version; give the number of input features")


class _Function(nn.Module):
    """A layer that is a plain function."""

    def __init__(self, func: Callable[..., Any]) -> None:
        super().__init__()
        self.func = func

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"_ExecutableLayer(func={self.func})"  # torchrl's name, for the same repr


class _SharedBias(nn.Module):
    """One bias for all output features."""

    def __init__(self, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


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


class _Squeeze2d(nn.Module):
    """Drop the last two axes, which must have size 1."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1):
            raise RuntimeError(f"squeeze_output: expected a shape [*B, C, 1, 1], got {list(x.shape)}")
        return x.squeeze(-1).squeeze(-1)

    def __repr__(self) -> str:
        return "Squeeze2dLayer()"  # torchrl's name, for the same repr


class MLP(nn.Sequential):
    """Linear layers with activations between: ``[*B, F] -> [*B, F_out]``; several inputs are concatenated.

    Args:
        in_features: ``F``; None makes the first layer lazy.
        out_features: ``F_out``, or a shape that the features are viewed as.
        depth: how many hidden layers; by default as many as ``num_cells`` has entries, or none.
        num_cells: the width of the hidden layers, an int (with ``depth``) or one a layer; default 32.
        activation_class, activation_kwargs: made anew for each layer; kwargs are a dict or one a layer.
        norm_class, norm_kwargs, dropout: put between linear layer and activation: dropout, then norm.
        bias_last_layer: whether the last linear layer has a bias.
        single_bias_last_layer: one bias for all its outputs.
        layer_class, layer_kwargs: the class of the linear layers.
        activate_last_layer: whether the output is dropped out, normed and activated too.
        device: where to make it.

    Raises:
        ValueError: no ``out_features``. RuntimeError: ``depth`` and ``num_cells`` that do not agree.
        KeyError: no ``in_features`` and a ``layer_class`` without a lazy version.

    After ``torchrl.modules.MLP`` (pytorch.org/rl).

    >>> MLP(in_features=3, out_features=2, depth=1)
    MLP(
      (0): Linear(in_features=3, out_features=32, bias=True)
      (1): Tanh()
      (2): Linear(in_features=32, out_features=2, bias=True)
    )
    """

    reads = frozenset({"out_features"})  # its forward; other attributes say how it was built, as torchrl's do

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | Sequence[int] | None = None,
        depth: int | None = None,
        num_cells: Sequence[int] | int | None = None,
        activation_class: Make = nn.Tanh,
        activation_kwargs: Options = None,
        norm_class: Make | None = None,
        norm_kwargs: Options = None,
        dropout: float | None = None,
        bias_last_layer: bool = True,
        single_bias_last_layer: bool = False,
        layer_class: Make = nn.Linear,
        layer_kwargs: Options = None,
        activate_last_layer: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        out_features = as_features(out_features, "out_features")
        in_features = None if in_features is None else as_index(in_features, "in_features", 0)
        depth = None if depth is None else as_index(depth, "depth", 0)
        if num_cells is None:
            cells = [32] * (depth or 0)
        elif isinstance(num_cells, Sequence):
            cells = as_sizes(num_cells, "num_cells", 0)
        else:
            width = as_index(num_cells, "num_cells", 0)
            if depth is None:
                raise RuntimeError(f"num_cells={num_cells}: an int needs depth= too")
            cells = [width] * depth
        if dropout is not None and (isinstance(dropout, bool) or not isinstance(dropout, numbers.Real)):
            raise StructureError(f"dropout: expected a probability or None, got {shown(dropout)}")
        for name, make in (("activation_class", activation_class), ("layer_class", layer_class)):
            check_class(make, name)
        if norm_class is not None:
            check_class(norm_class, "norm_class")
        check_device(device)
        if depth is not None and len(cells) != depth:
            raise RuntimeError(f"depth={depth} and num_cells={cells} do not agree: expected {depth} numbers of cells")
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.depth, self.num_cells, self.dropout = len(cells), cells, dropout
        self.activation_class, self.activation_kwargs = activation_class, activation_kwargs
        self.norm_class, self.norm_kwargs = norm_class, norm_kwargs
        self.layer_class, self.layer_kwargs = layer_class, layer_kwargs
        self.bias_last_layer, self.single_bias_last_layer = bias_last_layer, single_bias_last_layer
        self.activate_last_layer = activate_last_layer
        last = math.prod(out_features) if isinstance(out_features, Sequence) else out_features
        hidden = self.depth + activate_last_layer
        norms = each_layer(norm_kwargs, hidden, "norm_kwargs")
        activations = each_layer(activation_kwargs, hidden, "activation_kwargs")
        linears = each_layer(layer_kwargs, self.depth + 1, "layer_kwargs")
        layers: list[Any] = []
        for i, (before, after) in enumerate(zip([in_features, *cells], [*cells, last], strict=True)):
            options = next(linears)
            bias = options.pop("bias", bias_last_layer if i == self.depth else True)
            single = i == self.depth and single_bias_last_layer and bias
            sizes = (after,) if before is None else (before, after)
            make = _lazy_class(layer_class) if before is None else layer_class
            layers.append(_made_on(make, device, *sizes, bias=bias and not single, **options))
            if single:
                if "Noisy" in type(layers[-1]).__name__:
                    raise ValueError("single_bias_last_layer: a NoisyLinear has noise of its own in every bias")
                like = next(layers[-1].parameters(), None)
                layers.append(
                    _SharedBias(device if like is None else like.device, None if like is None else like.dtype)
                )
            if i < hidden:
                if dropout is not None:
                    layers.append(nn.Dropout(p=dropout))
                norm, activation = next(norms), next(activations)
                if norm_class is not None:
                    layers.append(_made_on(norm_class, device, **norm))
                layers.append(_made_on(activation_class, device, **activation))
        for i, layer in enumerate(_as_layers(layers)):
            self.add_module(str(i), layer)

    def forward(self, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[*B, F] -> [*B, F_out]``."""
        if not inputs:
            raise TypeError("inputs: expected at least one tensor, got none")
        out = super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1))
        if isinstance(self.out_features, Sequence):
            out = out.view(*out.shape[:-1], *self.out_features)
        return out


class ConvNet(nn.Sequential):
    """Convolutions with activations between, then flat features: ``[*B, C, H, W] -> [*B, F]``.

    Args:
        in_features: ``C``; None makes the first layer lazy.
        depth: how many convolutions; by default as many as the lists below have entries.
        num_cells, kernel_sizes, strides, paddings: an int or one a layer; default channels are 32, 32, 32.
        activation_class, activation_kwargs, norm_class, norm_kwargs: activation, then norm, after each.
        bias_last_layer: kept for torchrl's signature; torchrl's last convolution always has a bias, and so
            has this one.
        aggregator_class, aggregator_kwargs: what comes after the last; None for nothing.
        squeeze_output: drop the last two axes (of size 1).
        device: where to make it.

    Raises:
        ValueError: depth 0. RuntimeError: lists that do not agree in length.

    After ``torchrl.modules.ConvNet`` (pytorch.org/rl).

    >>> ConvNet(in_features=3, num_cells=[8])
    ConvNet(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ELU(alpha=1.0)
      (2): SquashDims()
    )
    """

    reads: frozenset[str] = frozenset()

    def __init__(
        self,
        in_features: int | None = None,
        depth: int | None = None,
        num_cells: Sequence[int] | int | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
        strides: Sequence[int | Sequence[int]] | int = 1,
        paddings: Sequence[int | Sequence[int]] | int = 0,
        activation_class: Make = nn.ELU,
        activation_kwargs: Options = None,
        norm_class: Make | None = None,
        norm_kwargs: Options = None,
        bias_last_layer: bool = True,
        aggregator_class: Make | None = SquashDims,
        aggregator_kwargs: Mapping[str, Any] | None = None,
        squeeze_output: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "num_cells": [32, 32, 32] if num_cells is None else num_cells,
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            "paddings": paddings,
        }
        lengths = {name: len(value) for name, value in given.items() if isinstance(value, Sequence)}
        in_features = None if in_features is None else as_index(in_features, "in_features", 1)
        depth = None if depth is None else as_index(depth, "depth", 0)
        if depth is None:
            if not lengths:
                raise ValueError(f"depth: expected a number, or a list among {list(given)}; got ints only")
            depth = list(lengths.values())[-1]
        if depth == 0:
            raise ValueError("depth: expected at least one convolution, got 0")
        if any(length != depth for length in lengths.values()):
            raise RuntimeError(f"expected {depth} values (the depth) in each list, got {lengths}")
        least = {"num_cells": 1, "kernel_sizes": 1, "strides": 1, "paddings": 0}
        each: dict[str, list[Any]] = {
            name: [as_size(one, name, least[name]) for one in (value if name in lengths else [value] * depth)]
            for name, value in given.items()
        }
        for name, make in (("activation_class", activation_class), ("norm_class", norm_class or nn.Identity)):
            check_class(make, name)
        check_class(aggregator_class or SquashDims, "aggregator_class")
        if not isinstance(aggregator_kwargs, Mapping | None):
            raise StructureError(f"aggregator_kwargs: expected a dict or None, got {shown(aggregator_kwargs)}")
        check_device(device)
        super().__init__()
        self.in_features, self.depth, self.bias_last_layer = in_features, depth, bias_last_layer
        self.num_cells, self.out_features = each["num_cells"], each["num_cells"][-1]
        self.kernel_sizes, self.strides, self.paddings = each["kernel_sizes"], each["strides"], each["paddings"]
        self.activation_class, self.activation_kwargs = activation_class, activation_kwargs or {}
        self.norm_class, self.norm_kwargs = norm_class, norm_kwargs or {}
        self.aggregator_class, self.squeeze_output = aggregator_class, squeeze_output
        self.aggregator_kwargs = {"ndims_in": 3} if aggregator_kwargs is None else dict(aggregator_kwargs)
        norms = each_layer(norm_kwargs, depth, "norm_kwargs")
        activations = each_layer(activation_kwargs, depth, "activation_kwargs")
        layers: list[Any] = []
        channels: list[Any] = [in_features, *each["num_cells"]]
        for i in range(depth):
            options: dict[str, Any] = {
                "kernel_size": each["kernel_sizes"][i],
                "stride": each["strides"][i],
                "padding": each["paddings"][i],
                "device": device,
            }
            before, after = channels[i], channels[i + 1]
            layers.append(nn.LazyConv2d(after, **options) if before is None else nn.Conv2d(before, after, **options))
            layers.append(_made_on(activation_class, device, **next(activations)))
            norm = next(norms)
            if norm_class is not None:
                layers.append(_made_on(norm_class, device, **norm))
        if aggregator_class is not None:
            layers.append(_made_on(aggregator_class, device, **self.aggregator_kwargs))
        if squeeze_output:
            layers.append(_Squeeze2d())
        for i, layer in enumerate(_as_layers(layers)):
            self.add_module(str(i), layer)

    def forward(self, input: Tensor) -> Tensor:
        """``[*B, C, H, W] -> [*B, F]``; layers see one batch axis, of a lone image none, as in torchrl."""
        batch = input.shape[:-3]
        if len(batch) <= 1:
            return super().forward(input)
        return super().forward(input.flatten(0, len(batch) - 1)).unflatten(0, batch)


# --- the rules of these classes for the plan ---------------------------------------------------------------


@lowering_rule(MLP, container=True)
def _lower_mlp(module: MLP, context: Context) -> list[Layer]:
    """Its layers in order; then the features in the shape of ``out_features``."""
    layers, shape = context.children(module), module.out_features
    if isinstance(shape, Sequence):
        layers += context.lower(nn.Unflatten(-1, tuple(shape)))
    return layers


@lowering_rule(ConvNet, container=True)
def _lower_convnet(module: ConvNet, context: Context) -> Step:
    """Its layers over one batch axis; over a lone image as it is, as in ``forward``."""
    return over_images(context.children(module), lone_as_is=True)


@lowering_rule(SquashDims)
def _lower_squash_dims(module: SquashDims, context: Context) -> list[Layer]:
    """The same as ``nn.Flatten``."""
    return context.lower(nn.Flatten(-module.ndims_in))
