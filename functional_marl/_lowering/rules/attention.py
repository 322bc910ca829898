"""Attention: ``nn.MultiheadAttention``, in two products and a softmax, which every transform of torch can handle."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rules.linear import linear_of, linear_rows
from functional_marl._lowering.steps import Run, WholeNetwork
from functional_marl._randomness.dropout_masks import batched_dropout
from functional_marl._randomness.keyed_attention import as_summand

__all__ = ["Attention", "attention"]

# query [n, B, L, E]; key and value [n, B, S, E]; what is added to the scores: None, or a tensor that broadcasts to
# [n, B, heads, L, S] -> output [n, B, L, E] and weights [n, B, heads, L, S]
Attention = Callable[[Run, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _leaves(module: nn.MultiheadAttention) -> ExpectedLeaves:
    width = module.embed_dim
    own_widths = module.kdim != width or module.vdim != width
    if own_widths or "bias_k" in module._parameters or module.add_zero_attn:
        raise Unsupported("kdim, vdim, add_bias_kv or add_zero_attn")
    if module.head_dim * module.num_heads != width:
        raise Unsupported("the widths of its heads do not add up to its width")
    params: dict[str, tuple[int, ...]] = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
    separate = {f"{name}_proj_weight": (0,) for name in "qkv"}  # registered, but None with these settings
    return ExpectedLeaves({**params, **separate}, optional=("in_proj_bias", *separate))


def attention(module: nn.MultiheadAttention, context: Context) -> Attention:
    """Scaled dot-product attention, its projections and its dropout (Vaswani et al. 2017, arXiv:1706.03762)."""
    if type(module.out_proj) is not NonDynamicallyQuantizableLinear:
        raise Unsupported("another out_proj than torch makes")
    leaves, out_proj = context.leaves, context.of(module.out_proj, "out_proj").leaves
    heads, width, p = module.num_heads, module.head_dim, module.dropout

    def attend(run: Run, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = leaves.rows(run, "in_proj_weight"), leaves.rows(run, "in_proj_bias")
        assert weight is not None
        if query is key and key is value:
            parts = linear_rows(weight, bias)(query).chunk(3, -1)
        else:
            biases = [None] * 3 if bias is None else bias.chunk(3, 1)
            projections = zip(weight.chunk(3, 1), biases, (query, key, value), strict=True)
            parts = [linear_rows(w, b)(x) for w, b, x in projections]
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
        return linear_of(run, out_proj, "weight", "bias")(out), weights

    return attend


def _masked(mask: Tensor, like: Tensor) -> Tensor:
    """The mask as numbers to add to the scores."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise Unsupported(f"a mask of {mask.dtype}")
    return as_summand(mask, like)


@lowering_rule(nn.MultiheadAttention, leaves=_leaves)
def multihead_attention(module: nn.MultiheadAttention, context: Context) -> WholeNetwork:
    """Attention as the whole network, with the attention weights that it returns by default."""
    attend, heads, batch_first = attention(module, context), module.num_heads, module.batch_first

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
            raise Unsupported("a query with a key or value of another shape")

        def as_batch(x: Tensor) -> Tensor:  # [n, B, L, E], [n, L, B, E] or [n, L, E] -> [n, B, L, E]
            return (x if batch_first else x.transpose(1, 2)) if batched else x.unsqueeze(1)

        q, k, v = map(as_batch, (query, key, value))
        n, size, length, source = *q.shape[:3], k.shape[2]
        if k.shape[1] != size or not q.shape[3] == k.shape[3] == module.embed_dim:
            raise Unsupported("a query with a key or value of another shape")
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
        weights = weights.mean(2)  # over the heads
        if not batched:
            return out.squeeze(1), weights.squeeze(1)
        return (out if batch_first else out.transpose(1, 2)), weights

    return WholeNetwork(cell)
