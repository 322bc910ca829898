"""Inputs of a module that is under test: drawn, cut, exchanged between agents; outputs taken apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import Claims
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_under_test import ModuleUnderTest, module_of

X = torch.zeros(4, 3, 6)


class Tells(nn.Module):
    """Gives back its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *args: Any) -> Any:
        if self.training:
            self.calls: Any = self.calls + 1
        return args[0] if len(args) == 1 else args


def case(example: Any = X, n_agents: int = 3, *, claims: dict[str, Any] | None = None, **how: Any) -> ModuleCase:
    return ModuleCase(ModuleUnderTest(module_of(Tells()), Claims(example, n_agents=n_agents, **(claims or {}))), **how)


SEVERAL = (X, torch.tensor([[3, 5, 5]] * 4), torch.zeros(4, 3, dtype=torch.bool), torch.zeros(7))
PLACES: dict[str, Any] = {"agent_dim": (1, 1, 1, None), "out_agent_dim": (1, 1, 1, None)}


def several(**how: Any) -> ModuleCase:
    return case(SEVERAL, claims=PLACES, **how)


def test_what_is_drawn_looks_like_the_example() -> None:
    x, count, truth, state = several(seed=1).leaves
    for leaf, example in zip((x, count, truth, state), SEVERAL, strict=True):
        assert (leaf.shape, leaf.dtype) == (example.shape, example.dtype)
    assert x.abs().max() > 0.5
    assert set(count.flatten().tolist()) == {3, 5}
    assert set(truth.flatten().tolist()) == {False, True}
    assert state.unique().numel() == 7


def test_seeds() -> None:
    one, again, other = (several(seed=seed).leaves for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])
    redrawn = several(seed=1).redrawn(2)
    assert redrawn.seed == 1
    assert all(map(torch.equal, redrawn.leaves, other))


def test_draws_are_those_of_torch_under_the_seed() -> None:
    drawn = case(seed=3).leaves[0]
    expected = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).float()
    assert torch.equal(drawn, expected)


def test_a_function_draws_the_example() -> None:
    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randint(5, (4, 3, 6), generator=generator).float(),)

    found = case(draw, seed=4)
    assert torch.equal(found.leaves[0], draw(torch.Generator().manual_seed(4))[0])
    assert case(lambda generator: draw(generator)[0], seed=4).leaves[0].shape == (4, 3, 6)


def test_fewer_rows() -> None:
    whole, small = several(seed=1), several(seed=1, size=2)
    assert (whole.batch_sizes, small.batch_sizes) == ((4,), (2,))
    for few, leaf, has in zip(small.leaves, whole.leaves, (True, True, True, False), strict=True):
        assert torch.equal(few, leaf[:2] if has else leaf)
        assert few.is_contiguous()
    assert all(map(torch.equal, small.whole().leaves, whole.leaves))
    assert small.whole().size is None
    assert case(torch.zeros(3, 6)).batch_sizes == ()
    two = case(torch.zeros(2, 4, 3, 6), claims={"batch_dims": 2}, size=1)
    assert (two.batch_sizes, two.leaves[0].shape) == ((1, 1), (1, 1, 3, 6))


def test_rows_of_an_axis() -> None:
    found = several(seed=1)
    piece = found.rows(0, 1, 2)
    assert torch.equal(piece.leaves[0], found.leaves[0][1:3])
    assert torch.equal(piece.leaves[3], found.leaves[3])
    two = case(torch.zeros(2, 4, 3, 6), claims={"batch_dims": 2})
    assert torch.equal(two.rows(1, 2, 1).leaves[0], two.leaves[0][:, 2:3])
    assert torch.equal(two.at(1, 2).leaves[0], two.leaves[0][1, 2])


def test_agents_take_each_others_inputs() -> None:
    found = several(seed=1)
    moved = found.taking([2, 0, 0])
    for leaf, was in zip(moved.leaves[:3], found.leaves[:3], strict=True):
        for agent, source in enumerate((2, 0, 0)):
            assert torch.equal(leaf[:, agent], was[:, source])
    assert torch.equal(moved.leaves[3], found.leaves[3])


def test_one_agent_gets_other_inputs() -> None:
    found, other = several(seed=1), several(seed=2)
    before = [leaf.clone() for leaf in found.leaves]
    changed = found.with_agent(1, other)
    for leaf, was, new in zip(changed.leaves[:3], found.leaves[:3], other.leaves[:3], strict=True):
        assert torch.equal(leaf[:, 1], new[:, 1])
        assert torch.equal(leaf[:, [0, 2]], was[:, [0, 2]])
    assert torch.equal(changed.leaves[3], found.leaves[3])
    assert all(map(torch.equal, found.leaves, before))


