"""Attention for all agents at once: ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer``.

Written as two products and a softmax, which every transform of torch goes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from functional_marl._errors import Unsupported
from functional_marl._lowering.steps import Leaves, Run, Step, Value, linear_of, linear_rows
from functional_marl._randomness.dropout_masks import batched_dropout

__all__ = ["encoder_layer", "multihead"]

# query [n, B, L, E], key and value [n, B, S, E], and what is added to the scores, [n, B, heads, L, S] or what
# broadcasts to it -> [n, B, L, E], and the weights [n, B, heads, L, S]
Attention = Callable[[Run, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _attention(module: nn.MultiheadAttention, leaves: Leaves) -> Attention:
    """Scaled dot-product attention, its projections and its dropout (Vaswani et al. 2017, arXiv:1706.03762)."""
    ordinary = type(module.out_proj) is NonDynamicallyQuantizableLinear and "bias_k" not in leaves.names
    if not ordinary or "in_proj_weight" not in leaves.names or module.add_zero_attn:
        raise Unsupported("MultiheadAttention with kdim, vdim, add_bias_kv, add_zero_attn or another out_proj")
    heads, width, p = module.num_heads, module.head_dim, module.dropout

    def attend(run: Run, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = leaves.rows(run, "in_proj_weight"), leaves.rows(run, "in_proj_bias")
        assert weight is not None
        if query is key and key is value:
            parts = linear_rows(weight, bias)(query).chunk(3, -1)
        else:
            biases = [None] * 3 if bias is None else bias.chunk(3, 1)
            own = zip(weight.chunk(3, 1), biases, (query, key, value), strict=True)
            parts = [linear_rows(w, b)(x) for w, b, x in own]
        # [n, B, heads, L or S, E / heads]
        q, k, v = (part.unflatten(-1, (heads, width)).transpose(-2, -3) for part in parts)
        scores = (q * math.sqrt(1.0 / width)) @ k.mT
        if added is not None:
            scores = scores + (added if torch.is_autocast_enabled(scores.device.type) is False else added.to(scores))
        weights = torch.softmax(scores, -1)
        if run.train and p > 0.0:
            run.site += 1
            weights, _ = batched_dropout(F.dropout, weights, p, True, run.n_agents, run.key, run.randomness, run.site)
        out = (weights @ v).transpose(-2, -3).flatten(-2)
        return linear_of(run, leaves, "out_proj.weight", "out_proj.bias")(out), weights

    return attend


def _masked(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to the scores: minus infinity where a mask of bools is true."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
    if not mask.is_floating_point():
        raise Unsupported(f"a mask of {mask.dtype}")
    return mask


def multihead(module: nn.MultiheadAttention, leaves: Leaves) -> Callable[..., Any]:
    """``nn.MultiheadAttention`` as the whole network, with the weights that it returns by default."""
    attend, heads, batch_first = _attention(module, leaves), module.num_heads, module.batch_first

    def cell(
        run: Run,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        batched = query.ndim == 4
        if query.ndim not in (3, 4) or key.shape != value.shape or key.ndim != query.ndim:
            raise Unsupported("a query beside another key or value")

        def turned(x: Tensor) -> Tensor:  # as an agent sees it, [B, L, E], [L, B, E] or [L, E] -> [n, B, L, E], or back
            return (x if batch_first else x.transpose(1, 2)) if batched else x.unsqueeze(1)

        q, k, v = map(turned, (query, key, value))
        n, size, length, source = *q.shape[:3], k.shape[2]
        if k.shape[1] != size or not q.shape[3] == k.shape[3] == module.embed_dim:
            raise Unsupported("a query beside another key or value")
        added = None
        if attn_mask is not None:
            shape = (length, source) if attn_mask.ndim == 3 else (size * heads, length, source)
            if tuple(attn_mask.shape[1:]) != shape:
                raise Unsupported("a mask of another shape")
            mask = _masked(attn_mask, q)
            added = mask[:, None, None] if mask.ndim == 3 else mask.unflatten(1, (size, heads))
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape[1:]) != ((size, source) if batched else (source,)):
                raise Unsupported("a mask of another shape")
            padding = _masked(key_padding_mask, q).reshape(n, size, 1, 1, source)
            added = padding if added is None else added + padding
        out, weights = attend(run, q, k, v, added)
        weights = weights.mean(2)  # over heads
        if not batched:
            return out.squeeze(1), weights.squeeze(1)
        return (out if batch_first else out.transpose(1, 2)), weights

    return cell


def encoder_layer(
    module: nn.TransformerEncoderLayer, leaves: Leaves, norms: tuple[Step, Step], dropout: Step, feed_forward: Step
) -> Step:
    """``nn.TransformerEncoderLayer`` over ``[B, L, E]``, ``[L, B, E]`` or ``[L, E]``, without masks.

    ``leaves`` are those of its attention; its other parts come as steps.
    """
    attend, batch_first = _attention(module.self_attn, leaves), module.self_attn.batch_first

    def mixed(run: Run, h: Tensor) -> Tensor:
        if h.ndim not in (3, 4):
            raise Unsupported(f"a transformer layer over {h.ndim - 1} axes")
        lone, turn = h.ndim == 3, h.ndim == 4 and not batch_first
        x = h.unsqueeze(1) if lone else h.transpose(1, 2) if turn else h
        out, _ = attend(run, x, x, x, None)
        out = out.squeeze(1) if lone else out.transpose(1, 2) if turn else out
        return dropout(run, out, True)[0]

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        h = h if mapped else h.expand(run.n_agents, *h.shape)
        for part, norm in zip((mixed, lambda run, h: feed_forward(run, h, True)[0]), norms, strict=True):
            h = h + part(run, norm(run, h, True)[0]) if module.norm_first else norm(run, h + part(run, h), True)[0]
        return h, True

    return step
