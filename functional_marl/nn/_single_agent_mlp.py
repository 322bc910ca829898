"""``MLP``: the network of one agent inside of ``MultiAgentMLP``.

Options, layer names, ``state_dict`` keys, ``repr`` and the order of random numbers are those of
``torchrl.modules.MLP`` (pytorch.org/rl), so that seeds and checkpoints of torchrl work here. torchrl is not needed.
"""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._arguments import as_index, short_repr
from functional_marl._errors import StructureError
from functional_marl._lowering import Context, Layer, lowering_rule
from functional_marl.nn._layer_options import (
    LayerMaker,
    Options,
    add_layers,
    as_features,
    as_sizes,
    check_class,
    check_device,
    make_layer,
    options_by_layer,
)

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Linear layers with activations between: ``[*B, F] -> [*B, F_out]``; several inputs are concatenated.

    Args:
        in_features: ``F``; None makes the first layer lazy.
        out_features: ``F_out``, or a shape that the features are viewed as.
        depth: how many hidden layers; by default as many as ``num_cells`` has entries, or none.
        num_cells: the width of the hidden layers, an int (with ``depth``) or one a layer; default 32.
        activation_class, activation_kwargs: a new activation for each layer; kwargs are a dict or one a layer.
        norm_class, norm_kwargs, dropout: between linear layer and activation: dropout, then norm.
        bias_last_layer: whether the last linear layer has a bias.
        single_bias_last_layer: one bias for all its outputs.
        layer_class, layer_kwargs: the class of the linear layers.
        activate_last_layer: whether dropout, norm and activation follow the last layer too.
        device: where to make the parameters.

    Raises:
        ValueError: no ``out_features``.
        RuntimeError: ``num_cells`` does not have ``depth`` entries, or is an int without ``depth``.
        KeyError: no ``in_features`` and a ``layer_class`` without a lazy version.

    After ``torchrl.modules.MLP`` (pytorch.org/rl).

    >>> MLP(in_features=3, out_features=2, depth=1)
    MLP(
      (0): Linear(in_features=3, out_features=32, bias=True)
      (1): Tanh()
      (2): Linear(in_features=32, out_features=2, bias=True)
    )
    """

    # The attributes that ``forward`` reads. The others only record how the network was built, as in torchrl.
    reads = frozenset({"out_features"})

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | Sequence[int] | None = None,
        depth: int | None = None,
        num_cells: Sequence[int] | int | None = None,
        activation_class: LayerMaker = nn.Tanh,
        activation_kwargs: Options = None,
        norm_class: LayerMaker | None = None,
        norm_kwargs: Options = None,
        dropout: float | None = None,
        bias_last_layer: bool = True,
        single_bias_last_layer: bool = False,
        layer_class: LayerMaker = nn.Linear,
        layer_kwargs: Options = None,
        activate_last_layer: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        out_features = as_features(out_features, "out_features")
        in_features = None if in_features is None else as_index(in_features, "in_features", 0)
        depth = None if depth is None else as_index(depth, "depth", 0)
        widths = _hidden_widths(num_cells, depth)
        if dropout is not None and (isinstance(dropout, bool) or not isinstance(dropout, numbers.Real)):
            raise StructureError(f"dropout: expected a probability or None, got {short_repr(dropout)}")
        check_class(activation_class, "activation_class")
        check_class(layer_class, "layer_class")
        if norm_class is not None:
            check_class(norm_class, "norm_class")
        check_device(device)
        if depth is not None and len(widths) != depth:
            raise RuntimeError(f"num_cells: expected {depth} numbers, as depth={depth} is given, got {widths}")
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.depth, self.num_cells, self.dropout = len(widths), widths, dropout
        self.activation_class, self.activation_kwargs = activation_class, activation_kwargs
        self.norm_class, self.norm_kwargs = norm_class, norm_kwargs
        self.layer_class, self.layer_kwargs = layer_class, layer_kwargs
        self.bias_last_layer, self.single_bias_last_layer = bias_last_layer, single_bias_last_layer
        self.activate_last_layer = activate_last_layer
        add_layers(self, self._make_layers(device))

    def _make_layers(self, device: Any) -> list[Any]:
        out = self.out_features
        activated = self.depth + self.activate_last_layer  # how many linear layers an activation follows
        norms = options_by_layer(self.norm_kwargs, activated, "norm_kwargs")
        activations = options_by_layer(self.activation_kwargs, activated, "activation_kwargs")
        linears = options_by_layer(self.layer_kwargs, self.depth + 1, "layer_kwargs")
        widths: list[Any] = [self.in_features, *self.num_cells, math.prod(out) if isinstance(out, Sequence) else out]
        layers: list[Any] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            options, last = next(linears), i == self.depth
            bias = options.pop("bias", self.bias_last_layer if last else True)
            one_bias = last and self.single_bias_last_layer and bias
            make = _lazy_version(self.layer_class) if before is None else self.layer_class
            sizes = (after,) if before is None else (before, after)
            layers.append(make_layer(make, device, *sizes, bias=bias and not one_bias, **options))
            if one_bias:
                layers.append(_single_bias(layers[-1], device))
            if i < activated:
                if self.dropout is not None:
                    layers.append(nn.Dropout(p=self.dropout))
                norm, activation = next(norms), next(activations)
                if self.norm_class is not None:
                    layers.append(make_layer(self.norm_class, device, **norm))
                layers.append(make_layer(self.activation_class, device, **activation))
        return layers

    def forward(self, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``[*B, F] -> [*B, F_out]``."""
        if not inputs:
            raise TypeError("inputs: expected at least one tensor, got none")
        out = super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1))
        if isinstance(self.out_features, Sequence):
            out = out.view(*out.shape[:-1], *self.out_features)
        return out


def _hidden_widths(num_cells: Any, depth: int | None) -> list[int]:
    if num_cells is None:
        return [32] * (depth or 0)
    if isinstance(num_cells, Sequence):
        return as_sizes(num_cells, "num_cells", 0)
    width = as_index(num_cells, "num_cells", 0)
    if depth is None:
        raise RuntimeError(f"num_cells={num_cells}: expected depth= too, as num_cells is an int; got none")
    return [width] * depth


def _lazy_version(layer_class: LayerMaker) -> LayerMaker:
    if layer_class is nn.Linear:
        return nn.LazyLinear
    torchrl = sys.modules.get("torchrl.modules")
    if torchrl is not None and layer_class is torchrl.NoisyLinear:
        return torchrl.NoisyLazyLinear
    name = getattr(layer_class, "__name__", layer_class)
    raise KeyError(f"in_features: {name} has no lazy version; give the number of input features")


class _SharedBias(nn.Module):
    """One bias for all output features. (torchrl's name, for the same repr.)"""

    def __init__(self, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def _single_bias(layer: Any, device: Any) -> _SharedBias:
    """The bias behind a layer, on the device and in the dtype of its weight."""
    if "Noisy" in type(layer).__name__:
        raise ValueError("single_bias_last_layer: a NoisyLinear has separate noise for each bias; use False")
    weight = next(layer.parameters(), None)
    return _SharedBias(device) if weight is None else _SharedBias(weight.device, weight.dtype)


# --- the rule of the plan ------------------------------------------------------------------------------------


@lowering_rule(MLP, container=True)
def _lower_mlp(module: MLP, context: Context) -> list[Layer]:
    """Its layers in order; then the features in the shape of ``out_features``."""
    layers, shape = context.children(module), module.out_features
    if isinstance(shape, Sequence):
        layers += context.lower(nn.Unflatten(-1, tuple(shape)))
    return layers
