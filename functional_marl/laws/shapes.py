"""Laws 36 to 40: axes, sizes, dtypes and devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl.laws.law import Broken, agree, broken, law
from functional_marl.laws.subject import Subject

__all__ = [
    "agent_dim_is_a_place",
    "batch_is_a_loop",
    "empty_batches",
    "kinds_are_kept",
    "one_agent_is_the_network",
]


@law(36, "local", "settings")
def agent_dim_is_a_place(s: Subject) -> None:
    """move(y(move(x, p)), q) = y(x) for all places p of inputs and q of outputs, p and q as p - ndim, q - ndim.

    Where inputs and outputs carry the agents changes where they are and nothing else.
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
            for given in (p, p - first):  # a lone int is resolved on the first leaf
                look(given, together, b, b)
                if p <= b:
                    look(given, together, None, p)


@law(37, "rows apart", "local", "a batch", "settings")
def batch_is_a_loop(s: Subject) -> None:
    """y(x)[b] = y(x[b]).

    Any number of batch axes, also none, is a loop over the batch.
    """
    outputs, free = s.outputs(), len(s.batch) - s.least_batch_dims
    for at in itertools.product(*map(range, s.batch)):
        # A module that needs batch axes keeps the last ones, of size one.
        index = tuple(b if k < free else slice(b, b + 1) for k, b in enumerate(at))

        def row(leaf: Tensor, lead: tuple[Any, ...], index: tuple[Any, ...] = index) -> Tensor:
            return leaf[(*lead, *index)]

        def pick(tree: Tree, dim: int | None, row: Callable[..., Tensor] = row) -> Tree:
            lead = () if dim is None else (slice(None),)
            return tree_map(lambda leaf: row(leaf, lead), tree)

        inputs = tuple(pick(tree, dim) for tree, dim in zip(s.inputs, s.dims[:-1], strict=True))
        kwargs = pick(dict(s.kwargs), s.dims[-1])
        batch = s.batch[len(s.batch) - s.least_batch_dims :]
        dims = tuple(None if dim is None else min(dim, len(batch)) for dim in s.dims)
        alone = _at(replace(s, inputs=inputs, kwargs=kwargs, batch=tuple(1 for _ in batch)), dims)
        for i, output in enumerate(alone.outputs()):
            want = tree_map(lambda leaf: row(leaf, ()), outputs[i])
            agree(output, want, f"row {list(at)} of the batch {list(s.batch)}, agent {i}: output")


def _at(s: Subject, dims: tuple[int | None, ...]) -> Subject:
    """The subject with the agents at other places of the inputs; outputs as the first input."""
    given: Any = dims if s.kwargs else dims[:-1]
    position = next(dim for dim in dims if dim is not None)
    return replace(s, net=s.net.replace(agent_dim=given, out_agent_dim=None), dims=dims, out_dim=position)


@law(38, "one agent", "parameters")
def one_agent_is_the_network(s: Subject) -> None:
    """n = 1: y = f(θ_0, x), with an agent axis of size one.

    One agent is the single network.
    """
    output = s.outputs()[0]
    agree(output, s.alone(0), "the only agent: output")


@law(39, "rows apart", "parameters", "a batch")
def empty_batches(s: Subject) -> None:
    """shape(y(x)) has |B| = 0 where shape(x) has.

    A batch without rows gives outputs without rows, wherever one agent's module takes it.
    """

    def none_of(tree: Tree, dim: int | None) -> Tree:
        return tree_map(lambda leaf: leaf[:0] if dim is None else leaf[:, :0], tree)

    inputs = tuple(none_of(tree, dim) for tree, dim in zip(s.inputs, s.dims[:-1], strict=True))
    empty = replace(s, inputs=inputs, kwargs=none_of(dict(s.kwargs), s.dims[-1]), batch=(0, *s.batch[1:]))
    try:
        wanted = [empty.alone(i) for i in range(s.n)]
    except RuntimeError:
        return  # the module itself takes no empty batch
    try:
        outputs = empty.outputs()
    except (RuntimeError, ValueError) as error:
        broken(f"batch {list(empty.batch)}: expected outputs without rows, got {type(error).__name__}: {error}")
    else:
        for i, output in enumerate(outputs):
            agree(output, wanted[i], f"batch {list(empty.batch)}, agent {i}: output")


@law(40, "parameters", "settings", cost=2)
def kinds_are_kept(s: Subject) -> None:
    """dtype(y) = dtype(f(θ_i, x_i)) and device(y) = device(x).

    Nothing is cast and nothing moves, from parameters to outputs.
    """
    kinds = [("cpu", torch.float32), ("cpu", torch.float64), ("cpu", torch.bfloat16)]
    # The meta device stands for a second one: what meets a tensor of the CPU there fails, as on a GPU.
    kinds += [("meta", torch.float32), *([("cuda", torch.float32)] if torch.cuda.is_available() else [])]
    for place, dtype in kinds:
        device = torch.device(place)

        def one(leaf: Tensor, device: torch.device = device, dtype: torch.dtype = dtype) -> Tensor:
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        where = f"{dtype} on {device.type}"
        params, state, inputs, kwargs = tree_map(one, (s.own, s.state, s.inputs, dict(s.kwargs)))
        t = replace(s, params=params, state=state, inputs=inputs, kwargs=kwargs)
        if s.build is not None:
            for made, wanted in (
                (s.ops.init_params(s.net, 0, device=device, dtype=dtype), t.own),
                (s.ops.init_state(s.net, 0, device=device, dtype=dtype), t.state),
            ):
                for name, leaf in made.items():
                    _kind(leaf, wanted[name], f"{where}: fresh {name}")
        for name, leaf in s.ops.reshare(t.net, t.own, "independent", merge="first")[1].items():
            _kind(leaf, t.own[name], f"{where}: reshare: {name}")
        try:
            wanted = [t.alone(i) for i in range(t.n)]
        except RuntimeError:
            continue  # the module itself does not take this dtype
        outputs, state = t.trained(key=t.key())
        for name, leaf in state.items():
            _kind(leaf, t.state[name], f"{where}: {name} after training")
        for what, found in (("output", t.outputs()), ("output of training", outputs)):
            for i, output in enumerate(found):
                for leaf, want in zip(flatten(output)[0], flatten(wanted[i])[0], strict=True):
                    _kind(leaf, want, f"{where}, agent {i}: {what}")


def _kind(leaf: Tensor, want: Tensor, where: str) -> None:
    if (leaf.dtype, leaf.device.type) != (want.dtype, want.device.type):
        broken(f"{where}: expected {want.dtype} on {want.device}, got {leaf.dtype} on {leaf.device}")
