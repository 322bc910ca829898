"""All that the package takes from torch's private parts, or that differs between versions of torch.

Each entry says what it is for, and what serves in its place where the name is missing. Those with a public path
behind them lose nothing but speed, or what the entry says. The others are in every torch of the tested range
(COMPATIBILITY.md); a torch without one fails here, most at import.

Callers write ``_torch_compat.name`` at each use, so that :func:`public_paths` reaches them.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.utils.parametrizations import _WeightNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "LocalMode",
    "Primitives",
    "WeightNorm",
    "constant_result",
    "dispatch_modes",
    "dynamo_callback",
    "forget_flat_weights",
    "graph_break",
    "in_transform",
    "is_batched",
    "open_attention",
    "outside_transforms",
    "primitives",
    "proxied",
    "public_paths",
    "read_flat_weights",
    "schema",
    "set_aside",
    "storage_id",
    "unwrapped",
    "version",
    "warn_of_fallback",
    "weight_norm",
    "written_in_evaluation",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


# --- vmap and its relatives ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Primitives:
    """What ``torch.func.vmap`` calls itself: its checks and trees take 129 us a call, these take 5."""

    load: Callable[[], object]  # to be called once before the others
    enter: Callable[[int, str], int]  # size, randomness -> level
    leave: Callable[[], object]
    add: Callable[[Tensor, int, int], Tensor]  # tensor, axis, level
    remove: Callable[[Tensor, int, int, int], Tensor]  # tensor, level, size, axis
    level: Callable[[Tensor], int | None]


def _find_primitives() -> Primitives | None:
    try:
        from torch._functorch.predispatch import lazy_load_decompositions

        return Primitives(
            functools.cache(lazy_load_decompositions),
            _functorch._vmap_increment_nesting,
            _functorch._vmap_decrement_nesting,
            _functorch._add_batch_dim,
            _functorch._remove_batch_dim,
            _functorch.maybe_get_level,
        )
    except (ImportError, AttributeError):  # pragma: no cover
        return None


# Public path: None, and callers take torch.func.vmap.
primitives: Primitives | None = _find_primitives()

# Turns torch's warning at operations without a batching rule on or off, for the whole process; on is torch's
# default, and it cannot be read. Public path: the warning shows. (warnings.catch_warnings is for the whole process
# too, and threads that leave it in another order than they entered leave it changed.)
warn_of_fallback: Callable[[bool], object] = getattr(_functorch, "_set_vmap_fallback_warning_enabled", lambda on: None)


def _has_no_storage(tensor: Tensor) -> bool:
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return True
    return False


# Whether vmap maps this tensor. Public path: what wraps another tensor has no storage of its own.
is_batched: Callable[[Tensor], bool] = getattr(_functorch, "is_batchedtensor", _has_no_storage)


def unwrapped(tensor: Tensor) -> Tensor:
    """What vmap and grad have wrapped: only it counts its writes. No public path."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is active. No public path."""
    return _functorch.peek_interpreter_stack() is not None


def outside_transforms() -> AbstractContextManager[Any]:
    """Inside, no transform of ``torch.func`` is active: new tensors belong to none. No public path."""
    return temporarily_clear_interpreter_stack()


# --- dispatch modes --------------------------------------------------------------------------------------


def _private_modes() -> tuple[Any, Any, Any]:
    try:
        from torch.utils._python_dispatch import (
            _get_current_dispatch_mode,
            _pop_mode,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
            _push_mode,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
        )
    except ImportError:  # pragma: no cover
        return None, None, _no_mode
    return _push_mode, lambda: _pop_mode(None), _get_current_dispatch_mode


def _no_mode() -> Any:
    return None


# Put a dispatch mode on the thread's stack, take the top one off, look at it. Public path: push_mode and pop_mode
# are None, top_mode finds nothing, and LocalMode is entered as torch has it.
push_mode: Callable[[TorchDispatchMode], object] | None
pop_mode: Callable[[], object] | None
top_mode: Callable[[], Any]
push_mode, pop_mode, top_mode = _private_modes()


