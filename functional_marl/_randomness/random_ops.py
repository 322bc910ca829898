"""Which operations sample random numbers: operations of aten by their tags, functions of torch by their names."""

from __future__ import annotations

from typing import Any

import torch

from functional_marl._torch_compat import schema

__all__ = ["is_random_function", "is_random_op", "passed_generator"]

# --- operations of aten, as a dispatch mode sees them ----------------------------------------------------

# With such an argument, an op that is tagged as random does not sample.
_NOT_SAMPLING = {"dropout_p": 0.0, "dropout": 0.0, "train": False, "training": False}

_cached: dict[Any, list[tuple[int, str, Any]] | None] = {}  # a dict: dynamo warns at functools.cache


def is_random_op(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an aten op samples. The tag is not enough: attention has it also without dropout."""
    arguments = _deciding_arguments(func)
    if arguments is None:
        return False
    for position, name, default in arguments:
        if (args[position] if position < len(args) else kwargs.get(name, default)) == _NOT_SAMPLING[name]:
            return False
    return True


def _deciding_arguments(func: Any) -> list[tuple[int, str, Any]] | None:
    """Position, name and default of the arguments that decide whether an op samples; None if it never does."""
    if func not in _cached:
        arguments = enumerate(schema(func).arguments) if torch.Tag.nondeterministic_seeded in func.tags else None
        _cached[func] = arguments and [(i, a.name, a.default_value) for i, a in arguments if a.name in _NOT_SAMPLING]
    return _cached[func]


def passed_generator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator | None:
    """The generator among the arguments of a call, if there is one."""
    return next((value for value in (*kwargs.values(), *args) if isinstance(value, torch.Generator)), None)


# --- functions of torch, as a function mode sees them ----------------------------------------------------

# A compiled call has no dispatch mode, so there the names of the functions decide.
_RANDOM_FUNCTIONS = frozenset(
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
        "uniform_",
        "_standard_gamma",
        "_sample_dirichlet",
    ]
)
_RRELU, _RRELU_ARGUMENTS = ("rrelu", "rrelu_"), ("input", "lower", "upper", "training", "inplace")
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


def is_random_function(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of a torch function samples, by the function's name."""
    if name in _RRELU:
        return bool(dict(zip(_RRELU_ARGUMENTS, args, strict=False), **kwargs).get("training", False))
    return name in _RANDOM_FUNCTIONS or (name in _RECURRENT and _drops_between_layers(args))


def _drops_between_layers(args: tuple[Any, ...]) -> bool:
    """Whether a fused recurrent call has dropout in training: its only float is ``dropout``; ``train`` follows it."""
    floats = [i for i, a in enumerate(args) if isinstance(a, float)]
    return bool(floats) and args[floats[0]] > 0.0 and bool(args[floats[0] + 1])
