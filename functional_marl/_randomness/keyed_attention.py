"""Attention in plain operations, with the dropout of its weights as an argument.

Torch's own functions sample inside of their kernels. Here is what they document, written again for calls under a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from functional_marl._errors import StructureError

__all__ = ["MULTIHEAD_ARGUMENTS", "as_summand", "multihead_attention", "scaled_dot_product"]

Drop = Callable[[Tensor], Tensor]  # the dropout of the attention weights

# the positional arguments of torch.nn.functional.multi_head_attention_forward
MULTIHEAD_ARGUMENTS = (
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
    weights = torch.ops.aten._safe_softmax(scores, -1)  # as in torch: 0, not NaN, where everything is masked
    return drop(weights) @ value


def multihead_attention(drop: Drop, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward`` with its arguments in a dict: ``[L, B, E]`` or ``[L, E]``.

    Raises:
        StructureError: a mask that torch does not accept either.
    """
    batched = arguments["query"].ndim == 3
    query, key, value = _projected(arguments, batched)  # [L, B, E], [S, B, E], [S, B, E]
    heads, (length, size, width) = arguments["num_heads"], query.shape
    static_key, static_value = arguments.get("static_k"), arguments.get("static_v")  # [B * heads, S, E / heads]
    source = key.shape[0] if static_key is None else static_key.shape[1]
    mask = _merged_mask(arguments, batched, (size, heads, length, source))
    if arguments.get("bias_k") is not None:
        key = torch.cat((key, arguments["bias_k"].expand(1, size, width)))
        value = torch.cat((value, arguments["bias_v"].expand(1, size, width)))
    # [L or S, B, E] -> [B, heads, L or S, E / heads]
    query, key, value = (t.unflatten(-1, (heads, width // heads)).permute(1, 2, 0, 3) for t in (query, key, value))
    key = key if static_key is None else static_key.unflatten(0, (size, heads))
    value = value if static_value is None else static_value.unflatten(0, (size, heads))
    if arguments["add_zero_attn"]:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    if mask is not None:  # the added keys are never masked
        mask = F.pad(mask, (0, key.shape[2] - mask.shape[-1]))
    weights: Tensor | None = None
    if arguments.get("need_weights", True):
        scores = (query * math.sqrt(query.shape[-1] ** -1.0)) @ key.mT
        weights = drop(torch.softmax(scores if mask is None else scores + mask, -1))  # [B, heads, L, S]
        out = weights @ value
        weights = weights.mean(1) if arguments.get("average_attn_weights", True) else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        out = scaled_dot_product(drop, query, key, value, mask)
    out = out.permute(2, 0, 1, 3).flatten(-2)  # [B, heads, L, E / heads] -> [L, B, E]
    out = F.linear(out, arguments["out_proj_weight"], arguments["out_proj_bias"])
    return out if batched else out.squeeze(1), weights


def _projected(arguments: dict[str, Any], batched: bool) -> list[Tensor]:
    """Query, key and value after their projections, with a batch axis."""
    inputs = [arguments[name] if batched else arguments[name].unsqueeze(1) for name in ("query", "key", "value")]
    bias = arguments["in_proj_bias"]
    if arguments.get("use_separate_proj_weight", False):
        weights = [arguments[f"{name}_proj_weight"] for name in "qkv"]
    elif arguments["query"] is arguments["key"] is arguments["value"]:
        return list(F.linear(inputs[0], arguments["in_proj_weight"], bias).chunk(3, -1))
    else:
        weights = arguments["in_proj_weight"].chunk(3)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def _merged_mask(arguments: dict[str, Any], batched: bool, sizes: tuple[int, int, int, int]) -> Tensor | None:
    """Both masks as one summand of the scores ``[B, heads, L, S]``. A true entry of a bool mask hides its key."""
    size, heads, length, source = sizes
    merged: Tensor | None = None
    padding, mask = arguments.get("key_padding_mask"), arguments.get("attn_mask")
    if mask is not None:
        _check_mask("attn_mask", mask, (length, source), (size * heads, length, source))
        merged = as_summand(mask, arguments["query"])
        merged = merged.unflatten(0, (size, heads)) if mask.ndim == 3 else merged
    if padding is not None:
        _check_mask("key_padding_mask", padding, (size, source) if batched else (source,))
        summand = as_summand(padding, arguments["query"]).reshape(size, 1, 1, source)
        merged = summand if merged is None else merged + summand
    return merged


def _check_mask(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    if tuple(mask.shape) not in shapes or not (mask.dtype == torch.bool or mask.is_floating_point()):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise StructureError(
            f"{name}: expected bools or floats of shape {expected}, got {mask.dtype} of {list(mask.shape)}"
        )


def as_summand(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of bools as 0 and -inf; a mask of floats as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
    return mask
