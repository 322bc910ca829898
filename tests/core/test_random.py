"""Keys and random numbers against published values, against Philox in Python integers, and in distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import functional_marl as fm
from functional_marl import random as fr
from tests.builders import generators_untouched

WORD = 2**32


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper prints it, in Python's integers (Salmon et al., SC 2011, section 3.2)."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, WORD)
        high1, low1 = divmod(c2 * 0xCD9E8D57, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


# From Random123's kat_vectors, philox 4x32 10: counter, key, result.
ONES = 0xFFFFFFFF
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Keys and counters at the edges of 16, 31 and 32 bits, and in the middle.
EDGES = [0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, ONES, 0x9E3779B9, 0x12345678]


def key_of(words: tuple[int, int]) -> Tensor:
    return torch.tensor(words, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED, ids=["zeros", "ones", "pi"])
@pytest.mark.parametrize("as_tensors", [True, False])
def test_philox_gives_the_published_words(counter: Any, key: Any, expected: Any, as_tensors: bool) -> None:
    assert philox(key, counter) == expected
    words: Any = tuple(torch.tensor([c]) for c in counter) if as_tensors else counter
    assert tuple(int(w) for w in fr.philox4x32(key_of(key), words)) == expected


def test_philox_is_philox_in_python_integers() -> None:
    generator = torch.Generator().manual_seed(1)
    sampled = torch.randint(0, WORD, (200, 6), generator=generator)
    edges = torch.tensor(EDGES)
    cases = torch.cat([sampled, edges[torch.randint(0, len(EDGES), (200, 6), generator=generator)]])
    c0, c1, c2, c3 = cases[:, 2:].split(1, 1)
    got = fr.philox4x32(cases[:, :2], (c0, c1, c2, c3))
    assert [tuple(row) for row in torch.cat(got, 1).tolist()] == [
        philox((k0, k1), (c0, c1, c2, c3)) for k0, k1, c0, c1, c2, c3 in cases.tolist()
    ]


@pytest.mark.parametrize("seed", [0, 1, 7, ONES, WORD, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)])
def test_a_key_holds_the_words_of_its_seed(seed: int) -> None:
    key = fm.key(seed)
    assert key.dtype == torch.int64
    assert key.tolist() == [seed % 2**64 // WORD, seed % WORD]


def test_an_int_is_accepted_wherever_a_key_is() -> None:
    for function in (fm.split, lambda k: fm.fold_in(k, 3), lambda k: fr.normal(k, (4,)), lambda k: fr.uniform(k, (4,))):
        accepts: Any = function
        assert torch.equal(accepts(5), accepts(fm.key(5)))


@pytest.mark.parametrize("key", [(0, 7), (ONES, ONES), (0x80000000, 3)])
def test_children_of_a_key_are_philox_of_their_index(key: tuple[int, int]) -> None:
    for data in (0, 1, ONES, WORD, 2**63, 2**64 - 1, -1, -(2**63)):
        low, high = data % WORD, data % 2**64 // WORD
        expected = list(philox(key, (low, high, 0, 0))[:2])
        assert fm.fold_in(key_of(key), data).tolist() == expected
    assert fm.split(key_of(key), 5).tolist() == [list(philox(key, (i, 0, 0, 0))[:2]) for i in range(5)]


def test_split_is_prefix_stable_and_fold_in_agrees() -> None:
    key = fm.key(3)
    many = fm.split(key, 20)
    assert torch.equal(fm.split(key, 4), many[:4])
    assert torch.equal(torch.stack([fm.fold_in(key, i) for i in range(20)]), many)
    assert fm.split(key, 0).shape == (0, 2)
    assert fm.split(key).shape == (2, 2)


def test_keys_in_batches_are_keys_one_by_one() -> None:
    keys = fm.split(fm.key(0), 6).view(2, 3, 2)
    split, folded = fm.split(keys, 4), fm.fold_in(keys, 9)
    assert split.shape == (4, 2, 3, 2)
    for i in range(2):
        for j in range(3):
            assert torch.equal(split[:, i, j], fm.split(keys[i, j], 4))
            assert torch.equal(folded[i, j], fm.fold_in(keys[i, j], 9))
    assert torch.equal(torch.vmap(fm.split)(keys[0]), torch.stack([fm.split(k) for k in keys[0]]))
    steps = torch.arange(3)
    mapped = torch.vmap(lambda step: fm.fold_in(keys[0, 0], step))(steps)
    assert torch.equal(mapped, torch.stack([fm.fold_in(keys[0, 0], i) for i in range(3)]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_data_to_fold_in_may_be_any_integer_scalar(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert torch.equal(fm.fold_in(0, torch.tensor(100, dtype=dtype).view(shape)), fm.fold_in(0, 100))
    if dtype != torch.uint8:
        assert torch.equal(fm.fold_in(0, torch.tensor(-5, dtype=dtype).view(shape)), fm.fold_in(0, -5))


def test_descendants_of_a_key_are_all_different() -> None:
    keys = [fm.key(0), fm.key(1)]
    keys += [k for parent in list(keys) for k in fm.split(parent, 300)]
    keys += [k for parent in keys[2:12] for k in fm.split(parent, 30)]
    assert len({tuple(k.tolist()) for k in keys}) == len(keys)


def words_of(key: tuple[int, int], n: int, site: int, agent: int) -> list[int]:
    """The stream ``(site, agent)`` of a key: blocks of four words."""
    return [w for block in range(n // 4 + 1) for w in philox(key, (block, site, agent, 1))][:n]


@pytest.mark.parametrize(("site", "agent"), [(0, 0), (3, 2), (ONES, 5)])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 17])
def test_bernoulli_uses_each_word_for_two_samples_of_16_bits(n: int, site: int, agent: int) -> None:
    key = (0x1234, 0x80000001)
    for p in (0.0, 0.1, 0.5, 1.0):
        halves = [half for w in words_of(key, n, site, agent) for half in (w % 2**16, w // 2**16)]
        expected = [half < round(p * 65536) for half in halves[:n]]
        assert fr.bernoulli(key_of(key), p, (n,), site, agent).tolist() == expected
        assert fr.bernoulli(key_of(key), p, (n,), site, torch.tensor(agent)).tolist() == expected


def test_agents_in_a_column_sample_each_from_its_own_stream() -> None:
    key, agents = key_of((0x1234, 7)), [5, 0, ONES]
    column = torch.tensor(agents).view(-1, 1)
    for n in (0, 3, 4, 9):
        assert fr._words(key, n, 2, column).tolist() == [words_of((0x1234, 7), n, 2, a) for a in agents]
    for shape in ((), (5,), (2, 3)):
        got = fr.bernoulli(key, 0.4, shape, 2, column)
        assert torch.equal(got, torch.stack([fr.bernoulli(key, 0.4, shape, 2, a) for a in agents]))


def test_children_and_samples_are_on_the_device_of_the_key() -> None:
    key = torch.empty(2, dtype=torch.int64, device="meta")
    agents = torch.arange(3).view(-1, 1)
    made = [fm.split(key, 3), fm.fold_in(key, 5), fm.fold_in(key, torch.tensor([5]))]
    made += [fr.uniform(key, (4,)), fr.normal(key, (4,)), fr.bernoulli(key, 0.5, (4,))]
    made += [fr.bernoulli(key, 0.5, (4,), agent=agents)]
    assert [leaf.device.type for leaf in made] == ["meta"] * 7


def test_the_probability_is_rounded_to_16_bits() -> None:
    half = words_of((1, 2), 1, 0, 0)[0] % 2**16
    for p, expected in ((half + 0.4) / 65536, False), ((half + 0.6) / 65536, True):
        assert fr.bernoulli(key_of((1, 2)), p, (1,)).tolist() == [expected]


def test_uniform_and_normal_follow_their_formulas() -> None:
    key = (5, 6)
    w = words_of(key, 12, 0, 0)
    single = fr.uniform(key_of(key), (6,))
    assert single.dtype == torch.float32
    assert single.tolist() == [x // 2**8 / 2**24 for x in w[:6]]
    double = [(a // 2**6 * 2**27 + b // 2**5) / 2**53 for a, b in zip(w[:6], w[6:], strict=True)]
    assert fr.uniform(key_of(key), (6,), torch.float64).tolist() == double
    # the first half of the uniforms gives the radii, the second half the angles
    expected = [
        math.sqrt(-2 * math.log1p(-r)) * math.cos(2 * math.pi * a) for r, a in zip(double[:3], double[3:], strict=True)
    ]
    got = fr.normal(key_of(key), (3,), torch.float64)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    radius, angle = single[:3], single[3:]
    in_single = torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.equal(fr.normal(key_of(key), (3,), dtype), in_single.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_stays_below_one_in_every_dtype(dtype: torch.dtype) -> None:
    samples = fr.uniform(0, (200_000,), dtype)
    assert samples.dtype == dtype
    assert bool((samples >= 0).all())
    assert bool((samples < 1).all())


def within(mean: float, expected: float, deviation: float, n: int) -> bool:
    """Whether a mean is within five standard errors: with a fixed key always, else all but one time in a million."""
    return abs(mean - expected) < 5 * deviation / math.sqrt(n)


def test_samples_have_the_right_moments() -> None:
    n = 100_000
    uniform, normal = fr.uniform(1, (n,), torch.float64), fr.normal(2, (n,), torch.float64)
    assert within(float(uniform.mean()), 0.5, math.sqrt(1 / 12), n)
    assert within(float((uniform - 0.5).pow(2).mean()), 1 / 12, math.sqrt(1 / 180), n)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert within(float(normal.pow(power).mean()), moment, math.sqrt(variance), n)
    for p in (0.01, 0.3, 0.5, 0.99):
        rate = float(fr.bernoulli(3, p, (n,)).double().mean())
        assert within(rate, round(p * 65536) / 65536, math.sqrt(p * (1 - p)), n)


def test_neighbouring_samples_agents_sites_and_keys_are_uncorrelated() -> None:
    n = 50_000
    key = fm.key(0)
    base = fr.bernoulli(key, 0.5, (n,)).double() - 0.5
    others = [
        fr.bernoulli(key, 0.5, (n,), site=1),
        fr.bernoulli(key, 0.5, (n,), agent=1),
        fr.bernoulli(fm.key(1), 0.5, (n,)),
        fr.bernoulli(fm.fold_in(key, 0), 0.5, (n,)),
    ]
    for other in [*(o.double() - 0.5 for o in others), base.roll(1), base.roll(2)]:
        assert within(float((base * other).mean()), 0, 0.25, n)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_samples_have_the_given_shape(shape: tuple[int, ...]) -> None:
    for samples in (fr.uniform(0, shape), fr.normal(0, shape), fr.bernoulli(0, 0.5, shape)):
        assert samples.shape == shape


def test_samples_follow_the_key_through_vmap_and_touch_no_generator() -> None:
    keys = fm.split(fm.key(0), 3)
    with generators_untouched():
        for sample in (fr.uniform, fr.normal):
            mapped = torch.vmap(lambda k: sample(k, (4,)))(keys)  # noqa: B023
            assert torch.equal(mapped, torch.stack([sample(k, (4,)) for k in keys]))


BAD_KEY = "key: expected an int64 tensor of shape"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fm.key(2**64), "at most 64 bits, got 18446744073709551616"),
        (lambda: fm.key(-(2**63) - 1), "at most 64 bits"),
        (lambda: fm.key(True), "expected an int, got"),
        (lambda: fm.key(1.5), "seed: expected an int, got"),  # pyright: ignore[reportArgumentType]
        (lambda: fm.split(True), "expected an int, got"),
        (lambda: fm.split("0"), "key: expected an int, got .*; keys are ints, or tensors from fm.key.seed"),  # pyright: ignore[reportArgumentType]
        (lambda: fm.split(torch.tensor([0.0, 1.0])), BAD_KEY + r" \[\*P, 2\], got torch.float32 \[2\]"),
        (lambda: fm.split(torch.tensor(3)), BAD_KEY),
        (lambda: fm.split(torch.zeros(3, dtype=torch.int64)), BAD_KEY + r".*got torch.int64 \[3\]; make keys with"),
        (lambda: fm.split(torch.zeros(2, dtype=torch.int32)), BAD_KEY),
        (lambda: fr.uniform(torch.zeros(4, 2, dtype=torch.int64)), BAD_KEY + r" \[2\], got torch.int64 \[4, 2\]"),
        (lambda: fm.split(0, -1), "split: n: expected an int of 0 or more, got -1; keys of shape"),
        (lambda: fm.fold_in(0, 2**64), "fold_in: data: expected an int of at most 64 bits"),
        (lambda: fm.fold_in(0, -(2**63) - 1), "fold_in: data: expected an int of at most 64 bits"),
        (lambda: fm.fold_in(0, True), "fold_in: data: expected an int, got True"),
        (lambda: fm.fold_in(0, 1.0), "fold_in: data: expected an int, got 1.0"),  # pyright: ignore[reportArgumentType]
        (lambda: fm.fold_in(0, torch.tensor(1.0)), r"integer scalar, got torch.float32 \[\]"),
        (lambda: fm.fold_in(0, torch.tensor(True)), r"integer scalar, got torch.bool \[\]"),
        (lambda: fm.fold_in(0, torch.arange(3)), r"integer scalar, got torch.int64 \[3\]"),
        (lambda: fr.uniform(0, (2,), torch.int64), "dtype: expected one of torch.float32, .* got torch.int64"),
        (lambda: fr.normal(0, (2,), torch.int64), "dtype: expected one of torch.float32, .* got torch.int64"),
    ],
)
def test_bad_keys_and_data_raise(call: Any, message: str) -> None:
    with pytest.raises(fm.StructureError, match=message):
        call()
