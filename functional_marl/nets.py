"""Networks of one agent that batch well, for the argument ``build`` of :func:`functional_marl.network`.

Each function returns a factory: ``fm.network(fm.nets.mlp(16, 64, 64, 4), n_agents=3)``. The modules are made of torch's
own layers and operations. The factories can be pickled.
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

from functional_marl._check_arguments import as_index, is_list, short_repr
from functional_marl._errors import StructureError

__all__ = ["GRU", "LSTM", "ConvNet", "convnet", "gru", "lstm", "mlp"]

Activation = Callable[[], nn.Module]


def _check_activation(where: str, activation: Any) -> None:
    """Check without a call that ``activation`` can build a module: a call might use random numbers.

    Raises:
        StructureError: a module that is built already, a function of tensors, or nothing that can be called.
    """
    builds = issubclass(activation, nn.Module) if isinstance(activation, type) else callable(activation)
    if not builds or isinstance(activation, nn.Module | BuiltinFunctionType):
        raise StructureError(
            f"{where}: expected as activation a module class such as nn.ReLU, or a function that builds a module, "
            f"got {short_repr(activation)}"
        )


def _as_ints(values: Any, what: str, least: int) -> tuple[int, ...]:
    """A list or tuple of ints as a tuple.

    Raises:
        StructureError: something else, or an int below ``least``.
    """
    if not is_list(values):
        raise StructureError(f"{what}: expected a list of ints, got {short_repr(values)}")
    return tuple(as_index(value, what, least) for value in values)


def mlp(*sizes: int, activation: Activation = nn.Tanh) -> Callable[[], nn.Module]:
    """A multi-layer perceptron over the last axis: ``[*B, sizes[0]] -> [*B, sizes[-1]]``.

    Raises:
        StructureError: fewer than two sizes; a size that is not a positive int; an ``activation`` that builds no
            module (a name, a function of tensors, a module that is built already).

    >>> mlp(4, 8, 2)()
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Tanh()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if len(sizes) < 2:
        raise StructureError(f"mlp: expected at least an input and an output size as sizes, got {sizes}")
    sizes = _as_ints(sizes, "mlp: sizes", 1)
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

    Args:
        channels: the channels of the input, then of every layer.
        kernel, stride, padding: one int for all layers, or a list with an int or a pair of ints for each layer.
        activation: a module class, or a function that builds a module; there is one after every convolution.

    Raises:
        StructureError: fewer than two channel counts; a value that is not an int; a list of another length; an
            ``activation`` that builds no module.

    >>> convnet([3, 8, 8])()(torch.zeros(5, 3, 9, 9)).shape
    torch.Size([5, 200])
    """
    channels = _as_ints(channels, "convnet: channels", 1)
    if len(channels) < 2:
        raise StructureError(f"convnet: channels: expected those of the input and of every layer, got {channels}")
    n = len(channels) - 1
    each = (
        _each_layer(kernel, n, "kernel", 1),
        _each_layer(stride, n, "stride", 1),
        _each_layer(padding, n, "padding", 0),
    )
    _check_activation("convnet", activation)
    return partial(ConvNet, channels, *each, activation)


def _each_layer(value: Any, n: int, what: str, least: int) -> tuple[Any, ...]:
    """One int for all ``n`` layers, or an int or a pair of ints for each: as a tuple of ``n``.

    Raises:
        StructureError: another length, or a value that is not an int.
    """
    what = f"convnet: {what}"
    if not is_list(value):
        return (as_index(value, what, least),) * n
    each: list[Any] = list(value)
    if len(each) != n:
        raise StructureError(f"{what}: expected an int, or one for each of {n} layers, got {short_repr(value)}")
    return tuple(
        _as_ints(one, what, least) if isinstance(one, list | tuple) else as_index(one, what, least) for one in each
    )


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

    One agent sees inputs ``[*B, T, F]`` and a state ``[*B, H]``. The agent axis comes after the batch axes: use
    ``agent_dim=1`` for inputs ``[B, n, T, F]`` and states ``[B, n, H]``.

    Raises:
        StructureError: a size that is not a positive int.

    >>> outputs, last = gru(4, 8)()(torch.zeros(5, 7, 4))
    >>> outputs.shape, last.shape
    (torch.Size([5, 7, 8]), torch.Size([5, 8]))
    """
    return partial(GRU, as_index(inputs, "inputs", 1), as_index(hidden, "hidden", 1))


