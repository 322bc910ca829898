"""Convolutions: one grouped convolution for all agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves, weight_and_bias
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rows import Rows, channels_apart, channels_together, over_rows
from functional_marl._lowering.steps import Activation, Fusible, Run, Step

# A grouped convolution of few agents is faster on channels_last inputs: 8 agents, batch 32, 16x16 images of 16
# channels, forward 1.1x to 1.8x, depending on the machine. With 64 agents it is not. Its backward is slower: forward
# and backward together take 1.2x as long. So channels_last is used only where no gradient is recorded.
CHANNELS_LAST_UP_TO = 16


def _leaves(module: Any) -> ExpectedLeaves:
    channels = (module.out_channels, module.in_channels // module.groups)
    return weight_and_bias(*channels, *module.kernel_size, bias=module.out_channels)


def _transposed_leaves(module: Any) -> ExpectedLeaves:
    channels = (module.in_channels, module.out_channels // module.groups)
    return weight_and_bias(*channels, *module.kernel_size, bias=module.out_channels)


@lowering_rule(nn.Conv1d, leaves=_leaves)
def conv1d(module: nn.Conv1d, context: Context) -> Fusible:
    """Over ``[B, C, L]`` or ``[C, L]``."""
    return _convolution(F.conv1d, module, context)


@lowering_rule(nn.Conv2d, leaves=_leaves)
def conv2d(module: nn.Conv2d, context: Context) -> Fusible:
    """Over ``[B, C, H, W]`` or ``[C, H, W]``."""
    return _convolution(F.conv2d, module, context)


@lowering_rule(nn.Conv3d, leaves=_leaves)
def conv3d(module: nn.Conv3d, context: Context) -> Fusible:
    """Over ``[B, C, D, H, W]`` or ``[C, D, H, W]``."""
    return _convolution(F.conv3d, module, context)


@lowering_rule(nn.ConvTranspose2d, leaves=_transposed_leaves)
def conv_transpose2d(module: nn.ConvTranspose2d, context: Context) -> Fusible:
    """Over ``[B, C, H, W]`` or ``[C, H, W]``."""
    return _convolution(F.conv_transpose2d, module, context, output_padding=module.output_padding)


def _convolution(convolve: Any, module: Any, context: Context, **options: Any) -> Fusible:
    """A grouped convolution: each agent has a group, or as many groups as the layer has."""
    dims, groups, channels = len(module.kernel_size), module.groups, module.in_channels
    options |= {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}")

    def make(activations: Sequence[Activation]) -> Step:
        def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
            if x.shape[2] != channels:
                raise Unsupported("a convolution over other channels")
            k, weight, bias = x.shape[0], rows("weight"), rows("bias")
            assert weight is not None
            flat = None if bias is None else bias.flatten()
            together = channels_together(x)
            if together.ndim == 4 and 1 < k <= CHANNELS_LAST_UP_TO and not torch.is_grad_enabled():
                together = together.contiguous(memory_format=torch.channels_last)
            out = convolve(together, weight.flatten(0, 1), flat, groups=k * groups, **options)
            for activation in activations:
                out = activation(out)
            return channels_apart(out, k)

        return over_rows(context.leaves, inner, lambda ndim: dims + 1, batch=(0, 1))

    return Fusible(make)