def test_groups() -> None:
    example = {"walker": torch.zeros(4, 2, 6), "runner": torch.zeros(4, 3, 5), "state": torch.zeros(4, 7)}
    claims = {"groups": {"walker": 2, "runner": 3}, "agent_dim": {"walker": 1, "runner": 1, "state": None}}
    found = case(example, 5, claims=claims | {"out_agent_dim": claims["agent_dim"]}, seed=1)
    leaves = dict(zip(sorted(example), found.leaves, strict=True))
    moved = dict(zip(leaves, found.taking([1, 0, 4, 3, 2]).leaves, strict=True))
    assert torch.equal(moved["walker"], leaves["walker"][:, [1, 0]])
    assert torch.equal(moved["runner"], leaves["runner"][:, [2, 1, 0]])
    assert torch.equal(moved["state"], leaves["state"])
    other = found.redrawn(2)
    changed = dict(zip(leaves, found.with_agent(3, other).leaves, strict=True))
    assert torch.equal(changed["walker"], leaves["walker"])
    assert torch.equal(changed["runner"][:, 1], dict(zip(leaves, other.leaves, strict=True))["runner"][:, 1])
    assert torch.equal(changed["runner"][:, [0, 2]], leaves["runner"][:, [0, 2]])
    alike = dict(zip(leaves, found.alike().leaves, strict=True))
    assert torch.equal(alike["walker"], leaves["walker"][:, [0, 0]])
    assert torch.equal(alike["runner"], leaves["runner"][:, [0, 0, 0]])
    seen = [[tuple(leaf.shape) for leaf in found.seen_by(agent)] for agent in (0, 4)]
    assert seen == [[(4, 7), (4, 6)], [(4, 5), (4, 7)]]
    outputs = found.outputs()
    assert [[tuple(leaf.shape) for leaf in outputs[agent]] for agent in (0, 4)] == seen
    assert torch.equal(outputs[4][0], leaves["runner"][:, 2])


def test_alike_scaled_and_watched() -> None:
    found = several(seed=1)
    assert torch.equal(found.alike().leaves[0], found.leaves[0][:, [0, 0, 0]])
    scaled = found.scaled(-30)
    assert torch.equal(scaled.leaves[0], -30 * found.leaves[0])
    assert all(map(torch.equal, scaled.leaves[1:3], found.leaves[1:3]))
    watched = found.wanting_gradients()
    assert [leaf.requires_grad for leaf in watched.leaves] == [True, False, False, True]
    assert not any(leaf.requires_grad for leaf in found.leaves)
    assert all(map(torch.equal, watched.leaves, found.leaves))
    assert found.joint_inputs_alone() is found


def test_outputs_of_each_agent() -> None:
    found = several(seed=1)
    outputs = found.outputs()
    assert len(outputs) == 3
    for agent, output in enumerate(outputs):
        for leaf, was in zip(output[:3], found.leaves[:3], strict=True):
            assert torch.equal(leaf, was[:, agent])
        assert torch.equal(output[3], found.leaves[3])


class Draws(nn.Module):
    """Training draws; evaluation shows whether it is training, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * self.gain + self.last
        self.last: Any = x.detach().sum()
        return x + torch.rand(())


@pytest.mark.parametrize("train", [False, True])
def test_calls(train: bool) -> None:
    found = ModuleCase(ModuleUnderTest(Draws(), Claims(X, n_agents=3)), seed=1, train=train)

    def same(one: list[Any], other: list[Any]) -> bool:
        return all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))

    usual = found.outputs()
    assert same(usual, found.outputs(train=train))
    assert not same(usual, found.outputs(train=not train))
    assert same(usual, found.outputs(fold=0))
    assert same(usual, found.outputs(fold=1)) is not train
    outputs, after = found.trained()
    assert same(outputs, found.outputs(train=True))
    assert after == {"last": found.leaves[0].sum()}
    assert found.host.module.get_buffer("last") == 0


def test_other_numbers() -> None:
    host = ModuleUnderTest(Draws(), Claims(X, n_agents=3))
    found = ModuleCase(host, seed=1, numbers={"gain": torch.tensor(2.0), "last": torch.tensor(5.0)})
    assert torch.equal(found.outputs()[1][0], found.leaves[0][:, 1] * 2 + 5)
    assert host.params()["gain"] == 1
    assert host.buffers()["last"] == 0
    assert ModuleCase(host).numbers == {}


def test_how_a_case_is_made_again() -> None:
    assert repr(case(seed=3)) == (
        "module_subject(module, Claims(torch.zeros([4, 3, 6]), n_agents=3), agents=(0, 0), rows=None, seed=3)"
    )
    again = repr(case(pair=(0, 2), size=1, train=True))
    assert again.endswith("agents=(0, 2), rows=1, seed=0, train=True)")
    assert case().n == 3
