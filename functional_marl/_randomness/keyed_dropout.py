"""Keeping a forward off the global generators, locally to the thread and to a ``with`` block.

:class:`KeyedDropout` computes the dropouts of a forward from a key. Any other random op raises.
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
from functional_marl._randomness.dropout_masks import DROPOUTS, Dropout, draws, dropped, forbidden, mask_shape, rounded
from functional_marl._randomness.keyed_attention import MULTIHEAD_NAMES, multihead, scaled_dot_product
from functional_marl._torch_compat import LocalMode, schema
from functional_marl.random import bernoulli

__all__ = ["ForbidRandomOps", "given_generator", "is_random", "run_keyed"]


# An op that is tagged as random does not draw when one of its arguments says so.
_QUIET = {"dropout_p": 0.0, "dropout": 0.0, "train": False, "training": False}


_kept: dict[Any, list[tuple[int, str, Any]] | None] = {}  # functools.cache would make dynamo warn


def _quiet_arguments(func: Any) -> list[tuple[int, str, Any]] | None:
    """Where an op has arguments that keep it from drawing, and their defaults; None if it never draws."""
    if func not in _kept:
        arguments = enumerate(schema(func).arguments) if torch.Tag.nondeterministic_seeded in func.tags else None
        _kept[func] = arguments and [(place, a.name, a.default_value) for place, a in arguments if a.name in _QUIET]
    return _kept[func]


def is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an aten op draws: attention is tagged as random also when nothing drops."""
    quiet = _quiet_arguments(func)
    if quiet is None:
        return False
    for place, name, default in quiet:
        if (args[place] if place < len(args) else kwargs.get(name, default)) == _QUIET[name]:
            return False
    return True


def given_generator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator | None:
    """The generator that a call of an aten op was given."""
    return next((value for value in (*kwargs.values(), *args) if isinstance(value, torch.Generator)), None)


class ForbidRandomOps(LocalMode):
    """Raises :class:`RandomnessError` at the first random op, before it draws."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op unless it draws."""
        kwargs = kwargs or {}
        if is_random(func, args, kwargs):
            raise RandomnessError(f"random operation {func}: {self.why}")
        return func(*args, **kwargs)


# Functions that draw, by name: a compiled call has no dispatch mode that could see their ops.
_DRAWING = frozenset(
    [
        "bernoulli",
        "bernoulli_",
        "binomial",
        "cauchy_",
        "exponential_",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "geometric_",
        "gumbel_softmax",
        "log_normal_",
        "multinomial",
        "normal",
        "normal_",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "random_",
        "randperm",
        "rrelu",
        "rrelu_",
        "uniform_",
        "_standard_gamma",
        "_sample_dirichlet",
    ]
)
_RRELU, _RRELU_NAMES = ("rrelu", "rrelu_"), ("input", "lower", "upper", "training", "inplace")
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_WHY = (
    "only dropouts and attention draw from the key; pass random numbers in as an input, or leave key= out to use "
    "torch's global generator"
)


class KeyedDropout(TorchFunctionMode):
    """Dropouts draw from ``(key, agent, site)``, where the site counts the draws of one forward.

    Args:
        key: ``[2]``.
        agent: the stream of the key to draw from, an int64 scalar; under vmap the agent's index.
        forbidden: raise at the first draw instead (``randomness="error"``).
        guard: the mode that watches for other draws, if one does.
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
        """Run the function, from the key if it is a dropout that drops."""
        kwargs = kwargs or {}
        served = _SERVED.get(func)
        if served is not None:
            return served(self, func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "unflatten":  # the method is Python code around super(), which dynamo cannot trace here
            return torch.unflatten(*args, **kwargs)
        quiet = name in _RRELU and not dict(zip(_RRELU_NAMES, args, strict=False), **kwargs).get("training", False)
        if (name in _DRAWING and not quiet) or (name in _RECURRENT and _drops_between_layers(args)):
            raise RandomnessError(f"random operation {name}: {_WHY}")
        return func(*args, **kwargs)

    def drop(self, x: Tensor, p: float, kind: Dropout) -> Tensor:
        """``x`` with a mask from the next site of the stream."""
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout: expected a probability in [0, 1], got {p}")
        if self.forbidden and draws(p, x):
            raise forbidden()
        self.site += 1
        shape = mask_shape(kind, tuple(x.shape))
        # The guard need not watch 140 integer operations: it makes each of them a call of Python.
        with contextlib.nullcontext() if self.guard is None else _torch_compat.set_aside(self.guard):
            drop = bernoulli(self.key.to(x.device), p, shape, self.site, self.agent)
            return dropped(x, ~drop, rounded(p), kind.alpha)


def _drops_between_layers(args: tuple[Any, ...]) -> bool:
    """Whether a fused recurrent call has dropout > 0 in training: the float argument, then a bool."""
    floats = [i for i, a in enumerate(args) if isinstance(a, float)]
    return bool(floats) and args[floats[0]] > 0.0 and bool(args[floats[0] + 1])


def _dropout(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any of the dropout functions, whose third argument is called ``training`` or ``train``."""
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    x: Tensor = given["input"]
    p: float = given.get("p", 0.5)
    if not given.get("training", given.get("train", True)) or p == 0.0:
        return x
    out = mode.drop(x, p, DROPOUTS[func])
    return x.copy_(out) if given.get("inplace", False) else out


def _attention(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention with keyed dropout on the weights."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    p: float = given.pop("dropout_p", 0.0)
    if p == 0.0:
        return func(*args, **kwargs)
    mask, grouped = given.pop("attn_mask", None), given.pop("enable_gqa", False)
    return scaled_dot_product(lambda weights: mode.drop(weights, p, Dropout()), mask=mask, grouped=grouped, **given)


def _multihead(mode: KeyedDropout, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Multi-head attention with keyed dropout on the weights."""
    given = dict(zip(MULTIHEAD_NAMES, args, strict=False)) | kwargs
    p: float = given["dropout_p"]
    without_its_mask = given.get("is_causal", False) and given.get("attn_mask") is None  # torch has an error for that
    if p == 0.0 or not given.get("training", True) or without_its_mask:
        return func(*args, **kwargs)
    return multihead(lambda weights: mode.drop(weights, p, Dropout()), given)


_SERVED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(DROPOUTS, _dropout),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multihead,
}


def run_keyed(run: Callable[[], Any], key: Tensor, agent: int | Tensor, forbidden: bool) -> Any:
    """``run()``, where dropouts draw from the key and any other random op raises and is named."""
    # A compiled region has no dispatch modes; there the names of the functions are what is checked.
    if torch.compiler.is_dynamo_compiling():
        with KeyedDropout(key, agent, forbidden):
            return run()
    with ForbidRandomOps(_WHY) as guard, KeyedDropout(key, agent, forbidden, guard):
        return run()
