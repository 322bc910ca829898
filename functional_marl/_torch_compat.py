"""Every private name of torch that the package uses, and everything that differs between versions of torch.

When an upgrade of torch breaks something, it breaks here. By subject:

- Transforms of ``torch.func``: the parts of vmap, wrapped tensors, levels, autocast.
- Dispatch modes and function modes: enter one in this thread only, leave all of them, count them.
- ``torch.compile``: is it at work, break its graph, what it knows of a size.
- Modules: hooks on all modules, weights of recurrent modules, weight norm.
- Tensors, generators and operations: version counters, identities, schemas.

Each entry says what it is for. "Public path" says what replaces the name where torch does not have it: only speed is
lost then, or what the entry says. An entry with "no public path" is in every torch of the tested range
(COMPATIBILITY.md). A torch without it fails here, in most cases at import.

Callers write ``_torch_compat.name`` at each use, so that tests can switch to the public paths.
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
    "constant_result",
    "current_level",
    "data_of",
    "dispatch_modes",
    "dynamo_callback",
    "forget_flat_weights",
    "generator_id",
    "graph_break",
    "has_global_backward_hooks",
    "has_global_hooks",
    "in_proxy_tracer",
    "in_transform",
    "is_batched",
    "is_mapped",
    "is_static",
    "no_dispatch_modes",
    "no_function_modes",
    "outside_transforms",
    "primitives",
    "randomness_of_maps",
    "read_flat_weights",
    "schema",
    "skip_python_dispatch",
    "statically_true",
    "storage_id",
    "suspended",
    "unwrapped",
    "warn_of_fallback",
    "weight_norm",
    "write_count",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


# --- transforms of torch.func ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Primitives:
    """The functions under ``torch.func.vmap``. It takes 129 us a call with its checks and trees, these take 5."""

    load: Callable[[], object]  # call it once before the others
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


# Public path: None, and callers use torch.func.vmap.
primitives: Primitives | None = _find_primitives()

# Turn torch's warning at operations without a batching rule on or off, for the whole process. It is on by default,
# and cannot be read. Public path: the warning shows. (warnings.catch_warnings also acts on the whole process: when
# threads do not leave it in the reverse order of entering, it stays changed.)
warn_of_fallback: Callable[[bool], object] = getattr(_functorch, "_set_vmap_fallback_warning_enabled", lambda on: None)


def _has_no_storage(tensor: Tensor) -> bool:
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return True
    return False


# Whether vmap maps this tensor. Public path: a tensor that wraps another one has no storage of its own.
is_batched: Callable[[Tensor], bool] = getattr(_functorch, "is_batchedtensor", _has_no_storage)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of vmap and grad: only it counts writes. No public path."""
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
    """``tensor.data``, also of a tensor that vmap maps, where torch raises an error. No public path."""
    if not _functorch.is_batchedtensor(tensor):
        return tensor.data
    level, axis = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
    return _functorch._add_batch_dim(data_of(_functorch.get_unwrapped(tensor)), axis, level)


# Whether autocast is on for any device. Public path: only CPU and CUDA are checked.
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
    """Inside, no transform of ``torch.func`` is active, so new tensors belong to none. No public path."""
    return temporarily_clear_interpreter_stack()


# --- dispatch modes and function modes -------------------------------------------------------------------


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


# The thread's stack of dispatch modes: push one, pop the top one, read the top one. Public path: push_mode and
# pop_mode are None, top_mode returns None, and LocalMode is entered by torch's own method.
push_mode: Callable[[TorchDispatchMode], object] | None
pop_mode: Callable[[], object] | None
top_mode: Callable[[], Any]
push_mode, pop_mode, top_mode = _private_modes()


