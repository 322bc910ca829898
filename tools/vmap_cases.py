"""Samples of torch's operations, each computed for one agent at a time and by ``torch.func.vmap``."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from functional_marl._randomness.random_ops import is_random_op
from functional_marl._strategies import vmap_faults as faults
from functional_marl._torch_compat import LocalMode

AGENTS = 3
SCALES = (
    1.0,
    0.75,
    0.5,
)  # factors for the agents' numbers: a multiple of a definite matrix is definite, of a sorted list sorted
LARGEST = 20_000  # elements of a sample
MOST = 40  # samples of an operation in one dtype, spread over its list: some have thousands
FEW = 8  # how many of these are also tested as methods, and with numbers
Function = Callable[..., list[Tensor]]


class NoCase(Exception):
    """The loop does not work, samples random numbers, or gives another result each time."""


class Random(LocalMode):
    """Raises if an operation samples random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        if is_random_op(func, args, kwargs or {}):
            raise NoCase
        return func(*args, **(kwargs or {}))


class Seen(TorchFunctionMode):
    """Records the functions that are called, as the guard names them, and the situations of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.level: int = torch._C._functorch.maybe_current_level()
        self.names: dict[str, set[str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        name = getattr(func, "__name__", "").partition(".")[0]
        self.names.setdefault(name, set()).update(faults.situations(args, kwargs or {}, self.level))
        return func(*args, **(kwargs or {}))


@dataclass
class Case:
    """A function of tensors, which of them are mapped, and how."""

    function: Function
    tensors: list[Tensor]
    mapped: tuple[bool, ...]
    last: bool  # the agents are the last axis, not the first
    grads: list[bool] | None  # which tensors require a gradient; None: no gradient is recorded

    def values(self, apart: bool) -> list[Tensor]:
        """The tensors; those that are mapped are ``[n, ...]``."""
        values = [agents(t, apart) if m else t.detach().clone() for t, m in zip(self.tensors, self.mapped, strict=True)]
        for value, grad in zip(values, self.grads or [False] * len(values), strict=True):
            value.requires_grad_(grad)
        return values

    def loop(self, values: list[Tensor]) -> list[Tensor]:
        """One agent after the other."""
        rows = [
            self.function(*[v[i] if m else v for v, m in zip(values, self.mapped, strict=True)]) for i in range(AGENTS)
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def vmap(self, values: list[Tensor], names: dict[str, set[str]]) -> list[Tensor]:
        """All agents at once."""
        dims = tuple((-1 if self.last else 0) if m else None for m in self.mapped)
        given = [v.movedim(0, -1).contiguous() if d == -1 else v for v, d in zip(values, dims, strict=True)]

        def call(*mine: Tensor) -> list[Tensor]:
            with Seen() as seen:
                out = self.function(*mine)
            names.update(seen.names)
            return out

        return list(torch.func.vmap(call, in_dims=dims, randomness="different")(*given))

    def fault(self, apart: bool, names: dict[str, set[str]], log: Callable[[Any], None]) -> str:
        """The fault of vmap, or an empty text."""
        values = self.values(apart)
        loose = any(value.dtype == torch.float32 for value in values)

        def alike(some: list[Tensor], others: list[Tensor]) -> bool:
            return all(same(a, b, loose) for a, b in zip(some, others, strict=True))

        leaves = [value for value in values if value.requires_grad]
        try:
            with Random(), Seen() as seen:
                wanted = self.loop(values)
            needs = [out.requires_grad for out in wanted]
            wanted_grads = gradients(wanted, needs, leaves)
            if any(t.layout != torch.strided for t in (*wanted, *wanted_grads)):
                raise NoCase
        except Exception:
            raise NoCase from None
        log(seen.names)
        try:
            found = self.vmap(values, names)
        except Exception:
            return ""
        if len(found) != len(wanted) or any(f.shape != w.shape for f, w in zip(found, wanted, strict=True)):
            return "shapes"
        if any(f.dtype != w.dtype for f, w in zip(found, wanted, strict=True)):
            return "types"
        if not alike(wanted, found):
            if not alike(wanted, self.loop(values)):
                raise NoCase
            return "values"
        if [out.requires_grad for out in found] != needs:
            return "gradients"
        try:
            found_grads = gradients(found, needs, leaves)
        except Exception:
            return "raises in backward"
        return "" if alike(wanted_grads, found_grads) else "gradients"


def agents(tensor: Tensor, apart: bool) -> Tensor:
    """``[n, *shape]``: a tensor for each agent, with numbers that the operation accepts."""
    tensor = tensor.detach()
    if not apart:
        return torch.stack([tensor] * AGENTS)
    if tensor.is_floating_point():
        return torch.stack([tensor * scale for scale in SCALES])
    return torch.stack([tensor.reshape(-1).roll(i).reshape(tensor.shape) for i in range(AGENTS)])


def same(a: Tensor, b: Tensor, loose: bool) -> bool:
    """Whether two tensors are equal up to rounding errors: those of float32 if ``loose``."""
    a, b = a.detach(), b.detach()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    rtol, atol = (1e-3, 1e-3) if loose else (1e-6, 1e-9)
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def gradients(outputs: list[Tensor], needs: list[bool], leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of a weighted sum of the outputs, with different weights for each agent."""
    if not any(needs):
        return []
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (out * torch.randn(out.shape, dtype=out.dtype, generator=generator)).sum()
        for out, need in zip(outputs, needs, strict=True)
        if need
    )
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))  # type: ignore


