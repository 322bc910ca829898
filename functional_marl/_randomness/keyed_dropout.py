"""Randomness of ``fm.apply`` under a key: dropout and attention sample from it, any other random operation raises.

:func:`run_keyed` runs a forward inside of :class:`KeyedDropout`. That mode replaces each function in the table
``_SERVED`` by one that samples from ``(key, agent, site)``: the agent is the stream, and the site counts the keyed
operations of one forward. Both are local to the thread and to the call.

To add a keyed random operation:

1. Write a function ``(mode, func, args, kwargs)`` in place of ``func(*args, **kwargs)``. Before it samples, it adds 1
   to ``mode.site``. It then samples from ``(mode.key, mode.agent, mode.site)``, as :meth:`KeyedDropout.drop` does by
   :func:`functional_marl.random.bernoulli`. Where ``mode.forbidden`` is true it raises instead.
2. Add one line to ``_SERVED``: the function of torch, and yours.

The loop and vmap need nothing else. A lowering rule of the plan has to sample the same numbers: for dropout this is
:func:`functional_marl._randomness.dropout_masks.batched_dropout`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from functional_marl import _torch_compat
from functional_marl._errors import RandomnessError
from functional_marl._randomness.dropout_masks import (
    DROPOUTS,
    DropoutKind,
    apply_mask,
    forbidden_dropout,
    keyed_probability,
    mask_shape,
    samples_mask,
)
from functional_marl._randomness.forbid_random_ops import ForbidRandomOps
from functional_marl._randomness.keyed_attention import MULTIHEAD_ARGUMENTS, multihead_attention, scaled_dot_product
from functional_marl._randomness.random_ops import is_random_function
from functional_marl.random import bernoulli

__all__ = ["KeyedDropout", "run_keyed"]

_REASON = (
    "only dropout and attention sample from the key; pass random numbers as an input, or leave key= out to use "
    "torch's global generator"
)


def run_keyed(run: Callable[[], Any], key: Tensor, agent: int | Tensor, forbidden: bool) -> Any:
    """``run()``, where dropouts sample from the key, and any other random op raises an error with its name."""
    # A compiled region has no dispatch modes. There only the names of the functions are checked.
    if torch.compiler.is_dynamo_compiling():
        with KeyedDropout(key, agent, forbidden):
            return run()
    with ForbidRandomOps(_REASON) as guard, KeyedDropout(key, agent, forbidden, guard):
        return run()


class KeyedDropout(TorchFunctionMode):
    """Dropouts sample from ``(key, agent, site)``. The site counts the dropouts of one forward.

    Args:
        key: ``[2]``.
        agent: which stream of the key, an int64 scalar; under vmap the agent's index.
        forbidden: raise where a dropout would sample (``randomness="error"``).
        guard: the dispatch mode that finds other random ops, if there is one.
    """

    def __init__(
        self, key: Tensor, agent: int | Tensor, forbidden: bool = False, guard: ForbidRandomOps | None = None
    ) -> None:
        super().__init__()
        self.guard = guard
        self.key = key
        self.agent = agent
        self.forbidden = forbidden
        self.site = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or its keyed version."""
        kwargs = kwargs or {}
        served = _SERVED.get(func)
        if served is not None:
            return served(self, func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "unflatten":  # the method is Python code around super(), which dynamo cannot trace here
            return torch.unflatten(*args, **kwargs)
        if is_random_function(name, args, kwargs):
            raise RandomnessError(f"random operation {name}: {_REASON}")
        return func(*args, **kwargs)

    def drop(self, x: Tensor, p: float, kind: DropoutKind) -> Tensor:
        """``x`` after a dropout whose mask comes from the next site."""
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout: expected a probability in [0, 1], got {p}")
        if self.forbidden and samples_mask(p, x):
            raise forbidden_dropout()
        self.site += 1
        shape = mask_shape(kind, tuple(x.shape))
        # Philox takes 140 integer operations. Each of them would be a call of Python under the guard.
        with contextlib.nullcontext() if self.guard is None else _torch_compat.suspended(self.guard):
            drop = bernoulli(self.key.to(x.device), p, shape, self.site, self.agent)
            return apply_mask(x, ~drop, keyed_probability(p), kind.alpha)


def _dropout(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any of the dropout functions. Their third argument is called ``training`` or ``train``."""
    arguments = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    x: Tensor = arguments["input"]
    p: float = arguments.get("p", 0.5)
    if not arguments.get("training", arguments.get("train", True)) or p == 0.0:
        return x
    out = mode.drop(x, p, DROPOUTS[func])
    return x.copy_(out) if arguments.get("inplace", False) else out


def _attention(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention with keyed dropout on the weights."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments = dict(zip(names, args, strict=False)) | kwargs
    p: float = arguments.pop("dropout_p", 0.0)
    if p == 0.0:
        return func(*args, **kwargs)
    mask, grouped = arguments.pop("attn_mask", None), arguments.pop("enable_gqa", False)
    return scaled_dot_product(
        lambda weights: mode.drop(weights, p, DropoutKind()), mask=mask, grouped=grouped, **arguments
    )


def _multihead_attention(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Multi-head attention with keyed dropout on the weights."""
    arguments = dict(zip(MULTIHEAD_ARGUMENTS, args, strict=False)) | kwargs
    p: float = arguments["dropout_p"]
    # torch raises its own error for a causal call without a mask
    causal_without_mask = arguments.get("is_causal", False) and arguments.get("attn_mask") is None
    if p == 0.0 or not arguments.get("training", True) or causal_without_mask:
        return func(*args, **kwargs)
    return multihead_attention(lambda weights: mode.drop(weights, p, DropoutKind()), arguments)


# function of torch -> its keyed version
_SERVED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(DROPOUTS, _dropout),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multihead_attention,
}
