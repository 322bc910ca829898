"""Agents of one slot merged into it: by mean, by the first, or an error where they differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._parameters.merging import merged_state
from tests.builders import N, Tensors, copied, mlp, numbers, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def tree(seed: int) -> Tensors:
    """One agent's parameters, from plain torch."""
    return {name: numbers(*p.shape, seed=seed + 10 * k) for k, (name, p) in enumerate(mlp().named_parameters())}


def slots_of(sharing: Any) -> dict[str, fm.Sharing]:
    return fm.network(mlp, N, sharing=sharing).sharing


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_agents_of_a_slot_merge_by_mean_or_by_the_first(full_sharing: Any, merge: Any) -> None:
    trees = [tree(seed) for seed in range(N)]
    before = [copied(t) for t in trees]
    got = fm.stack_agents(trees, sharing=full_sharing, merge=merge)
    assert list(got) == NAMES
    for name, slots in slots_of(full_sharing).items():
        for slot in range(slots.n_slots):
            members = [trees[i][name] for i in range(N) if slots[i] == slot]
            expected = members[0] if merge == "first" else sum(members, torch.zeros(())) / len(members)
            torch.testing.assert_close(got[name][slot], expected, rtol=1e-14, atol=1e-14)
    assert all(same(a, b) for a, b in zip(trees, before, strict=True))


@pytest.mark.parametrize("merge", ["error", "mean", "first"])
def test_equal_agents_merge_to_the_bit(full_sharing: Any, merge: Any) -> None:
    odd = {"0.weight": torch.tensor([0.1, 1e30, float("nan"), float("inf")]), "2.count": torch.tensor([3, 4])}
    slots = full_sharing
    if isinstance(slots, dict):
        slots = {"0.*": "shared", "*": "shared"}
    got = fm.stack_agents([copied(odd) for _ in range(N)], sharing=slots, merge=merge)
    for name, leaf in got.items():
        assert leaf.dtype == odd[name].dtype
        for row in leaf:
            torch.testing.assert_close(row, odd[name], rtol=0, atol=0, equal_nan=True)


def test_integers_and_bools_merge_to_the_largest() -> None:
    trees = [{"n": torch.tensor([i, 5 - i]), "b": torch.tensor([i == 1, False])} for i in range(N)]
    got = fm.stack_agents(trees, sharing="shared", merge="mean")
    assert got["n"].tolist() == [[2, 5]]
    assert got["b"].tolist() == [[True, False]]


def test_the_mean_of_one_agent_equals_it_to_the_bit() -> None:
    zeros = torch.tensor([0.0, -0.0])
    got = fm.stack_agents([{"w": zeros}, {"w": zeros + 1}], merge="mean")["w"]
    assert torch.equal(got[0].view(torch.int32), zeros.view(torch.int32))


def test_the_mean_of_equal_agents_equals_them_to_the_bit() -> None:
    numbers = torch.tensor([0.8597666025161743, -0.0, 3e38, float("inf")])
    assert numbers.expand(3, 4).mean(0).tolist()[::2] != numbers.tolist()[::2]  # it rounds, and overflows
    got = fm.stack_agents([{"w": numbers}] * 3, sharing="shared", merge="mean")["w"]
    assert torch.equal(got[0].view(torch.int32), numbers.view(torch.int32))


def test_the_mean_keeps_every_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        leaves: list[Tensor] = [torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([3.0, 2.0], dtype=dtype)]
        got = fm.stack_agents([{"w": leaf} for leaf in leaves], sharing="shared", merge="mean")["w"]
        assert got.dtype == dtype
        assert got[0].tolist() == [2.0, 2.0]


def one_by_one(after: torch.Tensor, before: torch.Tensor, sharing: fm.Sharing) -> torch.Tensor:
    """One slot at a time: the value of equal agents, else their mean; the largest of integers."""
    rows: list[torch.Tensor] = []
    for slot in range(sharing.n_slots):
        own = [after[i] for i, s in enumerate(sharing) if s == slot]
        if not own:
            rows.append(before[slot])
            continue
        stacked = torch.stack(own)
        if stacked.is_floating_point():
            rows.append(torch.where((stacked == own[0]).all(0), own[0], stacked.mean(0)))
        else:
            rows.append(stacked.amax(0))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("leaf", [(), (3,), (4, 5), (0,)])
def test_merging_all_slots_at_once_equals_one_slot_at_a_time_to_the_bit(dtype: Any, leaf: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, slots in ((1, 3), (7, 3), (40, 9), (40, 60), (300, 150), (300, 2)):
        given: Any = torch.randint(slots, (n,), generator=generator)
        sharing = fm.Sharing(given, slots)
        after = (torch.randn(n, *leaf, generator=generator) * 3).to(dtype)
        after[::3] = after[0].clone()  # some agents are equal
        before = torch.randn(slots, *leaf, generator=generator).to(dtype)
        got, expected = merged_state(after, before, sharing), one_by_one(after, before, sharing)
        assert got.dtype == dtype
        assert torch.equal(got, expected)
        used = fm.Sharing(given, slots).canonical()
        net = fm.network(nn.Linear(1, 1), n, sharing=used)
        assert all(used.members(s) == tuple(i for i in range(n) if used[i] == s) for s in range(used.n_slots))
        if n == 40:
            rows = torch.randn(n, 1, 1, generator=generator)
            _, merged = fm.reshare(
                fm.network(nn.Linear(1, 1), n), {"weight": rows, "bias": rows[:, 0]}, used, merge="mean"
            )
            assert torch.equal(merged["weight"], one_by_one(rows, rows, used))
            assert net.sharing["weight"] == used