def choices(k: int) -> Iterator[tuple[bool, ...]]:
    """Which tensors are mapped: all combinations for up to four tensors, else all, one, and all but one."""
    for choice in itertools.product((True, False), repeat=k):
        if any(choice) and (k <= 4 or sum(choice) in (1, k - 1, k)):
            yield choice


# --- samples -------------------------------------------------------------------------------------------

Sample = tuple[Any, tuple[Any, ...], dict[str, Any]]  # input, args, kwargs
Entry = tuple[str, Callable[..., Any], bool, list[Sample]]  # kind, function, whether it has gradients, samples


def entries(op: Any) -> Iterator[Entry]:
    """The variants of an operation in two types, each with its samples."""
    for dtype in (torch.float64, torch.int64):
        if not op.supports_dtype(dtype, "cpu"):
            continue
        found: dict[str, Any] = {}
        for grad in (False, True) if dtype == torch.float64 and op.supports_autograd else (False,):
            torch.manual_seed(0)
            for sample in op.sample_inputs("cpu", dtype, requires_grad=grad):
                given = (sample.input, sample.args, sample.kwargs)
                found.setdefault(_text(given), (*given, sample.output_process_fn_grad))
        chosen = list(found.values())[:: -(-len(found) // MOST) or 1]
        for kind, function in (
            (kind, getattr(entry, attribute))
            for entry in (op, *op.aliases)
            for kind, attribute in (("function", "op"), ("method", "method_variant"), ("in place", "inplace_variant"))
        ):
            if function is not None:
                for number, (*given, process) in enumerate(chosen):
                    if kind == "method" and number >= FEW:
                        break
                    run = (lambda f, p: lambda *a, **k: p(f(*a, **k)))(function, process)
                    yield (
                        kind,
                        run,
                        dtype == torch.float64 and op.supports_autograd,
                        with_numbers(tuple(given)) if number < FEW else [tuple(given)],
                    )


def with_numbers(sample: Sample) -> list[Sample]:
    """A sample, and the same with its first tensor, or all of them, without dimensions.

    And with one without dimensions beside others of float32: it must not change their type.
    """
    leaves, spec = pytree.tree_flatten(sample)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if any(leaves[k].layout != torch.strided or not leaves[k].numel() for k in places):
        return [sample]
    floats = [k for k in places if leaves[k].is_floating_point()]
    more: dict[str, Sample] = {}
    for chosen, rest in ((places[:1], ()), (places, ()), *(((k,), floats) for k in floats if len(floats) > 1)):
        new = [leaf.detach().float() if k in rest and k not in chosen else leaf for k, leaf in enumerate(leaves)]
        for k in chosen:
            new[k] = leaves[k].detach().reshape(-1)[0].clone()
        given = pytree.tree_unflatten(new, spec)
        more.setdefault(_text(given), given)
    more.pop(_text(sample), None)
    return [sample, *more.values()]


def _text(sample: Any) -> str:
    kinds = [(list(v.shape), v.dtype) if isinstance(v, Tensor) else repr(v) for v in pytree.tree_leaves(sample)]
    return f"{kinds} {list(sample[2])}"


def supplement() -> Iterator[tuple[str, Callable[..., Any], list[Sample]]]:
    """Operations that torch can override by name but has no samples for."""
    x, y, m = torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.eye(3).bool().repeat(2, 1)[:4]
    i, classes = torch.tensor([2, 0]), torch.tensor([2, 0, 1, 1])

    def put(x: Tensor, value: Any, *index: Any) -> Tensor:
        x[index if len(index) > 1 else index[0]] = value
        return x

    yield (
        "in place",
        put,
        [
            (x, (0.0, 1), {}),
            (x, (y[0], 1), {}),
            (x, (y[:2], i), {}),
            (x, (y[0, 0], i, i), {}),
            (x, (0.0, m), {}),
            (x, (y[:, 0], slice(None), 1), {}),
            (x, (y[:, :2], slice(None), i), {}),
        ],
    )
    positive = x.abs() + 1
    for function in (
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
    ):
        yield "in place", function, [(positive, (y,), {}), (positive, (y[0],), {}), (positive, (2.5,), {})]
    for loss in (F.multi_margin_loss, F.cross_entropy, F.nll_loss):
        yield "function", loss, [(x, (classes,), {"weight": torch.rand(3).double()}), (x, (classes,), {})]
    for function in (F.celu, F.elu, F.selu, F.leaky_relu, F.hardtanh, F.relu6, F.hardswish, F.silu, F.mish):
        yield "in place", lambda x, f=function: f(x, inplace=True), [(x, (), {})]
    for function in (torch.relu_, torch.sigmoid_, torch.tanh_, F.threshold_):
        yield "in place", function, [(x, (0.1, 2.0) if function is F.threshold_ else (), {})]
    weights = [torch.randn(6, 3).double(), torch.randn(6, 2).double(), *torch.randn(2, 6).double()]
    yield (
        "function",
        torch.lstm_cell,
        [(x, ([y[:, :2], y[:, 1:]], weights[0].repeat(2, 1)[:8], weights[1].repeat(2, 1)[:8]), {})],
    )
    yield "function", torch.gru_cell, [(x, (y[:, :2], *weights), {})]
    yield "function", torch.rnn_tanh_cell, [(x, (y[:, :2], weights[0][:2], weights[1][:2]), {})]
    for dim in (0, 1):
        yield "function", torch._weight_norm, [(x, (y[:, :1] if dim == 0 else y[:1], dim), {})]


def everything() -> list[tuple[str, Callable[[], Iterator[Entry]]]]:
    """The names of operations, each with its variants and samples."""
    found: list[Any] = [(op.full_name, functools.partial(entries, op)) for op in op_db]
    for number, (kind, function, samples) in enumerate(supplement()):
        entry = (kind, function, True, [more for sample in samples for more in with_numbers(sample)])
        found.append((f"supplement {number}", functools.partial(iter, [entry])))
    return found


def cases(entry: Entry) -> Iterator[Case]:
    """All cases of a variant."""
    kind, function, grad, samples = entry
    for sample in samples:
        leaves, spec = pytree.tree_flatten(sample)
        places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: list[Tensor] = [leaves[k] for k in places]
        if not tensors or any(t.layout != torch.strided or t.is_complex() for t in tensors):
            continue
        if sum(t.numel() for t in tensors) > LARGEST:
            continue

        def call(*mine: Tensor, leaves: Any = leaves, spec: Any = spec, places: Any = places) -> list[Tensor]:
            full = list(leaves)
            for k, tensor in zip(places, mine, strict=True):
                full[k] = tensor
            first, args, kwargs = pytree.tree_unflatten(full, spec)
            if kind == "in place":
                with torch._C.DisableTorchFunction():  # not a function of the operation
                    first = first.clone()
            out = function(first, *args, **kwargs)
            return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]

        floats = [t.is_floating_point() for t in tensors]
        wishes: list[Any] = [None]
        if grad and any(floats):
            wishes = [floats, [f and n == 0 for n, f in enumerate(floats)]] if len(floats) > 1 else [floats]
        for mapped in choices(len(tensors)):
            for last in (False, True) if all(mapped) else (False,):
                for grads in (*wishes, None) if all(mapped) and wishes[0] else wishes:
                    yield Case(call, tensors, mapped, last, grads)
