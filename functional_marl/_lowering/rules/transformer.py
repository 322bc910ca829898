"""Transformers: ``nn.TransformerEncoder`` and its layers, without masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.fusion import sequence
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rules.attention import attention
from functional_marl._lowering.steps import Layer, Run, Step, Value

# activation= as a function -> the same as a module
_ACTIVATIONS: dict[Callable[..., Tensor], type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU}


@lowering_rule(nn.TransformerEncoder, container=True)
def encoder(module: nn.TransformerEncoder, context: Context) -> list[Layer]:
    """Its layers in order, then its norm."""
    layers = context.children(module.layers, "layers")
    return layers if module.norm is None else [*layers, *context.lower(module.norm, "norm")]


@lowering_rule(nn.TransformerEncoderLayer, container=True)
def encoder_layer(module: nn.TransformerEncoderLayer, context: Context) -> Step:
    """Over ``[B, L, E]``, ``[L, B, E]`` or ``[L, E]``: attention and a feed-forward network, each with a residual."""
    if type(module.self_attn) is not nn.MultiheadAttention:
        raise Unsupported("another attention than torch makes")
    attend = attention(module.self_attn, context.of(module.self_attn, "self_attn"))
    batch_first = module.self_attn.batch_first

    def parts(*names: str) -> Step:
        return sequence([layer for name in names for layer in _part(module, name, context)])

    norms, dropout = (parts("norm1"), parts("norm2")), parts("dropout1")
    feed_forward = parts("linear1", "activation", "dropout", "linear2", "dropout2")

    def self_attention(run: Run, h: Tensor) -> Tensor:
        if h.ndim not in (3, 4):
            raise Unsupported(f"a transformer layer over {h.ndim - 1} axes")
        lone, swapped = h.ndim == 3, h.ndim == 4 and not batch_first
        x = h.unsqueeze(1) if lone else h.transpose(1, 2) if swapped else h
        out, _ = attend(run, x, x, x, None)
        out = out.squeeze(1) if lone else out.transpose(1, 2) if swapped else out
        return dropout(run, out, True)[0]

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        h = h if mapped else h.expand(run.n_agents, *h.shape)
        for part, norm in zip((self_attention, lambda run, h: feed_forward(run, h, True)[0]), norms, strict=True):
            h = h + part(run, norm(run, h, True)[0]) if module.norm_first else norm(run, h + part(run, h), True)[0]
        return h, True

    return step


def _part(module: nn.TransformerEncoderLayer, name: str, context: Context) -> list[Layer]:
    """One part of the layer; the activation may be a function."""
    part: Any = getattr(module, name)
    if part in _ACTIVATIONS:
        part = _ACTIVATIONS[part]()
    if not isinstance(part, nn.Module):
        raise Unsupported(f"no rule for {name}={part!r}")
    return context.lower(part, name)
