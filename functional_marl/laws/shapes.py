"""Axes, sizes, dtypes and devices (laws 36 to 40)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl.laws._capabilities import (
    A_BATCH,
    ANY_BATCH_AXES,
    COPIES,
    EVALUATION,
    FLOATS,
    LOCAL,
    NUMBERS,
    ONE_AGENT,
    REPEATABLE,
    ROWS_APART,
    RUNS,
    SLOTS,
)
from functional_marl.laws._compare import Broken, agree, broken
from functional_marl.laws._law import law
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._places import MisplacedAgents
from functional_marl.laws._subject import CheckError, Subject

__all__ = [
    "agent_dim_is_a_place",
    "batch_axes_are_free",
    "batch_is_a_loop",
    "empty_batches",
    "fresh_leaves_keep_kinds",
    "kinds_are_kept",
    "one_agent_is_the_network",
]

_IN_EVALUATION = (RUNS, NUMBERS, EVALUATION, A_BATCH, ROWS_APART)


@law(36, SLOTS, LOCAL)
def agent_dim_is_a_place(s: NetworkSubject) -> None:
    """move(y(move(x, p)), q) = y(x) for all places p of inputs and q of outputs, p and q as p - ndim, q - ndim.

    Where inputs and outputs have the agents changes where they are and nothing else.
    """
    wanted, b = s.outputs(), len(s.batch)
    mapped = [
        leaf
        for tree, dim in zip((*s.inputs, dict(s.kwargs)), s.dims, strict=True)
        if dim is not None
        for leaf in flatten(tree)[0]
    ]
    first, deepest = mapped[0].ndim, min(leaf.ndim for leaf in mapped) - 1

    def look(given: Any, dims: tuple[int | None, ...], out: int | None, out_dim: int) -> None:
        net = s.net.replace(agent_dim=given, out_agent_dim=out)
        where = f"agent_dim={given}, out_agent_dim={out}"
        try:
            outputs = replace(s, net=net, dims=dims, out_dim=out_dim).outputs()
        except StructureError as error:
            raise Broken(f"{where}: {error}") from None
        for i, output in enumerate(outputs):
            agree(output, wanted[i], f"{where}, agent {i}: output")

    for p in range(deepest + 1):
        q = deepest - p
        apart = tuple(None if dim is None else (p, q)[k % 2] for k, dim in enumerate(s.dims))
        prefix = apart if s.kwargs else apart[:-1]
        look(prefix, apart, 0, 0)
        look(prefix, apart, -1, -1)
        if None not in s.dims:
            together = (p,) * len(s.dims)
            # a lone int is resolved on the first leaf; one that fits two axes of another leaf is refused
            clear = not any(_fits_two_axes(leaf, p, p - first) for leaf in mapped)
            for given in (p, p - first) if clear else (p,):
                look(given, together, b, b)
                if p <= b:
                    look(given, together, None, p)


def _fits_two_axes(leaf: Tensor, p: int, negative: int) -> bool:
    """Whether a negative position, from the end of this leaf ``[n, *rest]``, is another axis of as many agents."""
    shape, k = leaf.movedim(0, p).shape, leaf.ndim + negative
    return k != p and 0 <= k < leaf.ndim and shape[k] == shape[p]


@law(37, *_IN_EVALUATION, REPEATABLE, whole_batch=True)
def batch_is_a_loop(s: Subject) -> None:
    """y(x)[b] = y(x[b]).

    In evaluation a row of the batch is computed by itself. Not so along time: then claim batch_dims=0.
    """
    outputs = s.outputs()
    for axis, size in enumerate(s.batch_sizes):
        for b in range(min(size, 4)):
            piece = s.rows(axis, b, 1)
            try:
                row = piece.outputs()
            except Broken:
                raise
            except MisplacedAgents as error:
                raise Broken(f"a batch of one row, axis {axis}: {error}") from None
            except Exception as error:
                raise CheckError(f"the module takes no batch of one: {type(error).__name__}: {error}") from None
            for i in range(s.n):
                found, want = _rows_of(row[i], outputs[i], axis, size, b)
                try:
                    agree(found, want, f"row {b} of batch axis {axis}, agent {i}: output")
                except Broken:
                    if _mixes_rows(s, piece, axis, size, b, i):
                        raise CheckError("one agent's network itself mixes the rows of a batch") from None
                    raise
    if isinstance(s, NetworkSubject) and not s.centralized:
        _rows_without_axes(s, outputs)


def _rows_of(row: Tree, whole: Tree, axis: int, size: int, b: int) -> tuple[list[Tensor], list[Tensor]]:
    """The leaves that have the batch: of a call with one row, and that row of a call with all."""
    pairs = zip(flatten(row)[0], flatten(whole)[0], strict=True)
    batched = [(one, leaf) for one, leaf in pairs if leaf.ndim > axis and leaf.shape[axis] == size]
    return [one for one, _ in batched], [leaf.narrow(axis, b, 1) for _, leaf in batched]


def _mixes_rows(s: Subject, piece: Subject, axis: int, size: int, b: int, agent: int) -> bool:
    """Whether the network of one agent, where it is known, itself gives a row by itself another output."""
    if isinstance(s, NetworkSubject) or not s.known_alone:
        return False
    try:
        found, want = _rows_of(piece.alone(agent), s.alone(agent), axis, size, b)
        agree(found, want, "")
    except CheckError:
        return False
    except Broken:
        return True
    return False


def _rows_without_axes(s: NetworkSubject, outputs: Sequence[Tree]) -> None:
    """The same for single rows without the batch axes that the module can do without."""
    free = len(s.batch) - s.least_batch_dims
    # What is left of the batch after its first row was taken along each of its free axes.
    row, index = s, (0,) * free
    for axis in range(free):
        row = row.rows(axis, 0, 1)
    row = _without_batch_axes(row, free)
    for i, output in enumerate(row.outputs()):
        want = tree_map(lambda leaf: leaf[index], outputs[i])
        agree(output, want, f"row {list(index)} of the batch {list(s.batch)}, without batch axes, agent {i}: output")


def _without_batch_axes(s: NetworkSubject, count: int) -> NetworkSubject:
    """The same without the first batch axes, each of size one; outputs have the agents where the first input has.

    The agents go to the places that are left of those where they were.
    """
    batch = s.batch[count:]

    def squeeze(tree: Tree, dim: int | None) -> Tree:
        index = (*(() if dim is None else (slice(None),)), *(0,) * count)
        return tree_map(lambda leaf: leaf[index], tree)

    inputs = tuple(map(squeeze, s.inputs, s.dims[:-1]))
    kwargs = squeeze(dict(s.kwargs), s.dims[-1])
    dims = tuple(None if dim is None else min(dim, len(batch)) for dim in s.dims)
    position = next(dim for dim in dims if dim is not None)
    net = s.net.replace(agent_dim=dims if kwargs else dims[:-1], out_agent_dim=None)
    return replace(s, net=net, inputs=inputs, kwargs=kwargs, dims=dims, out_dim=position, batch=batch)


@law(37, RUNS, NUMBERS, EVALUATION, ANY_BATCH_AXES, REPEATABLE)
def batch_axes_are_free(s: ModuleSubject) -> None:
    """y([x, x'])[k] = y of the k-th.

    One more batch axis in front is a loop over it.
    """
    other, host = s.redrawn(s.seed + 1), s.host
    wanted = [host.run(one.leaves, train=False, seed=0) for one in (s, other)]
    try:
        both = host.run([torch.stack(pair) for pair in zip(s.leaves, other.leaves, strict=True)], train=False, seed=0)
    except Exception as error:
        raise CheckError(f"the module takes no further batch axis: {type(error).__name__}: {error}") from None
    for k, want in enumerate(wanted):
        for got, leaf in zip(flatten(both)[0], flatten(want)[0], strict=True):
            agree(got[k], leaf, f"row {k} of one more batch axis: output")


@law(38, SLOTS, ONE_AGENT)
def one_agent_is_the_network(s: NetworkSubject) -> None:
    """n = 1: y = f(θ_0, x), with an agent axis of size one.

    One agent is the single network.
    """
    agree(s.outputs()[0], s.alone(0), "the only agent: output", oracle=True)


@law(39, *_IN_EVALUATION)
def empty_batches(s: Subject) -> None:
    """shape(y(x)) has |B| = 0 where shape(x) has.

    A batch without rows gives outputs without rows, wherever one agent's module takes it.
    """
    empty = s.rows(0, 0, 0)
    batch = list(empty.batch_sizes)
    if s.known_alone:
        try:
            for i in range(s.n):
                empty.alone(i)
        except Exception as error:
            if isinstance(s, NetworkSubject):
                return  # the network of one agent takes no empty batch
            raise CheckError(f"the network of one agent takes no empty batch: {error}") from None
    try:
        outputs = empty.outputs()
    except Broken:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if s.known_alone:
            broken(f"batch {batch}: expected outputs without rows, got {text}")
        raise CheckError(f"the module takes no empty batch: {text}") from None
    for i, (got, want) in enumerate(zip(outputs, s.outputs(), strict=True)):
        for leaf, row in zip(flatten(got)[0], flatten(want)[0], strict=True):
            shape = [0, *row.shape[1:]] if row.ndim else []  # a number for the whole batch
            if list(leaf.shape) != shape or leaf.dtype != row.dtype:
                broken(f"batch {batch}, agent {i}: expected {row.dtype} {shape}, got {leaf.dtype} {list(leaf.shape)}")


_KINDS = [
    *(("cpu", dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)),
    # The meta device stands for a second one: what meets a tensor of the CPU there fails, as on a GPU.
    ("meta", torch.float32),
    *([("cuda", torch.float32)] if torch.cuda.is_available() else []),
]


@law(40, RUNS, NUMBERS, EVALUATION, FLOATS, COPIES, cost=2)
def kinds_are_kept(s: Subject) -> None:
    """dtype(y) = dtype(f(θ_i, x_i)) and device(y) = device(x).

    Nothing is cast and nothing moves, from parameters to outputs.
    """
    kinds = _KINDS if isinstance(s, NetworkSubject) else [("cpu", torch.float64)]
    for place, dtype in kinds:
        device, where = torch.device(place), f"{dtype} on {place}"
        t = s.in_kind(device, dtype)
        if isinstance(s, NetworkSubject):
            try:
                wanted = [t.alone(i) for i in range(s.n)]
            except RuntimeError:
                continue  # the module itself does not take this dtype
            for what, found in (("output", t.outputs()), ("output of training", t.outputs(train=True))):
                for i in range(s.n):
                    _kinds(found[i], wanted[i], f"{where}, agent {i}: {what}")
            continue
        try:
            outputs = t.outputs()
        except Exception as error:
            raise CheckError(f"the module does not run in {dtype}: {type(error).__name__}: {error}") from None
        for i, (output, was) in enumerate(zip(outputs, s.outputs(), strict=True)):
            want = tree_map(lambda leaf, d=device, t=dtype: leaf.to(d, _dtype_of(leaf, t)), was)
            _kinds(output, want, f"{where}, agent {i}: output")


def _dtype_of(leaf: Tensor, floats: torch.dtype) -> torch.dtype:
    """The dtype that an output has where floats have this one."""
    if leaf.is_complex():
        return floats.to_complex()
    return floats if leaf.is_floating_point() else leaf.dtype


def _kinds(found: Tree, wanted: Tree, where: str) -> None:
    for leaf, want in zip(flatten(found)[0], flatten(wanted)[0], strict=True):
        _kind(leaf, want, where)


def _kind(leaf: Tensor, want: Tensor, where: str) -> None:
    if (leaf.dtype, leaf.device.type) != (want.dtype, want.device.type):
        broken(f"{where}: expected {want.dtype} on {want.device}, got {leaf.dtype} on {leaf.device}")


@law(40, SLOTS, cost=2)
def fresh_leaves_keep_kinds(s: NetworkSubject) -> None:
    """dtype(init(key, dtype)) = dtype, and reshare, training and init keep dtype and device.

    Fresh parameters have the dtype and device that was asked for, and nothing that is made of parameters has others.
    """
    for place, dtype in _KINDS:
        device, where = torch.device(place), f"{dtype} on {place}"
        t = s.in_kind(device, dtype)
        if s.build is not None:
            for made, wanted in (
                (s.ops.init_params(s.net, 0, device=device, dtype=dtype), t.params),
                (s.ops.init_state(s.net, 0, device=device, dtype=dtype), t.state),
            ):
                for name, leaf in made.items():
                    _kind(leaf, wanted[name], f"{where}: fresh {name}")
        for name, leaf in s.ops.reshare(t.net, t.params, "independent", merge="first")[1].items():
            _kind(leaf, t.params[name], f"{where}: reshare: {name}")
        try:
            t.alone(0)
        except RuntimeError:
            continue  # the module itself does not take this dtype
        for name, leaf in t.trained(key=t.key())[1].items():
            _kind(leaf, t.state[name], f"{where}: {name} after training")
