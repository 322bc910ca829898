"""All that the package takes from torch's private parts, or that differs between versions of torch.

Each entry says what it is for, and what serves in its place where the name is missing. Those with a public path
behind them lose nothing but speed, or what the entry says. The others are in every torch of the tested range
(COMPATIBILITY.md); a torch without one fails here, most at import.

Callers write ``_torch_compat.name`` at each use, so that tests can take the public paths.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn, overrides
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.utils.parametrizations import _WeightNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "GLOBAL_HOOKS",
    "LocalMode",
    "Primitives",
    "WeightNorm",
    "any_autocast",
    "backward_hooked",
    "constant_result",
    "current_level",
    "data_of",
    "dispatch_modes",
    "dynamo_callback",
    "forget_flat_weights",
    "generator_id",
    "graph_break",
    "hooked",
    "in_transform",
    "is_batched",
    "is_mapped",
    "is_static",
    "no_dispatch_modes",
    "no_function_modes",
    "outside_transforms",
    "primitives",
    "proxied",
    "randomness_of_maps",
    "read_flat_weights",
    "schema",
    "set_aside",
    "statically_true",
    "storage_id",
    "unwatched",
    "unwrapped",
    "version",
    "warn_of_fallback",
    "weight_norm",
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


def current_level() -> int | None:
    """The level of the innermost transform of ``torch.func``. No public path."""
    return _functorch.maybe_current_level()


def is_mapped(tensor: Tensor, level: int | None) -> bool:
    """Whether the vmap of this level maps the tensor. No public path."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor) and _functorch.maybe_get_level(tensor) == level:
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def data_of(tensor: Tensor) -> Tensor:
    """``tensor.data``, also of a tensor that vmap maps, where torch refuses it. No public path."""
    if not _functorch.is_batchedtensor(tensor):
        return tensor.data
    level, axis = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
    return _functorch._add_batch_dim(data_of(_functorch.get_unwrapped(tensor)), axis, level)


# Whether autocast is on for any device. Public path: for those that this package was tried on.
any_autocast: Callable[[], bool] = getattr(
    torch._C,
    "_is_any_autocast_enabled",
    lambda: torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
)


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is active. No public path."""
    return _functorch.peek_interpreter_stack() is not None


def randomness_of_maps() -> list[str]:
    """The ``randomness=`` of each vmap that is active: "error", "same" or "different". No public path."""
    levels = [one for one in _functorch.get_interpreter_stack() or () if one.key() == _functorch.TransformType.Vmap]
    return [_functorch.CVmapInterpreterPtr(level).randomness().name.lower() for level in levels]


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


def no_dispatch_modes() -> AbstractContextManager[Any]:
    """Inside, no dispatch mode is on: fake tensors, tracers, recorders. No public path."""
    return cast(Any, _python_dispatch)._disable_current_modes()


@contextlib.contextmanager
def no_function_modes() -> Generator[None]:
    """Inside, no torch function mode is on but the innermost default device. No public path."""
    functions: Any = overrides
    modes = [functions._pop_mode() for _ in range(functions._len_torch_function_stack())]
    device = next((mode for mode in modes if isinstance(mode, DeviceContext)), None)
    if device is not None:
        functions._push_mode(device)
    try:
        yield
    finally:
        if device is not None:
            functions._pop_mode()
        for mode in reversed(modes):
            functions._push_mode(mode)


# Inside, no dispatch mode sees an operation: neither a recorder of ours nor a user's fake mode. No public path.
unwatched: Callable[[], AbstractContextManager[Any]] = torch._C._DisableTorchDispatch  # pyright: ignore[reportAttributeAccessIssue]


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


def is_static(size: Any) -> bool:
    """Whether a trace knows the value of a size. No public path."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(size)


def statically_true(condition: Any) -> bool:
    """Whether a condition on sizes of a trace is known to hold, without a guard on it. No public path."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy, as a trace did

    return statically_known_true(condition)


def graph_break(why: str) -> None:
    """Where dynamo traces: end the graph here, or raise under ``fullgraph=True``. No public path."""
    torch._dynamo.graph_break(msg=why)  # pyright: ignore[reportUnknownMemberType]


# --- modules, tensors and operations ---------------------------------------------------------------------

# The parametrization that torch.nn.utils.parametrizations.weight_norm registers.
WeightNorm: type[nn.Module] = _WeightNorm
# The operation that it computes.
weight_norm: Callable[..., Tensor] = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]


# Hooks on all modules at once, as profilers and flop counters set them: the tables that nn.Module looks at in each
# call. No public path.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_backward_pre_hooks,
    nn.modules.module._global_backward_hooks,
)


def hooked() -> bool:
    """Whether torch holds hooks for all modules, of ``nn.modules.module.register_module_forward_hook`` and others."""
    return any(GLOBAL_HOOKS)


def backward_hooked() -> bool:
    """Whether a hook of all modules wants their gradients."""
    return bool(GLOBAL_HOOKS[2] or GLOBAL_HOOKS[3])


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


def generator_id(generator: torch.Generator) -> int:
    """One number a generator: an operation sees another Python object each time that it is given one."""
    return cast(Any, generator)._cdata


def schema(operation: Any) -> Any:
    """The arguments of an aten operation: names, defaults, what it writes to."""
    return operation._schema