def lstm(inputs: int, hidden: int) -> Callable[[], nn.Module]:
    """An LSTM over time (Hochreiter and Schmidhuber 1997): see :class:`LSTM`.

    Raises:
        StructureError: a size that is not a positive int.

    >>> outputs, (h, c) = lstm(4, 8)()(torch.zeros(5, 7, 4))
    >>> outputs.shape, h.shape, c.shape
    (torch.Size([5, 7, 8]), torch.Size([5, 8]), torch.Size([5, 8]))
    """
    return partial(LSTM, as_index(inputs, "inputs", 1), as_index(hidden, "hidden", 1))


class _Recurrent(nn.Module):
    """The weights of one recurrent layer, with torch's names and torch's initialization."""

    def __init__(self, inputs: int, hidden: int, gates: int) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden = as_index(inputs, "inputs", 1), as_index(hidden, "hidden", 1)
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(gates * hidden))
        self.bias_hh = nn.Parameter(torch.empty(gates * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform between minus and plus ``hidden ** -0.5``, as in torch's recurrent layers."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden**-0.5), self.hidden**-0.5)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.inputs}, {self.hidden}"


def state_factors(x: Tensor, reset: Tensor | None) -> list[Tensor | None]:
    """Factors for the state before each of ``T`` steps: ``[*B, 1]``, 0 where an episode starts, else 1; None for 1."""
    if reset is None:
        return [None] * x.shape[-2]
    return list((~reset.bool()).to(x.dtype).unsqueeze(-1).unbind(-2))


def _check_recurrent(x: Any, states: Sequence[tuple[str, Any]], reset: Any, inputs: int, hidden: int) -> None:
    """Check the inputs of a recurrent network: ``x: [*B, T, F]``, states ``[*B, H]``, ``reset: [*B, T]``.

    Raises:
        StructureError: another shape, or an input that is not a tensor.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-1] != inputs:
        raise StructureError(f"x: expected a tensor [*B, T, {inputs}], got {short_repr(x)}")
    batch = x.shape[:-2]
    for name, state in states:
        if not _fits(state, (*batch, hidden), x):
            raise StructureError(
                f"{name}: expected a tensor {[*batch, hidden]} beside x {list(x.shape)}, got {short_repr(state)}"
            )
    if reset is not None and not _fits(reset, x.shape[:-1], x):
        raise StructureError(
            f"reset: expected a tensor {list(x.shape[:-1])} beside x {list(x.shape)}, got {short_repr(reset)}"
        )


def _fits(tensor: Any, full: Sequence[int], x: Tensor) -> bool:
    """Whether it is a tensor on the device of ``x`` that broadcasts to the full shape, with the full last axis."""
    if not isinstance(tensor, Tensor) or tensor.device != x.device:
        return False
    shape = tensor.shape
    if not 0 < len(shape) <= len(full) or shape[-1] != full[-1]:
        return False
    return all(a == b or a == 1 for a, b in zip(reversed(shape), reversed(full), strict=False))


def gru_step(from_x: Tensor, from_h: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU from its gates ``[*B, 3 H]`` (reset, update, new): ``[*B, H]``."""
    size = h.shape[-1]
    reset, update = torch.sigmoid(from_x[..., : 2 * size] + from_h[..., : 2 * size]).chunk(2, -1)
    new = torch.tanh(torch.addcmul(from_x[..., 2 * size :], reset, from_h[..., 2 * size :]))
    # Under autocast the gates have a lower dtype than the state. The state keeps its dtype.
    return torch.lerp(new.to(h.dtype), h, update.to(h.dtype))


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM from its gates ``[*B, 4 H]`` (input, forget, cell, output): ``(h, c)``."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_scan(
    from_x: Tensor, h: Tensor, factors: Sequence[Tensor | None], recurrent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """All steps: ``from_x: [*B, T, 3 H]``, ``h: [*B, H]`` to ``([*B, T, H], [*B, H])``."""
    outputs: list[Tensor] = []
    for gates, factor in zip(from_x.unbind(-2), factors, strict=True):
        h = h if factor is None else h * factor
        h = gru_step(gates, recurrent(h), h)
        outputs.append(h)
    return torch.stack(outputs, -2), h


def lstm_scan(
    from_x: Tensor, h: Tensor, c: Tensor, factors: Sequence[Tensor | None], recurrent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All steps: ``from_x: [*B, T, 4 H]``, ``h`` and ``c: [*B, H]`` to ``([*B, T, H], (h, c))``."""
    outputs: list[Tensor] = []
    for gates, factor in zip(from_x.unbind(-2), factors, strict=True):
        h, c = (h, c) if factor is None else (h * factor, c * factor)
        h, c = lstm_step(gates + recurrent(h), c)
        outputs.append(h)
    return torch.stack(outputs, -2), (h, c)


class GRU(_Recurrent):
    """A GRU layer over ``[*B, T, F]``, written in matrix products.

    ``x: [*B, T, F]``, ``h: [*B, H]`` (zeros by default), ``reset: [*B, T]`` ``-> (outputs [*B, T, H], h [*B, H])``.
    Where ``reset`` is true an episode starts: the state becomes zero before that step. Equations and weights are those
    of ``torch.nn.GRU``, which ``torch.func.vmap`` cannot batch.

    Raises:
        StructureError: an input, a state or a ``reset`` of another shape.

    >>> GRU(4, 8)
    GRU(4, 8)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, 3)

    def forward(self, x: Tensor, h: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x [*B, T, F]`` ``-> (outputs [*B, T, H], last h [*B, H])``."""
        _check_recurrent(x, [] if h is None else [("h", h)], reset, self.inputs, self.hidden)
        h = x.new_zeros(*x.shape[:-2], self.hidden) if h is None else h
        from_x = F.linear(x, self.weight_ih, self.bias_ih)  # all time steps in one product
        return gru_scan(from_x, h, state_factors(x, reset), lambda h: F.linear(h, self.weight_hh, self.bias_hh))


class LSTM(_Recurrent):
    """An LSTM layer over ``[*B, T, F]``, written in matrix products.

    ``x: [*B, T, F]``, ``state: (h, c)`` of ``[*B, H]`` each (zeros by default), ``reset: [*B, T]`` ``->
    (outputs [*B, T, H], (h, c))``. Where ``reset`` is true an episode starts: the state becomes zero before that step.
    Equations and weights are those of ``torch.nn.LSTM``, which ``torch.func.vmap`` cannot batch.

    Raises:
        StructureError: an input, a state or a ``reset`` of another shape; a state that is no pair.

    >>> LSTM(4, 8)
    LSTM(4, 8)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, 4)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``x [*B, T, F]`` ``-> (outputs [*B, T, H], last (h, c))``."""
        if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):  # pyright: ignore
            raise StructureError(f"state: expected a pair (h, c), got {short_repr(state)}")
        _check_recurrent(
            x,
            [] if state is None else [("h of state", state[0]), ("c of state", state[1])],
            reset,
            self.inputs,
            self.hidden,
        )
        zeros = x.new_zeros(*x.shape[:-2], self.hidden)
        h, c = (zeros, zeros) if state is None else state
        from_x = F.linear(x, self.weight_ih, self.bias_ih)
        return lstm_scan(from_x, h, c, state_factors(x, reset), lambda h: F.linear(h, self.weight_hh, self.bias_hh))