class LocalMode(TorchDispatchMode):
    """A dispatch mode that changes nothing outside of its thread.

    The public ``__enter__`` also sets process-wide flags, which each thread saves and restores. With eight
    threads that entered and left 3,000 times, the flags stayed set at the end. torch.compile then skips
    every frame, without a message. Pushing the mode alone sets no flags.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first call imports torch._dynamo, 1.4 s

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
def suspended(mode: LocalMode) -> Generator[None]:
    """Inside, this mode is off, if it is the top one of the thread. Public path: it stays on."""
    if push_mode is None or pop_mode is None or top_mode() is not mode:
        yield
        return
    pop_mode()
    try:
        yield
    finally:
        push_mode(mode)


# How many dispatch modes are on in this thread, fake tensors and tracers among them. No public path.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack


def no_dispatch_modes() -> AbstractContextManager[Any]:
    """Inside, no dispatch mode is on: no fake tensors, no tracers. No public path."""
    return cast(Any, _python_dispatch)._disable_current_modes()


@contextlib.contextmanager
def no_function_modes() -> Generator[None]:
    """Inside, the only torch function mode is the innermost default device. No public path."""
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


# Inside, no dispatch mode sees an operation: neither ours nor a user's fake mode. Cheaper than no_dispatch_modes.
# No public path.
skip_python_dispatch: Callable[[], AbstractContextManager[Any]] = torch._C._DisableTorchDispatch  # pyright: ignore[reportAttributeAccessIssue]


def in_proxy_tracer() -> bool:
    """Whether ``make_fx`` or another tracer with proxy tensors records the operations. No public path."""
    return dispatch_modes() > 0 and get_proxy_mode() is not None


# --- torch.compile ---------------------------------------------------------------------------------------

_eval_frame: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)

# Dynamo's callback for the frames of this thread; it is callable where torch.compile is at work. Public path: None,
# so that a call after a break in the graph counts as eager.
dynamo_callback: Callable[[], Any] = getattr(_eval_frame, "get_eval_frame_callback", _no_mode)


def constant_result(function: _Function) -> _Function:
    """Dynamo calls this function while it traces, and treats the result as a constant.

    ``torch.compiler.assume_constant_result`` sets the same attribute, but imports dynamo, 1.4 s.
    """
    cast(Any, function)._dynamo_marked_constant = True
    return function


def is_static(size: Any) -> bool:
    """Whether a size has a known value in a trace. No public path."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(size)


def statically_true(condition: Any) -> bool:
    """Whether a condition on sizes is known to hold in a trace. It adds no guard. No public path."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy, as each trace does

    return statically_known_true(condition)


def graph_break(why: str) -> None:
    """In a trace of dynamo: end the graph here, or raise under ``fullgraph=True``. No public path."""
    torch._dynamo.graph_break(msg=why)  # pyright: ignore[reportUnknownMemberType]


# --- modules ---------------------------------------------------------------------------------------------

# The parametrization that torch.nn.utils.parametrizations.weight_norm registers.
WeightNorm: type[nn.Module] = _WeightNorm
# The operation that this parametrization computes.
weight_norm: Callable[..., Tensor] = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]


# Hooks on all modules at once, as profilers and flop counters register them. nn.Module reads these tables in each
# call. No public path.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_backward_pre_hooks,
    nn.modules.module._global_backward_hooks,
)


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules (``nn.modules.module.register_module_forward_hook`` and the like)."""
    return any(GLOBAL_HOOKS)


def has_global_backward_hooks() -> bool:
    """Whether there are backward hooks on all modules."""
    return bool(GLOBAL_HOOKS[2] or GLOBAL_HOOKS[3])


def read_flat_weights(part: nn.RNNBase) -> None:
    """Make a recurrent module read its parameters again: it has a second list of them."""
    part._init_flat_weights()  # pyright: ignore[reportUnknownMemberType]


def forget_flat_weights(part: nn.RNNBase) -> None:
    """Empty that second list, so that the module holds no tensor, and reads its parameters when they are set."""
    part._flat_weights = [None] * len(part._flat_weights)
    cast(Any, part)._flat_weight_refs = [lambda: None] * len(part._flat_weights)


# --- tensors, generators and operations ------------------------------------------------------------------


def write_count(tensor: Tensor) -> int:
    """How many times a tensor was written in place. Autograd checks it before it uses a saved tensor."""
    return tensor._version


def storage_id(tensor: Tensor) -> int:
    """A number for each storage. Empty storages have different ones too, though all have the same ``data_ptr``."""
    return tensor.untyped_storage()._cdata


def generator_id(generator: torch.Generator) -> int:
    """A number for each generator. (An operation sees a new Python object at each call.)"""
    return cast(Any, generator)._cdata


def schema(operation: Any) -> Any:
    """The schema of an aten operation: names and defaults of its arguments, and what it writes to."""
    return operation._schema
