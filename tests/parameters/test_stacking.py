"""One-agent trees stacked into the slots of a sharing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functional_marl as fm
from tests.builders import N, Tensors, mlp, numbers, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def tree(seed: int) -> Tensors:
    """One agent's parameters, from plain torch."""
    return {name: numbers(*p.shape, seed=seed + 10 * k) for k, (name, p) in enumerate(mlp().named_parameters())}


def slots_of(sharing: Any) -> dict[str, fm.Sharing]:
    return fm.network(mlp, N, sharing=sharing).sharing


def test_stacking_is_the_inverse_of_unstacking(full_sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=full_sharing)
    params = fm.init_params(net, 0)
    stacked = fm.stack_agents(fm.unstack_agents(net, params), sharing=full_sharing)
    assert same(stacked, params)
    mine, given = ({leaf.untyped_storage().data_ptr() for leaf in p.values()} for p in (stacked, params))
    assert not mine & given


def test_one_tree_is_for_all_agents(full_sharing: Any) -> None:
    module = mlp()
    trees: list[Any] = [dict(module.named_parameters()), module, fm.to_tensordict(dict(module.named_parameters()))]
    stacked = [fm.stack_agents(given, n_agents=N, sharing=full_sharing) for given in trees]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    for got in stacked:
        for name, slots in slots_of(full_sharing).items():
            assert torch.equal(got[name], torch.stack([before[name]] * slots.n_slots))
            assert not got[name].requires_grad


def test_modules_stack_as_their_trees() -> None:
    modules = [mlp() for _ in range(N)]
    from_modules = fm.stack_agents(modules)
    assert same(from_modules, fm.stack_agents([dict(m.named_parameters()) for m in modules]))
    net, x = fm.network(mlp, N), numbers(5, N, 4)
    expected = torch.stack([m(x[:, i]) for i, m in enumerate(modules)], 1).detach()
    torch.testing.assert_close(fm.apply(net, from_modules, x), expected, rtol=1e-12, atol=1e-12)


P, Q = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 3.5])}
GAP = {"w": torch.tensor([1.0, float("nan")])}
YES, NO = {"b": torch.tensor(True)}, {"b": torch.tensor(False)}
SHARED: dict[str, Any] = {"sharing": "shared"}


@pytest.mark.parametrize(
    ("trees", "given", "error", "message"),
    [
        ([P, P, Q], {"sharing": [1, 0, 0]}, fm.SharingError, r"w: agents \[1, 2\] should share slot 0, but agent 2 di"),
        ([P, Q], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to 2.5"),
        ([P, Q], SHARED, fm.SharingError, 'give merge="mean" or merge="first"'),
        ([YES, NO], SHARED, fm.SharingError, r"b: agents .* differs from agent 0 by up to 1;"),
        ([P, GAP], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to nan"),
        ([GAP, P], SHARED, fm.SharingError, "agent 1 differs from agent 0 by up to nan"),
        (
            [P, Q],
            {"sharing": fm.Sharing([0, 2])},
            fm.SharingError,
            r"no agent is in the slots \[1\] .*; use its .canon",
        ),
        ([P, Q], {"merge": "median"}, fm.SharingError, "'error', 'mean', 'first', got 'median'"),
        ([P, Q], {"sharing": [0, 0, 1]}, fm.SharingError, "for each of 2 agents, got 3"),
        ([P, {"v": P["w"]}], {}, fm.StructureError, r"trees\[1\]\['w'\]: missing, expected \[2\]"),
        ([P, {**P, "v": P["w"]}], {}, fm.StructureError, r"trees\[1\]\['v'\]: not a leaf"),
        ([P, {"w": torch.ones(3)}], {}, fm.StructureError, r"trees\[1\]\['w'\]: expected \[2\], got \[3\]"),
        (
            [P, {"w": torch.ones(3)}, {"w": torch.ones(())}],
            {},
            fm.StructureError,
            r"^stack_agents: the agents' trees differ from that of agent 0\ntrees\[1\].*\ntrees\[2\]\['w'\]: expected",
        ),
        ([P, {"w": 1.0}], {}, fm.StructureError, r"expected a tensor \[2\], got float"),
        ([P, 3], {}, fm.StructureError, r"expected a dict of dotted names .* got int"),
        (iter([P, P]), {"n_agents": 2}, fm.StructureError, r"expected a dict of dotted names .* got list_iterator"),
        ([], {}, fm.StructureError, "^stack_agents: expected at least one tree, got none$"),
        (P, {}, fm.StructureError, "^stack_agents: one tree alone needs n_agents=; several trees go in a list$"),
        ([P, P], {"n_agents": 3}, fm.StructureError, "expected n_agents=3 trees, got 2"),
    ],
)
def test_wrong_trees_raise(trees: Any, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fm.stack_agents(trees, **given)
