"""Modules of several inputs and outputs that the plan knows when they are the whole network.

The recurrent layers run the very steps of ``fm.nets`` with stacked products in place of ``F.linear``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.attention import multihead
from functional_marl._lowering.steps import Leaves, Run, linear_of
from functional_marl.nets import GRU, LSTM, gru_scan, gru_step, lstm_scan, lstm_step, starts

__all__ = ["Cell", "lower_cell"]

# Inputs that all agents have ahead, [n, ...] a tensor, or None -> outputs [n, ...]; named as the module names them
Cell = Callable[..., Any]


def _expect(tensor: Tensor, *shape: int) -> None:
    """No broadcasting: where a module would, or would raise, it is asked itself."""
    if tensor.shape != shape:
        raise Unsupported(f"an input {list(tensor.shape[1:])} beside others that ask for {list(shape[1:])}")


def _gru(module: GRU, leaves: Leaves) -> Cell:
    def cell(run: Run, x: Tensor, h: Tensor | None = None, reset: Tensor | None = None) -> Any:
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(x)
        h = x.new_zeros(*x.shape[:-2], module.hidden) if h is None else h
        _expect(h, *x.shape[:-2], module.hidden)
        _expect(x[..., 0] if reset is None else reset, *x.shape[:-1])
        return gru_scan(from_x, h, starts(x, reset), linear_of(run, leaves, "weight_hh", "bias_hh"))

    return cell


def _lstm(module: LSTM, leaves: Leaves) -> Cell:
    def cell(run: Run, x: Tensor, state: Any = None, reset: Tensor | None = None) -> Any:
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(x)
        zeros = x.new_zeros(*x.shape[:-2], module.hidden)
        h, c = (zeros, zeros) if state is None else state
        for tensor in (h, c):
            _expect(tensor, *zeros.shape)
        _expect(x[..., 0] if reset is None else reset, *x.shape[:-1])
        return lstm_scan(from_x, h, c, starts(x, reset), linear_of(run, leaves, "weight_hh", "bias_hh"))

    return cell


def _gru_cell(module: nn.GRUCell, leaves: Leaves) -> Cell:
    def cell(run: Run, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = input.new_zeros(*input.shape[:-1], module.hidden_size) if hx is None else hx
        _expect(input, *input.shape[:-1][:2], module.input_size)  # [n, F] or [n, B, F], as the module takes
        _expect(h, *input.shape[:-1], module.hidden_size)
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(input)
        return gru_step(from_x, linear_of(run, leaves, "weight_hh", "bias_hh")(h), h)

    return cell


def _lstm_cell(module: nn.LSTMCell, leaves: Leaves) -> Cell:
    def cell(run: Run, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        zeros = input.new_zeros(*input.shape[:-1], module.hidden_size)
        h, c = (zeros, zeros) if hx is None else hx
        _expect(input, *input.shape[:-1][:2], module.input_size)
        for tensor in (h, c):
            _expect(tensor, *zeros.shape)
        from_x = linear_of(run, leaves, "weight_ih", "bias_ih")(input)
        gates = from_x + linear_of(run, leaves, "weight_hh", "bias_hh")(h)
        return lstm_step(gates, c)

    return cell


def _bilinear(module: nn.Bilinear, leaves: Leaves) -> Cell:
    def cell(run: Run, input1: Tensor, input2: Tensor) -> Tensor:
        weight, bias = leaves.rows(run, "weight"), leaves.rows(run, "bias")
        assert weight is not None
        lead = input1.shape[:-1]
        _expect(input2, *lead, module.in2_features)
        k = weight.shape[0]
        x, y = input1.reshape(k, -1, input1.shape[-1]), input2.reshape(k, -1, input2.shape[-1])
        out = torch.einsum("kbi,koij,kbj->kbo", x, weight, y)
        out = out if bias is None else out + bias.unsqueeze(1)
        return out.reshape(*lead, out.shape[-1])

    return cell


_CELLS: dict[type[nn.Module], Callable[[Any, Leaves], Cell]] = {
    GRU: _gru,
    LSTM: _lstm,
    nn.GRUCell: _gru_cell,
    nn.LSTMCell: _lstm_cell,
    nn.Bilinear: _bilinear,
    nn.MultiheadAttention: multihead,
}


def lower_cell(module: nn.Module, leaves: Leaves) -> Cell | None:
    """The rule of a module that is the whole network, or None where there is none."""
    rule = _CELLS.get(type(module))
    return None if rule is None else rule(module, leaves)
