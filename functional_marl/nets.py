"""One-agent networks that batch well: what to hand to :func:`functional_marl.network` as ``build``.

Each function returns a factory, so that ``fm.network(fm.nets.mlp(16, 64, 64, 4), n_agents=3)`` reads as
one line. The modules are made of torch's own layers; the factories pickle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl.errors import StructureError

__all__ = ["GRU", "LSTM", "ConvNet", "convnet", "gru", "lstm", "mlp"]

Activation = Callable[[], nn.Module]


def _check_activation(where: str, activation: Any) -> None:
    """Refuse what can be seen to build no module, without a call: a builder may draw."""
    builds = issubclass(activation, nn.Module) if isinstance(activation, type) else callable(activation)
    if not builds or isinstance(activation, nn.Module | BuiltinFunctionType):
        raise StructureError(
            f"{where}: expected as activation a module class such as nn.ReLU, or a function that builds a module, "
            f"got {activation!r}"
        )


def mlp(*sizes: int, activation: Activation = nn.Tanh) -> Callable[[], nn.Module]:
    """A multi-layer perceptron over the last axis: ``[*B, sizes[0]] -> [*B, sizes[-1]]``.

    Raises:
        StructureError: fewer than two sizes, one that is not a positive int, or an ``activation`` that builds no
            module (a name, a function of tensors, a module that is built already).

    >>> mlp(4, 8, 2)()
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Tanh()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if len(sizes) < 2 or any(not isinstance(s, int) or s < 1 for s in sizes):
        raise StructureError(f"mlp: expected at least an input and an output size, positive ints, got {sizes}")
    _check_activation("mlp", activation)
    return partial(_mlp, sizes, activation)


def _mlp(sizes: Sequence[int], activation: Activation) -> nn.Module:
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [activation()] if k else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def convnet(
    channels: Sequence[int],
    kernel: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    activation: Activation = nn.ELU,
) -> Callable[[], nn.Module]:
    """Two-dimensional convolutions, then flat features: ``[*B, C, H, W] -> [*B, F]``, any batch axes.

    ``channels`` are those of the input and of every layer; ``kernel``, ``stride`` and ``padding`` are ints
    or one a layer.

    Raises:
        StructureError: fewer than two channel counts, a list of another length, or an ``activation`` that builds no
            module.

    >>> convnet([3, 8, 8])()(torch.zeros(5, 3, 9, 9)).shape
    torch.Size([5, 200])
    """
    if len(channels) < 2:
        raise StructureError(f"convnet: expected the channels of the input and of every layer, got {channels}")
    n = len(channels) - 1
    each = [list(v) if isinstance(v, Sequence) else [v] * n for v in (kernel, stride, padding)]
    if any(len(v) != n for v in each):
        raise StructureError(f"convnet: expected {n} kernels, strides and paddings, got {each}")
    _check_activation("convnet", activation)
    return partial(ConvNet, tuple(channels), *map(tuple, each), activation)


class ConvNet(nn.Module):
    """The module that :func:`convnet` builds: ``[*B, C, H, W] -> [*B, F]``.

    >>> convnet([3, 8])()(torch.zeros(2, 5, 3, 4, 4)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        activation: Activation,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, k, s, p in zip(channels, channels[1:], kernel, stride, padding, strict=False):
            layers += [nn.Conv2d(before, after, k, s, p), activation()]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, C, H, W] -> [*B, F]``."""
        batch = x.shape[:-3]
        out = self.layers(x.reshape(math.prod(batch), *x.shape[-3:]))
        return out.reshape(*batch, out.shape[-1])


def gru(inputs: int, hidden: int) -> Callable[[], nn.Module]:
    """A GRU over time (Cho et al. 2014, arXiv:1406.1078): see :class:`GRU`.

    An agent sees ``[*B, T, F]`` and a state ``[*B, H]``: agents go behind the batch, ``agent_dim=1`` for inputs
    ``[B, n, T, F]`` and states ``[B, n, H]``.

    >>> outputs, last = gru(4, 8)()(torch.zeros(5, 7, 4))
    >>> outputs.shape, last.shape
    (torch.Size([5, 7, 8]), torch.Size([5, 8]))
    """
    return partial(GRU, inputs, hidden)


def lstm(inputs: int, hidden: int) -> Callable[[], nn.Module]:
    """An LSTM over time (Hochreiter and Schmidhuber 1997): see :class:`LSTM`.

    >>> outputs, (h, c) = lstm(4, 8)()(torch.zeros(5, 7, 4))
    >>> outputs.shape, h.shape, c.shape
    (torch.Size([5, 7, 8]), torch.Size([5, 8]), torch.Size([5, 8]))
    """
    return partial(LSTM, inputs, hidden)


