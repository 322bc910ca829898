"""``torch.func.vmap`` over all agents, or over chunks of them, without torch's warning of missing batching rules.

The public function takes 129 us a call for its trees and checks. The private functions under it take 5 us.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from functional_marl import _torch_compat

__all__ = ["map_agents", "quiet"]


class _Quiet:
    """Inside, torch does not warn of operations without a batching rule.

    torch has one flag for the whole process, and it can only be written. It returns to torch's default, on, when the
    last call that is running ends.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0

    def __enter__(self) -> None:
        with self.lock:
            self.running += 1
            _torch_compat.warn_of_fallback(False)

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.running -= 1
            if self.running == 0:
                _torch_compat.warn_of_fallback(True)


quiet = _Quiet()


def map_agents(
    function: Callable[..., list[Tensor]],
    n: int,
    chunk: int,
    randomness: Any,
    tensors: list[Tensor],
    dims: list[int | None],
) -> list[Tensor]:
    """Every agent's outputs, ``[n, ...]`` each. The function is mapped over ``chunk`` agents at a time.

    ``dims`` has the agent axis of each tensor, or None for what all agents share. Where all agents share everything,
    it is evaluated once and expanded.
    """
    if chunk == n or all(dim is None for dim in dims):
        return _map(function, n, randomness, tensors, dims)
    pieces: list[list[Tensor]] = []
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        own = [t if d is None else t.narrow(d, start, size) for t, d in zip(tensors, dims, strict=True)]
        pieces.append(_map(function, size, randomness, own, dims))
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def _map(
    function: Callable[..., list[Tensor]], n: int, randomness: Any, tensors: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    """``torch.func.vmap`` of a function of tensors to a list of tensors, ``[n, ...]`` each, without its warning."""
    if torch.compiler.is_dynamo_compiling():
        return _traceable(function, n, randomness, tensors, dims)
    with quiet:
        primitives = _torch_compat.primitives
        if primitives is None or torch.compiler.is_compiling():
            return _traceable(function, n, randomness, tensors, dims)
        primitives.load()
        add, remove = primitives.add, primitives.remove
        level = primitives.enter(n, randomness)
        try:
            outputs = function(*[t if d is None else add(t, d, level) for t, d in zip(tensors, dims, strict=True)])
            return [remove(output, level, n, 0) for output in outputs]
        finally:
            primitives.leave()


def _traceable(
    function: Callable[..., list[Tensor]], n: int, randomness: Any, tensors: list[Tensor], dims: list[int | None]
) -> list[Tensor]:
    """The same by the public function, which tracers expect.

    Everything is mapped at axis 0, because torch.export loses another axis where an input is an output. An index is
    mapped too, because public vmap needs at least one mapped tensor.
    """
    front = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    index = torch.arange(n, device=front[0].device if front else None)
    in_dims = (*(None if d is None else 0 for d in dims), 0)
    return list(vmap(lambda *mine: function(*mine[:-1]), in_dims=in_dims, randomness=randomness)(*front, index))
