"""Pure functions ``(params, x) -> y`` of numpy or JAX arrays as modules of torch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from functional_marl._pytrees import Tree, flatten
from functional_marl.laws._subject import CheckError

__all__ = ["FunctionModule", "function_module"]

Kind = Literal["jax", "numpy"]
_Arrays = Callable[..., tuple[Any, ...]]  # a function of arrays alone


def function_module(function: Callable[..., Any], params: Tree, *, kind: Kind | None = None) -> FunctionModule:
    """A pure function of parameters and inputs as a module.

    Float and complex arrays in ``params`` become parameters under dotted names ("dense.kernel"), others buffers.
    What is no array (numbers, text, functions, typed PRNG keys) is handed to the function as it is. JAX computes
    gradients; functions of numpy have none.

    Args:
        function: ``function(params, *inputs)``, pure.
        params: a tree of arrays: dicts, lists, tuples; for JAX, every pytree that it knows.
        kind: what the function is written in. By default "jax" if ``params`` has an array of JAX, else "numpy"; a
            function that answers numpy arrays with arrays of JAX is one of JAX.

    Raises:
        CheckError: ``function`` cannot be called; ``kind`` is unknown, or JAX is not installed.

    >>> import numpy as np
    >>> module = function_module(lambda p, x: x @ p["w"], {"w": np.ones((2, 3), np.float32)})
    >>> module(torch.ones(4, 2)).shape, [name for name, _ in module.named_parameters()]
    (torch.Size([4, 3]), ['w'])
    """
    if not callable(function):
        raise CheckError(f"function: expected a function of (params, inputs), got {type(function).__name__}")
    if kind not in (None, "jax", "numpy"):
        raise CheckError(f"kind: expected 'jax', 'numpy' or None, got {kind!r}")
    return FunctionModule(function, params, kind)


class FunctionModule(nn.Module):
    """A pure function with its parameters; it is given arrays and returns tensors.

    Attributes:
        kind: "jax" or "numpy".
        float64: whether it computes in float64; outputs are float32 where it does not.
    """

    def __init__(self, function: Callable[..., Any], params: Tree, kind: Kind | None) -> None:
        super().__init__()
        self.kind: Kind = kind or ("jax" if _has_jax(params) else "numpy")
        self._stated = kind is not None
        self._function = function
        paths, self._constants, self._rebuild = _flatten(params, self.kind)
        self._names: list[str | None] = [None] * len(paths)  # of the leaves that are tensors; others are constants
        for i, (path, leaf) in enumerate(zip(paths, self._constants, strict=True)):
            if _is_array(leaf):
                self._names[i] = _register(self, path, _parameter(leaf, ".".join(path), self.kind))
                self._constants[i] = None

    def forward(self, *inputs: Any, **kwargs: Any) -> Tree:
        """The outputs of the function, as tensors.

        Raises:
            CheckError: the function returns something that is no array.
        """
        own = [
            constant if name is None else self._named(name)
            for name, constant in zip(self._names, self._constants, strict=True)
        ]
        given, rebuild = flatten((inputs, kwargs))

        def function(leaves: Sequence[Any]) -> Any:
            args, named = rebuild(leaves[len(own) :])
            return self._function(self._rebuild(leaves[: len(own)]), *args, **named)

        leaves = [*own, *given]
        if self.kind == "numpy":
            output = function([_numpy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
            if self._stated or not _has_jax(output):
                paths, found, refill = _flatten(output, "numpy")
                return refill([_returned(leaf, path) for leaf, path in zip(found, paths, strict=True)])
            self.kind = "jax"  # the function itself is the only one to say so
        return _called(function, leaves)

    @property
    def float64(self) -> bool:
        """Whether it computes in float64; JAX does so only where ``jax_enable_x64`` is set."""
        return self.kind == "numpy" or bool(_jax().config.jax_enable_x64)

    def _named(self, name: str) -> Tensor:
        *parts, last = name.split(".")
        return getattr(self.get_submodule(".".join(parts)), last)


# --- parameters -------------------------------------------------------------------------------------------


def _jax() -> Any:
    try:
        return import_module("jax")
    except ImportError as error:
        raise CheckError(f"kind='jax': JAX cannot be imported ({error}); install it, or say kind='numpy'") from None


def _has_jax(tree: Any) -> bool:
    """Whether there is an array of JAX in a tree; JAX is not imported for it."""
    jax: Any = sys.modules.get("jax")
    return jax is not None and any(isinstance(leaf, jax.Array) for leaf in jax.tree_util.tree_leaves(tree))


def _is_array(leaf: Any) -> bool:
    """Whether it is an array of numbers; a typed PRNG key is none."""
    if isinstance(leaf, Tensor):
        return True
    jax: Any = sys.modules.get("jax")
    if jax is not None and isinstance(leaf, jax.Array):
        return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "__array__") and (getattr(dtype, "kind", "") in tuple("biufc") or str(dtype) == "bfloat16")


def _parameter(leaf: Any, name: str, kind: Kind) -> Tensor:
    """A copy of an array as a parameter, or as a buffer if it has no derivative."""
    if kind == "jax":
        found = leaf.detach().clone() if isinstance(leaf, Tensor) else _torch(_jax().numpy.asarray(leaf))
    else:
        found = leaf.detach().clone() if isinstance(leaf, Tensor) else _returned(leaf, (name,))
    return nn.Parameter(found) if _inexact(found) else found


def _register(root: nn.Module, path: Sequence[str], leaf: Tensor) -> str:
    """Put a leaf where its path says, and return the name; a part that torch has for itself gets a ``_`` behind it."""
    *parts, last = [part or "_" for key in path for part in key.split(".")] or ["params"]
    at, name = root, list[str]()
    for part in parts:
        while part not in at._modules and hasattr(at, part):
            part += "_"
        if part not in at._modules:
            at.add_module(part, nn.Module())
        at, name = at.get_submodule(part), [*name, part]
    while hasattr(at, last):
        last += "_"
    if isinstance(leaf, nn.Parameter):
        at.register_parameter(last, leaf)
    else:
        at.register_buffer(last, leaf)
    return ".".join([*name, last])


# --- trees ------------------------------------------------------------------------------------------------


def _flatten(tree: Any, kind: Kind) -> tuple[list[tuple[str, ...]], list[Any], Callable[[Sequence[Any]], Any]]:
    """Paths, leaves, and how to build the tree again."""
    if kind == "jax":
        found, treedef = _jax().tree_util.tree_flatten_with_path(tree)
        return (
            [tuple(map(_key, path)) for path, _ in found],
            [leaf for _, leaf in found],
            partial(_unflattened, treedef),
        )
    found = list(_paths(tree, ()))
    return [path for path, _ in found], [leaf for _, leaf in found], partial(_refilled, _refilled(tree, None))


def _unflattened(treedef: Any, leaves: Sequence[Any]) -> Any:  # a method of the treedef could not be copied
    return treedef.unflatten(leaves)


def _key(key: Any) -> str:
    """A step of a path in JAX's words."""
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _paths(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list | tuple):
        items = list(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    else:
        yield path, tree
        return
    for key, value in items:
        yield from _paths(value, (*path, str(key)))


def _refilled(tree: Any, leaves: Sequence[Any] | None) -> Any:
    """The tree with other leaves, in the order of :func:`_paths`; with None everywhere if there are none."""
    return _refill(tree, itertools.repeat(None) if leaves is None else iter(leaves))


def _refill(tree: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(tree, Mapping):
        entries = {key: _refill(value, leaves) for key, value in tree.items()}
        return entries if type(tree) is dict else cast(Any, type(tree))(entries)
    if isinstance(tree, list | tuple):
        values = [_refill(value, leaves) for value in cast("list[Any]", tree)]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return next(leaves)


# --- numpy ------------------------------------------------------------------------------------------------


def _numpy(leaf: Tensor) -> Any:
    """The tensor's own memory, where numpy can read it."""
    leaf = leaf.detach().cpu().resolve_conj().resolve_neg()
    return (leaf.float() if leaf.dtype is torch.bfloat16 else leaf).numpy()


def _returned(leaf: Any, path: tuple[str, ...]) -> Any:
    """A copy of an array or a number as a tensor; None and text stay."""
    if leaf is None or isinstance(leaf, str | Tensor):
        return leaf
    jax: Any = sys.modules.get("jax")
    try:
        return _torch(leaf) if jax is not None and isinstance(leaf, jax.Array) else torch.tensor(leaf)
    except (TypeError, RuntimeError):
        at = "".join(f"[{key!r}]" for key in path) or "output"
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise CheckError(f"{at}: expected an array of numbers, got {kind}") from None


# --- JAX --------------------------------------------------------------------------------------------------


def _called(function: Callable[[Sequence[Any]], Any], leaves: Sequence[Any]) -> Tree:
    """A function of JAX arrays called with tensors, and differentiable."""
    jax = _jax()
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    trees: list[Any] = []

    def of_arrays(*arrays: Any) -> tuple[Any, ...]:
        filled = dict(enumerate(leaves)) | dict(zip(at, arrays, strict=True))
        found, treedef = jax.tree_util.tree_flatten(function([filled[i] for i in range(len(leaves))]))
        trees[:] = [treedef]
        return tuple(_output(leaf) for leaf in found)

    outputs = _Call.apply(of_arrays, *(_narrow(leaves[i]) for i in at))
    return trees[0].unflatten(outputs)


def _narrow(leaf: Tensor) -> Tensor:
    """The tensor in a dtype that JAX has, as it is configured."""
    if not _jax().config.jax_enable_x64:
        leaf = leaf.to(NARROW.get(leaf.dtype, leaf.dtype))
    return leaf


NARROW = {torch.float64: torch.float32, torch.int64: torch.int32, torch.complex128: torch.complex64}


def _output(leaf: Any) -> Any:
    jax = _jax()
    try:
        array = jax.numpy.asarray(leaf)
    except TypeError:
        raise CheckError(f"output: expected arrays, got {type(leaf).__name__}; return arrays or numbers") from None
    return jax.random.key_data(array) if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def _array(leaf: Tensor) -> Any:
    """The tensor's own memory as an array of JAX, which copies only what is not dense or not aligned."""
    return _jax().dlpack.from_dlpack(leaf.detach().resolve_conj().resolve_neg().contiguous())


def _torch(array: Any) -> Tensor:
    """A copy: the memory of an array of JAX must not change, and it may be that of an input."""
    return torch.from_dlpack(array).clone()


def _inexact(leaf: Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


class _Call(Function):
    """A function of arrays of JAX, called with tensors. Its gradient is such a function as well, of any order."""

    @staticmethod
    def forward(function: _Arrays, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_torch(array) for array in function(*map(_array, tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.inexact = [i for i, leaf in enumerate(output) if _inexact(leaf)]
        ctx.mark_non_differentiable(*(leaf for leaf in output if not _inexact(leaf)))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        wanted = [i for i, leaf in enumerate(tensors) if ctx.needs_input_grad[i + 1] and _inexact(leaf)]
        pulled = _pulled(ctx.function, len(tensors), wanted, ctx.inexact)
        found = dict(zip(wanted, _Call.apply(pulled, *tensors, *(grads[i] for i in ctx.inexact)), strict=True))
        return None, *(found.get(i) for i in range(len(tensors)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: _Arrays, *tensors: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Row by row."""
        rows = [
            _Call.apply(
                function,
                *(leaf if dim is None else leaf.select(dim, i) for leaf, dim in zip(tensors, in_dims[1:], strict=True)),
            )
            for i in range(info.batch_size)
        ]
        outputs = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return outputs, (0,) * len(outputs)


def _pulled(function: _Arrays, count: int, wanted: Sequence[int], inexact: Sequence[int]) -> _Arrays:
    """The function from inputs and the gradients of outputs to the gradients of the inputs that want one."""
    jax = _jax()

    def gradients(*arrays: Any) -> tuple[Any, ...]:
        def of_wanted(*chosen: Any) -> tuple[Any, ...]:
            filled = dict(enumerate(arrays[:count])) | dict(zip(wanted, chosen, strict=True))
            outputs = function(*(filled[i] for i in range(count)))
            return tuple(outputs[i] for i in inexact)

        _, pull = jax.vjp(of_wanted, *(arrays[i] for i in wanted))
        conj = jax.numpy.conj  # torch's gradient of a complex number is the conjugate of JAX's
        return tuple(map(conj, pull(tuple(map(conj, arrays[count:])))))

    return gradients