class _Recurrent(nn.Module):
    """Weights of one recurrent layer under torch's names and with torch's initialisation."""

    def __init__(self, inputs: int, hidden: int, gates: int) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(gates * hidden))
        self.bias_hh = nn.Parameter(torch.empty(gates * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in plus or minus one over the root of the hidden size, as torch's recurrent layers."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden**-0.5), self.hidden**-0.5)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.inputs}, {self.hidden}"


def starts(x: Tensor, reset: Tensor | None) -> list[Tensor | None]:
    """What multiplies the state ahead of each of ``T`` steps: ``[*B, 1]``, 0 where an episode starts, else 1."""
    if reset is None:
        return [None] * x.shape[-2]
    return list((~reset.bool()).to(x.dtype).unsqueeze(-1).unbind(-2))


def gru_step(from_x: Tensor, from_h: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU from its gates ``[*B, 3 H]`` (reset, update, new): ``[*B, H]``."""
    size = h.shape[-1]
    reset, update = torch.sigmoid(from_x[..., : 2 * size] + from_h[..., : 2 * size]).chunk(2, -1)
    new = torch.tanh(torch.addcmul(from_x[..., 2 * size :], reset, from_h[..., 2 * size :]))
    # Under autocast gates have a lower dtype than the state, which keeps its own.
    return torch.lerp(new.to(h.dtype), h, update.to(h.dtype))


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM from its gates ``[*B, 4 H]`` (input, forget, cell, output): ``(h, c)``."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_scan(
    from_x: Tensor, h: Tensor, keeps: Sequence[Tensor | None], recurrent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """All steps: ``from_x: [*B, T, 3 H]``, ``h: [*B, H]`` to ``([*B, T, H], [*B, H])``."""
    outputs: list[Tensor] = []
    for gates, keep in zip(from_x.unbind(-2), keeps, strict=True):
        h = h if keep is None else h * keep
        h = gru_step(gates, recurrent(h), h)
        outputs.append(h)
    return torch.stack(outputs, -2), h


def lstm_scan(
    from_x: Tensor, h: Tensor, c: Tensor, keeps: Sequence[Tensor | None], recurrent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All steps: ``from_x: [*B, T, 4 H]``, ``h`` and ``c: [*B, H]`` to ``([*B, T, H], (h, c))``."""
    outputs: list[Tensor] = []
    for gates, keep in zip(from_x.unbind(-2), keeps, strict=True):
        h, c = (h, c) if keep is None else (h * keep, c * keep)
        h, c = lstm_step(gates + recurrent(h), c)
        outputs.append(h)
    return torch.stack(outputs, -2), (h, c)


class GRU(_Recurrent):
    """A GRU layer with time ahead of the features, written in batched matrix products.

    ``x: [*B, T, F]``, ``h: [*B, H]`` (zeros by default), ``reset: [*B, T]`` (true where an episode starts:
    the state is zeroed ahead of that step) ``-> (outputs [*B, T, H], h [*B, H])``. The equations and
    weights are those of ``torch.nn.GRU``, which ``torch.func.vmap`` cannot map.

    >>> GRU(4, 8)
    GRU(4, 8)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, 3)

    def forward(self, x: Tensor, h: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over all steps."""
        h = x.new_zeros(*x.shape[:-2], self.hidden) if h is None else h
        from_x = F.linear(x, self.weight_ih, self.bias_ih)  # the inputs of all steps in one product
        return gru_scan(from_x, h, starts(x, reset), lambda h: F.linear(h, self.weight_hh, self.bias_hh))


class LSTM(_Recurrent):
    """An LSTM layer with time ahead of the features, written in batched matrix products.

    ``x: [*B, T, F]``, ``state: (h, c)`` of ``[*B, H]`` each (zeros by default), ``reset: [*B, T]`` ``->
    (outputs [*B, T, H], (h, c))``. The equations and weights are those of ``torch.nn.LSTM``.

    >>> LSTM(4, 8)
    LSTM(4, 8)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, 4)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over all steps."""
        zeros = x.new_zeros(*x.shape[:-2], self.hidden)
        h, c = (zeros, zeros) if state is None else state
        from_x = F.linear(x, self.weight_ih, self.bias_ih)
        return lstm_scan(from_x, h, c, starts(x, reset), lambda h: F.linear(h, self.weight_hh, self.bias_hh))
