"""Recurrent layers as the whole network, and the batching rules of torch's recurrent cells.

``fm.nets.gru`` and ``fm.nets.lstm`` run the same step functions here as in the module, with batched products in place
of ``F.linear``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.registry import Context, batching_rule, lowering_rule
from functional_marl._lowering.rules.linear import linear_of
from functional_marl._lowering.steps import Run, WholeNetwork, check_shape
from functional_marl.nets import GRU, LSTM, gru_scan, gru_step, lstm_scan, lstm_step, state_factors


def _leaves(gates: int, inputs: str, hidden: str) -> Callable[[Any], ExpectedLeaves]:
    """The leaves of a layer with so many gates; its sizes are attributes of these names."""

    def expected(module: Any) -> ExpectedLeaves:
        rows, columns = gates * getattr(module, hidden), (getattr(module, inputs), getattr(module, hidden))
        weights = {"weight_ih": (rows, columns[0]), "weight_hh": (rows, columns[1])}
        return ExpectedLeaves({**weights, "bias_ih": (rows,), "bias_hh": (rows,)}, optional=("bias_ih", "bias_hh"))

    return expected


@lowering_rule(GRU, leaves=_leaves(3, "inputs", "hidden"))
def lower_gru(module: GRU, context: Context) -> WholeNetwork:
    """``fm.nets.gru``: all time steps."""
    leaves = context.leaves

    def cell(run: Run, x: Tensor, h: Tensor | None = None, reset: Tensor | None = None) -> Any:
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(x)
        h = x.new_zeros(*x.shape[:-2], module.hidden) if h is None else h
        check_shape(h, *x.shape[:-2], module.hidden)
        check_shape(x[..., 0] if reset is None else reset, *x.shape[:-1])
        return gru_scan(from_x, h, state_factors(x, reset), linear_of(run, leaves, "weight_hh", "bias_hh"))

    return WholeNetwork(cell)


@lowering_rule(LSTM, leaves=_leaves(4, "inputs", "hidden"))
def lower_lstm(module: LSTM, context: Context) -> WholeNetwork:
    """``fm.nets.lstm``: all time steps."""
    leaves = context.leaves

    def cell(run: Run, x: Tensor, state: Any = None, reset: Tensor | None = None) -> Any:
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(x)
        zeros = x.new_zeros(*x.shape[:-2], module.hidden)
        h, c = (zeros, zeros) if state is None else state
        for tensor in (h, c):
            check_shape(tensor, *zeros.shape)
        check_shape(x[..., 0] if reset is None else reset, *x.shape[:-1])
        return lstm_scan(from_x, h, c, state_factors(x, reset), linear_of(run, leaves, "weight_hh", "bias_hh"))

    return WholeNetwork(cell)


@lowering_rule(nn.GRUCell, leaves=_leaves(3, "input_size", "hidden_size"))
def lower_gru_cell(module: nn.GRUCell, context: Context) -> WholeNetwork:
    """One step of a GRU."""
    leaves = context.leaves

    def cell(run: Run, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = input.new_zeros(*input.shape[:-1], module.hidden_size) if hx is None else hx
        check_shape(input, *input.shape[:-1][:2], module.input_size)  # [n, F] or [n, B, F], as the module takes it
        check_shape(h, *input.shape[:-1], module.hidden_size)
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(input)
        return gru_step(from_x, linear_of(run, leaves, "weight_hh", "bias_hh")(h), h)

    return WholeNetwork(cell)


@lowering_rule(nn.LSTMCell, leaves=_leaves(4, "input_size", "hidden_size"))
def lower_lstm_cell(module: nn.LSTMCell, context: Context) -> WholeNetwork:
    """One step of an LSTM."""
    leaves = context.leaves

    def cell(run: Run, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        zeros = input.new_zeros(*input.shape[:-1], module.hidden_size)
        h, c = (zeros, zeros) if hx is None else hx
        check_shape(input, *input.shape[:-1][:2], module.input_size)
        for tensor in (h, c):
            check_shape(tensor, *zeros.shape)
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(input)
        gates = from_x + linear_of(run, leaves, "weight_hh", "bias_hh")(h)
        return lstm_step(gates, c)

    return WholeNetwork(cell)


# --- batching rules ------------------------------------------------------------------------------------


@batching_rule(torch.gru_cell, equal_batches=True)
def gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of a GRU."""
    reset_x, update_x, new_x = linear(x, w_ih, b_ih).chunk(3, -1)
    reset_h, update_h, new_h = linear(h, w_hh, b_hh).chunk(3, -1)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + torch.sigmoid(update_x + update_h) * (h - new)


@batching_rule(torch.rnn_tanh_cell, equal_batches=True)
def rnn_tanh_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of an RNN with tanh."""
    return torch.tanh(linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh))


@batching_rule(torch.rnn_relu_cell, equal_batches=True)
def rnn_relu_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """One step of an RNN with ReLU."""
    return torch.relu(linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh))