class LocalMode(TorchDispatchMode):
    """A dispatch mode that is local to its thread in every respect.

    The public ``__enter__`` also sets process-wide flags, saved and put back by each thread: of eight
    threads that entered and left 3,000 times, one left them set for good, and torch.compile then skips
    every frame without a word. Pushing the mode alone has no such effect.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call imports torch._dynamo: 1.4 s

    def __enter__(self) -> Self:
        if push_mode is None:
            return super().__enter__()
        push_mode(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        if pop_mode is None:
            super().__exit__(*exception)
        else:
            pop_mode()


@contextlib.contextmanager
def set_aside(mode: LocalMode) -> Generator[None]:
    """Inside, a mode that is the top one of this thread is off. Public path: it stays on."""
    if push_mode is None or pop_mode is None or top_mode() is not mode:
        yield
        return
    pop_mode()
    try:
        yield
    finally:
        push_mode(mode)


# How many dispatch modes this thread is in: fake tensors and others that watch operations. No public path.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack


def proxied() -> bool:
    """Whether ``make_fx`` or another tracer of that kind records the operations. No public path."""
    return dispatch_modes() > 0 and get_proxy_mode() is not None


# --- torch.compile ---------------------------------------------------------------------------------------

_eval_frame: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)

# What runs at each call of this thread where torch.compile is at work; callable if it is. Public path: nothing, and
# what is called after a break in the graph counts as eager.
dynamo_callback: Callable[[], Any] = getattr(_eval_frame, "get_eval_frame_callback", _no_mode)


def constant_result(function: _Function) -> _Function:
    """Dynamo calls this function while it traces, and keeps what it returns.

    As ``torch.compiler.assume_constant_result``, which sets the same attribute, and imports dynamo: 1.4 s.
    """
    cast(Any, function)._dynamo_marked_constant = True
    return function


def graph_break(why: str) -> None:
    """Where dynamo traces: end the graph here, or raise under ``fullgraph=True``. No public path."""
    torch._dynamo.graph_break(msg=why)  # pyright: ignore[reportUnknownMemberType]


# --- modules, tensors and operations ---------------------------------------------------------------------

# The parametrization that torch.nn.utils.parametrizations.weight_norm registers.
WeightNorm: type[nn.Module] = _WeightNorm
# The operation that it computes.
weight_norm: Callable[..., Tensor] = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]

_attention: Any = F.multi_head_attention_forward
# multi_head_attention_forward with its check for overrides off: called from a function mode that is on, it does not
# come back to that mode itself, while the dropout inside it does. No public path.
open_attention: Callable[..., Any] = types.FunctionType(
    _attention.__code__,
    {**_attention.__globals__, "has_torch_function": lambda *_: False},  # pyright: ignore[reportUnknownLambdaType]
    _attention.__name__,
    _attention.__defaults__,
)


@functools.cache
def _instance_norm_writes() -> bool:
    mean = torch.zeros(1)
    F.instance_norm(torch.zeros(1, 1, 2), mean, torch.ones(1), use_input_stats=False)
    return version(mean) > 0


def written_in_evaluation(module: nn.Module) -> list[str]:
    """Buffers that torch writes though nothing changes them: instance norm's statistics, by torch 2.10."""
    kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return [
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        if isinstance(part, kinds) and part.track_running_stats and _instance_norm_writes()
        for name in part._buffers
    ]


def read_flat_weights(part: nn.RNNBase) -> None:
    """Make a recurrent module read its weights: it keeps them in a list beside its parameters."""
    part._init_flat_weights()  # pyright: ignore[reportUnknownMemberType]


def forget_flat_weights(part: nn.RNNBase) -> None:
    """Empty that list, so that the module holds no tensor and reads its weights when they are set."""
    part._flat_weights = [None] * len(part._flat_weights)
    cast(Any, part)._flat_weight_refs = [lambda: None] * len(part._flat_weights)


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place: what autograd checks before it uses what it saved."""
    return tensor._version


def storage_id(tensor: Tensor) -> int:
    """One number a storage, also for storages without bytes, which all have the same ``data_ptr``."""
    return tensor.untyped_storage()._cdata


def schema(operation: Any) -> Any:
    """The arguments of an aten operation: names, defaults, what it writes to."""
    return operation._schema


# --- the switch ------------------------------------------------------------------------------------------

_PUBLIC: dict[str, Any] = {
    "primitives": None,
    "warn_of_fallback": lambda on: None,  # pyright: ignore[reportUnknownLambdaType]
    "is_batched": _has_no_storage,
    "push_mode": None,
    "pop_mode": None,
    "top_mode": _no_mode,
    "dynamo_callback": _no_mode,
}


@contextlib.contextmanager
def public_paths() -> Generator[None]:
    """Inside, the public paths are taken, as on a torch without the private names. For tests: process-wide."""
    private = {name: globals()[name] for name in _PUBLIC}
    globals().update(_PUBLIC)
    try:
        yield
    finally:
        globals().update(private)
