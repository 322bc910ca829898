"""Attention in plain operations, with the dropout of its weights as an argument.

Torch's own functions draw inside; what they document is written here a second time, for calls under a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from functional_marl._errors import StructureError

__all__ = ["MULTIHEAD_NAMES", "multihead", "scaled_dot_product"]

Drop = Callable[[Tensor], Tensor]

# the positional arguments of torch.nn.functional.multi_head_attention_forward
MULTIHEAD_NAMES = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask"),
    *("need_weights", "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("static_k", "static_v", "average_attn_weights", "is_causal"),
)


def scaled_dot_product(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``: ``[..., L, E]``, ``[..., S, E]`` -> ``[..., L, E]``."""
    if grouped:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    # [..., L, E] x [..., E, S] -> [..., L, S]
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        if mask is not None:
            raise ValueError("scaled_dot_product_attention: attn_mask and is_causal=True exclude each other")
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.ops.aten._safe_softmax(scores, -1)  # torch's own: 0, not NaN, where everything is masked
    return drop(weights) @ value


def multihead(drop: Drop, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward`` of arguments by name: ``[L, B, E]`` or ``[L, E]``.

    Raises:
        StructureError: a mask that torch refuses.
    """
    batched = given["query"].ndim == 3
    query, key, value = _projected(given, batched)  # [L, B, E], [S, B, E], [S, B, E]
    heads, (length, size, width) = given["num_heads"], query.shape
    static_key, static_value = given.get("static_k"), given.get("static_v")  # [B * heads, S, E / heads]
    source = key.shape[0] if static_key is None else static_key.shape[1]
    mask = _merged_mask(given, batched, (size, heads, length, source))
    if given.get("bias_k") is not None:
        key = torch.cat((key, given["bias_k"].expand(1, size, width)))
        value = torch.cat((value, given["bias_v"].expand(1, size, width)))
    # [L or S, B, E] -> [B, heads, L or S, E / heads]
    query, key, value = (t.unflatten(-1, (heads, width // heads)).permute(1, 2, 0, 3) for t in (query, key, value))
    key = key if static_key is None else static_key.unflatten(0, (size, heads))
    value = value if static_value is None else static_value.unflatten(0, (size, heads))
    if given["add_zero_attn"]:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    if mask is not None:  # nothing hides what was added
        mask = F.pad(mask, (0, key.shape[2] - mask.shape[-1]))
    weights: Tensor | None = None
    if given.get("need_weights", True):
        scores = (query * math.sqrt(query.shape[-1] ** -1.0)) @ key.mT
        weights = drop(torch.softmax(scores if mask is None else scores + mask, -1))  # [B, heads, L, S]
        out = weights @ value
        weights = weights.mean(1) if given.get("average_attn_weights", True) else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        out = scaled_dot_product(drop, query, key, value, mask)
    out = out.permute(2, 0, 1, 3).flatten(-2)  # [B, heads, L, E / heads] -> [L, B, E]
    out = F.linear(out, given["out_proj_weight"], given["out_proj_bias"])
    return out if batched else out.squeeze(1), weights


def _projected(given: dict[str, Any], batched: bool) -> list[Tensor]:
    """Query, key and value through their projections, with a batch axis."""
    inputs = [given[name] if batched else given[name].unsqueeze(1) for name in ("query", "key", "value")]
    bias = given["in_proj_bias"]
    if given.get("use_separate_proj_weight", False):
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    elif given["query"] is given["key"] is given["value"]:
        return list(F.linear(inputs[0], given["in_proj_weight"], bias).chunk(3, -1))
    else:
        weights = given["in_proj_weight"].chunk(3)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def _merged_mask(given: dict[str, Any], batched: bool, sizes: tuple[int, int, int, int]) -> Tensor | None:
    """Both masks as what is added to the scores ``[B, heads, L, S]``; an entry of a mask of bools hides."""
    size, heads, length, source = sizes
    merged: Tensor | None = None
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    if mask is not None:
        _check("attn_mask", mask, (length, source), (size * heads, length, source))
        merged = _added(mask, given["query"])
        merged = merged.unflatten(0, (size, heads)) if mask.ndim == 3 else merged
    if padding is not None:
        _check("key_padding_mask", padding, (size, source) if batched else (source,))
        added = _added(padding, given["query"]).reshape(size, 1, 1, source)
        merged = added if merged is None else merged + added
    return merged


def _check(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    if tuple(mask.shape) not in shapes or not (mask.dtype == torch.bool or mask.is_floating_point()):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise StructureError(
            f"{name}: expected bools or floats of shape {expected}, got {mask.dtype} of {list(mask.shape)}"
        )


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
    return mask
