"""Keys, and random numbers from keys: counter-based, without any global generator.

A key is an int64 tensor of shape ``[2]`` that holds two 32-bit words, as in JAX. The generator is
Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in plain
integer operations. It therefore runs on every device, under ``vmap``, ``torch.compile`` and ``torch.export``,
with the same bits everywhere. If torch's own kernels (``torch.func._random``) come to the CPU, only
:func:`philox4x32` changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from functional_marl._arguments import as_flag, as_index, as_shape, is_bool, short_repr
from functional_marl._errors import StructureError

__all__ = ["Key", "as_key", "bernoulli", "fold_in", "key", "normal", "philox4x32", "split", "uniform"]

Key = Tensor | int
_MASK = 0xFFFFFFFF
# The last counter word separates the uses of a key: its children never equal its samples.
_CHILD, _SAMPLE = 0, 1
# Random bits for each dtype: with more bits than it holds, a number could be rounded up to 1.
_BITS = {torch.float32: 24, torch.float64: 53, torch.float16: 11, torch.bfloat16: 8}


def philox4x32(key: Tensor, counter: tuple[Any, Any, Any, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32: four 32-bit words (int64 tensors) for each counter.

    Args:
        key: ``[*P, 2]``; broadcasts against the counter words from the left as ``[*P, 1]``.
        counter: four ints or int64 tensors of values below ``2**32``.

    Raises:
        StructureError: a key of another dtype or shape, or other counter words.

    >>> words = philox4x32(torch.zeros(2, dtype=torch.int64), (torch.tensor([0]), 0, 0, 0))
    >>> [f"{int(word):08x}" for word in words]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    key = as_key(key, batch=True)
    if not isinstance(counter, tuple) or len(counter) != 4:  # pyright: ignore[reportUnnecessaryIsInstance, reportUnnecessaryComparison]
        raise StructureError(f"counter: expected four ints or int64 tensors, got {short_repr(counter)}")
    k0, k1 = key[..., 0:1], key[..., 1:2]
    c0, c1, c2, c3 = (_as_word(word, "counter") for word in counter)
    for round_ in range(10):
        # The product wraps modulo 2**64, which keeps all bits. `>> 32` copies the sign bit, so the upper half
        # of c0 and c2 is masked. c1 and c3 enter a xor only, and are masked there.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        r0, r1 = (k0 + round_ * 0x9E3779B9) & _MASK, (k1 + round_ * 0xBB67AE85) & _MASK
        c0, c1 = ((p1 >> 32) ^ c1 ^ r0) & _MASK, p1 & _MASK
        c2, c3 = ((p0 >> 32) ^ c3 ^ r1) & _MASK, p0 & _MASK
    return c0, c1, c2, c3  # pyright: ignore[reportReturnType]


def _as_word(word: Any, what: str) -> int | Tensor:
    """A word of the counter, as int64: narrower integers would overflow."""
    if not isinstance(word, Tensor):
        return as_index(word, what, 0)
    if word.dtype != torch.int64:
        raise StructureError(f"{what}: expected ints or int64 tensors, got {word.dtype} {list(word.shape)}")
    return word


def _as_probability(p: Any) -> float:
    if not isinstance(p, float):  # numpy's numbers too, but no strings and no bools
        known = hasattr(p, "__float__") and not is_bool(p) and not getattr(p, "shape", ())
        p = float(p) if known else math.nan
    if not 0 <= p <= 1:
        raise StructureError(f"p: expected a probability, a number from 0 to 1, got {p}")
    return p


def _as_float_dtype(dtype: Any) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or dtype not in _BITS:
        raise StructureError(f"dtype: expected one of {', '.join(map(str, _BITS))}, got {short_repr(dtype)}")
    return dtype


def key(seed: int) -> Tensor:
    """A key from a seed of at most 64 bits: ``[2]`` int64, the upper and the lower word.

    Raises:
        StructureError: the seed is no int or does not fit 64 bits.

    >>> key(7)
    tensor([0, 7])
    """
    return _key_of_seed(seed, "seed")


def _key_of_seed(seed: Any, what: str) -> Tensor:
    seed = as_index(seed, what, hint="; keys are ints, or tensors from fm.key(seed)" if what == "key" else "")
    if not -(2**63) <= seed < 2**64:
        raise StructureError(f"{what}: expected an int of at most 64 bits, got {seed}")
    return torch.tensor([(seed >> 32) & _MASK, seed & _MASK], dtype=torch.int64)


def as_key(given: Key, batch: bool = False) -> Tensor:
    """A key as a tensor; an int is a seed. With ``batch`` any leading axes are allowed: ``[*P, 2]``.

    Raises:
        StructureError: another dtype or shape.

    >>> as_key(7)
    tensor([0, 7])
    """
    if not isinstance(given, Tensor):
        return _key_of_seed(given, "key")
    good = given.ndim >= 1 if as_flag(batch, "batch") else given.ndim == 1
    if given.dtype != torch.int64 or not good or given.shape[-1] != 2:
        shape = "[*P, 2]" if batch else "[2]"
        raise StructureError(
            f"key: expected an int64 tensor of shape {shape}, got {given.dtype} {list(given.shape)}; "
            "make keys with fm.key and fm.split"
        )
    return given


def split(key: Key, n: int = 2) -> Tensor:
    """``n`` new keys, ``[n, *P, 2]`` for a key ``[*P, 2]``. A larger ``n`` adds keys and changes none.

    Equivalent to ``torch.stack([fold_in(key, i) for i in range(n)])``. As ``jax.random.split``.

    Raises:
        StructureError: a bad key, or an ``n`` that is no int of 0 or more.

    >>> a, b = split(key(0))
    >>> bool((a == split(key(0), 5)[0]).all())
    True
    """
    n = as_index(n, "split: n", 0, hint="; keys of shape [2, 3] are fm.split(key, 6).view(2, 3, 2)")
    parent = as_key(key, batch=True)
    index = torch.arange(n, device=parent.device).view(-1, *[1] * parent.ndim)
    words = philox4x32(parent[None], (index, 0, 0, _CHILD))
    return torch.cat(words[:2], -1)


def fold_in(key: Key, data: int | Tensor) -> Tensor:
    """A new key from a key ``[*P, 2]`` and a number (a step, an agent): ``[*P, 2]``.

    ``data`` is an int of at most 64 bits or an integer scalar tensor. As ``jax.random.fold_in``.

    Raises:
        StructureError: a bad key, or other data.

    >>> bool((fold_in(key(0), 1) == split(key(0))[1]).all())
    True
    """
    parent = as_key(key, batch=True)
    if isinstance(data, Tensor):
        if data.numel() != 1 or data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise StructureError(
                f"fold_in: data: expected an int or an integer scalar, got {data.dtype} {list(data.shape)}"
            )
        number = data.to(parent.device, torch.int64).view(1)  # narrower integers cannot be shifted by 32
    else:
        data = as_index(data, "fold_in: data")
        if not -(2**63) <= data < 2**64:
            raise StructureError(f"fold_in: data: expected an int of at most 64 bits or an integer scalar, got {data}")
        # int64 holds the unsigned numbers from 2**63 as negative ones, with the same 64 bits
        number = torch.tensor([data - 2**64 if data >= 2**63 else data], device=parent.device)
    words = philox4x32(parent, (number & _MASK, (number >> 32) & _MASK, 0, _CHILD))
    return torch.cat(words[:2], -1)


def _words(key: Tensor, n: int, site: int = 0, agent: int | Tensor = 0) -> Tensor:
    """``n`` random 32-bit words from the stream ``(site, agent)`` of a key ``[2]``: ``[n]`` int64.

    For agents ``[k, 1]`` the words of each of their streams, ``[k, n]``.
    """
    block = torch.arange((n + 3) // 4, device=key.device)
    agent = _as_word(agent, "agent")
    if isinstance(agent, Tensor):
        if agent.is_meta and not key.is_meta:
            raise StructureError("agent: expected a tensor with numbers, got one on the meta device")
        agent = agent.to(key.device)
    # each block has four words: [..., n / 4, 4] -> [..., n]
    return torch.stack(philox4x32(key, (block, _as_word(site, "site"), agent, _SAMPLE)), -1).flatten(-2)[..., :n]


def bernoulli(key: Key, p: float, shape: tuple[int, ...], site: int = 0, agent: int | Tensor = 0) -> Tensor:
    """Bools of a shape, each true with probability ``p`` (rounded to a multiple of ``1 / 65536``).

    For agents ``[k, 1]`` those of each of their streams, ``[k, *shape]``.

    Each word gives two samples of 16 bits. That is part of the contract: it determines the bits.

    Raises:
        StructureError: a bad key, a ``p`` outside ``[0, 1]``, or no shape.

    >>> bernoulli(key(0), 0.25, (8,)).shape
    torch.Size([8])
    """
    shape, p = as_shape(shape, "shape"), _as_probability(p)
    n = math.prod(shape)
    word = _words(as_key(key), (n + 1) // 2, site, agent)
    halves = torch.stack((word & 0xFFFF, word >> 16), -1).flatten(-2)[..., :n]
    return (halves < round(p * 65536)).view((*word.shape[:-1], *shape))


def uniform(key: Key, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform samples of a shape in ``[0, 1)``, each with as many bits as the dtype holds (24 for float32).

    Raises:
        StructureError: a bad key, no shape, or a dtype other than torch's four common floats.

    >>> bool((uniform(key(0), (100,)) < 1).all())
    True
    """
    shape = as_shape(shape, "shape")
    n, dtype = math.prod(shape), _as_float_dtype(dtype)
    if dtype == torch.float64:
        word = _words(as_key(key), 2 * n)
        return (((word[:n] >> 6) * 2**27 + (word[n:] >> 5)).double() * 2.0**-53).view(shape)
    bits = _BITS[dtype]
    return ((_words(as_key(key), n) >> (32 - bits)).float() * 2.0**-bits).to(dtype).view(shape)


def normal(key: Key, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal samples of a shape (Box and Muller, 1958).

    Raises:
        StructureError: as :func:`uniform`.

    >>> abs(float(normal(key(0), (10_000,)).mean())) < 0.05
    True
    """
    shape, dtype = as_shape(shape, "shape"), _as_float_dtype(dtype)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    radius, angle = uniform(key, (2, math.prod(shape)), working)
    samples = torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)
    return samples.to(dtype).view(shape)
