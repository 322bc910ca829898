"""The steps of inference: which inputs are tried, which weights, what is marked, what is said when it fails."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import CheckError, Claims, infer_sharing
from functional_marl.laws import _infer as infer
from functional_marl.laws._module_case import ModuleCase
from functional_marl.laws._module_under_test import ModuleUnderTest
from functional_marl.laws._subject import generic_loss
from tests.laws.check_cases import GROUPS, Groups, Listed, Stacked, X

AGENTS: dict[str, Any] = {"n_agents": 3, "example": X}
IDS = torch.arange(12).view(4, 3) % 5


def host_of(module: nn.Module, **claims: Any) -> ModuleUnderTest:
    return ModuleUnderTest(module, Claims(**{**AGENTS, **claims}))


def masks_of(host: ModuleUnderTest, value: bool = True) -> dict[str, Tensor]:
    return {
        name: torch.full((host.n_agents, *leaf.shape), value, dtype=torch.bool) for name, leaf in host.params().items()
    }


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_each_agents_loss() -> None:
    module = Stacked()
    case = ModuleCase(host_of(module), seed=4)
    params = dict(module.named_parameters())
    rows = infer.gradients_by_agent(case, params)
    assert len(rows) == 3
    for i, row in enumerate(rows):
        loss = generic_loss(case.outputs()[i], case.seed)
        for found, want in zip(row, torch.autograd.grad(loss, list(params.values())), strict=True):
            assert found is not None
            torch.testing.assert_close(found, want)


def test_gradients_are_recorded_where_none_are() -> None:
    module = Listed()
    with torch.no_grad():
        rows = infer.gradients_by_agent(ModuleCase(host_of(module)), dict(module.named_parameters()))
    assert any(leaf is not None and bool(leaf.any()) for leaf in rows[0])


def test_what_a_loss_does_not_depend_on_has_no_gradient() -> None:
    module = Listed()
    params = dict(module.named_parameters())
    for agent, row in enumerate(infer.gradients_by_agent(ModuleCase(host_of(module)), params)):
        found = {
            name.split(".")[1] for name, leaf in zip(params, row, strict=True) if leaf is not None and bool(leaf.any())
        }
        assert found == {str(agent)}


def test_outputs_without_a_graph_have_no_gradients() -> None:
    class Detached(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).detach()

    module = Detached(6, 2)
    rows = infer.gradients_by_agent(ModuleCase(host_of(module)), dict(module.named_parameters()))
    assert rows == [[None, None]] * 3


def test_frozen_parameters_want_gradients_for_a_while() -> None:
    layer: Any = nn.Linear(6, 2)
    layer.weight.requires_grad_(False)
    seen: list[bool] = []

    def fail() -> None:
        with infer._trainable(layer):
            seen.append(layer.weight.requires_grad)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [True]
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_frozen_integers_stay_frozen() -> None:
    layer: Any = nn.Linear(6, 2)
    layer.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with infer._trainable(layer):
        assert not layer.table.requires_grad


# --- inputs -------------------------------------------------------------------------------------------------------


def test_inputs_are_alike_then_each_others() -> None:
    host = host_of(Listed())
    drawn = [case.leaves[0] for case in infer._draws(host, False)]
    assert len(drawn) == 12  # three seeds, each as drawn, large, and large with the other sign; then three turns
    for k in range(3):
        usual, large, other = drawn[3 * k : 3 * k + 3]
        wanted = ModuleCase(host, seed=k).leaves[0][:, :1].expand(-1, 3, -1)
        assert torch.equal(usual, wanted)
        assert torch.equal(large, 30 * wanted)
        assert torch.equal(other, -30 * wanted)
    own = ModuleCase(host, seed=3).leaves[0]
    for turn, found in enumerate(drawn[9:]):
        for agent in range(3):
            assert torch.equal(found[:, agent], own[:, (agent + turn) % 3])


def test_agents_of_a_group_take_turns_among_themselves() -> None:
    host = host_of(Groups(), **GROUPS)
    turns = list(infer._draws(host, False))[9:]
    assert len(turns) == 3  # the larger group
    own = ModuleCase(host, seed=3)
    for turn, case in enumerate(turns):
        for agent in range(5):
            other = (agent + turn) % 2 if agent < 2 else 2 + (agent - 2 + turn) % 3
            assert torch.equal(case.seen_by(agent)[0], own.seen_by(other)[0])


@pytest.mark.parametrize(("n", "count"), [(8, 9 + 8), (9, 9)])
def test_many_agents_take_no_turns(n: int, count: int) -> None:
    host = host_of(nn.Linear(6, 2), n_agents=n, example=torch.zeros(1, n, 6))
    assert len(list(infer._draws(host, False))) == count


def test_integers_are_not_scaled() -> None:
    host = host_of(nn.Embedding(5, 2), example=IDS, agent_dim=-1)
    assert len(list(infer._draws(host, False))) == 3 + 3


@pytest.mark.parametrize("train", [False, True])
def test_all_inputs_are_in_the_mode_that_is_asked_for(train: bool) -> None:
    host = host_of(Listed())
    assert {case.train for case in infer._draws(host, train)} == {train}
    assert {case.train for case in islice(infer._redraws(host, train, masks_of(host)), 4)} == {train}


# --- other weights ------------------------------------------------------------------------------------------------


def redrawn(module: nn.Module, masks: Any = None, count: int = 4, **claims: Any) -> list[tuple[dict[str, Tensor], Any]]:
    """The weights and inputs of the first cases."""
    host = host_of(module, **claims)
    found: list[tuple[dict[str, Tensor], Any]] = []
    redraws = infer._redraws(host, False, masks or masks_of(host))
    for case in islice(redraws, count):
        now = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
        found.append((now, case.leaves))
    redraws.close()
    return found


def test_weights_and_inputs_are_positive_every_other_time() -> None:
    for k, (weights, leaves) in enumerate(redrawn(nn.Linear(6, 20))):
        assert bool((weights["weight"] >= 0).all()) is (k % 2 == 0)
        assert bool((leaves[0] >= 0).all()) is (k % 2 == 0)


def test_every_time_there_are_other_weights_and_inputs() -> None:
    found = redrawn(nn.Linear(6, 20))
    for k, (weights, leaves) in enumerate(found):
        for others, more in found[:k]:
            assert not torch.equal(weights["weight"].abs(), others["weight"].abs())
            assert not torch.equal(leaves[0].abs(), more[0].abs())


def test_inputs_are_alike_under_other_weights() -> None:
    for _, leaves in redrawn(Listed()):
        assert torch.equal(leaves[0], leaves[0][:, :1].expand(-1, 3, -1))


def test_weights_are_as_large_as_they_were() -> None:
    layer = nn.Linear(6, 400)
    with torch.no_grad():
        layer.weight.normal_(0, 50)
        layer.bias.normal_(0, 0.01)
    for weights, _ in redrawn(layer):
        assert 45 < float(weights["weight"].square().mean().sqrt()) < 55
        assert 0.008 < float(weights["bias"].square().mean().sqrt()) < 0.012


def test_zeros_become_as_large_as_one() -> None:
    layer = nn.Linear(6, 400)
    nn.init.zeros_(layer.bias)
    for weights, _ in redrawn(layer):
        assert 0.8 < float(weights["bias"].square().mean().sqrt()) < 1.2


def test_afterwards_the_weights_are_what_they_were() -> None:
    layer = nn.Linear(6, 2)
    before = layer.weight.detach().clone()
    found = redrawn(layer, count=1)
    assert not torch.equal(found[0][0]["weight"], before)
    assert torch.equal(layer.weight.detach(), before)


def test_frozen_weights_are_not_redrawn() -> None:
    layer: Any = nn.Linear(6, 2)
    layer.bias.requires_grad_(False)
    before = layer.bias.clone()
    assert all(torch.equal(weights["bias"], before) for weights, _ in redrawn(layer))


def test_weights_that_no_loss_reaches_are_not_redrawn() -> None:
    layer = nn.Linear(6, 2)
    before, masks = layer.weight.detach().clone(), masks_of(host_of(layer))
    masks["weight"].fill_(False)
    for weights, _ in redrawn(layer, masks):
        assert torch.equal(weights["weight"], before)
        assert bool((weights["bias"] != layer.bias).all())


def test_zeros_that_no_loss_reaches_stay_and_the_others_move() -> None:
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        layer.weight[0, :3] = 0
    masks = masks_of(host_of(layer))
    masks["weight"].fill_(False)
    masks["weight"][1, 0, 0] = True  # one agent reaches one of the zeros
    for weights, _ in redrawn(layer, masks):
        assert weights["weight"][0, 1:3].tolist() == [0, 0]
        moved = (weights["weight"] != layer.weight.detach()).tolist()
        assert moved == [[True, False, False, True, True, True], [True] * 6]


def test_integer_inputs_stay_under_positive_weights() -> None:
    layer = nn.Embedding(5, 2)
    for _, leaves in redrawn(layer, example=IDS, agent_dim=-1):
        assert leaves[0].dtype is torch.int64


def test_the_size_of_integers_is_no_concern() -> None:
    x = torch.tensor([-1, 2])
    assert infer._absolute(x) is x
    assert infer._absolute(x.double()).tolist() == [1, 2]


# --- marks --------------------------------------------------------------------------------------------------------


def test_marks_are_new_once() -> None:
    module = Listed()
    host = host_of(module)
    case, masks = ModuleCase(host), masks_of(host, False)
    assert infer._mark(masks, case, host.params())
    assert not infer._mark(masks, case, host.params())
    for name, mask in masks.items():
        owner = int(name.split(".")[1])
        assert [bool(row.any()) for row in mask] == [agent == owner for agent in range(3)]


def test_marks_of_before_stay() -> None:
    host = host_of(nn.Linear(6, 2))
    masks = masks_of(host)
    assert not infer._mark(masks, ModuleCase(host).scaled(0), host.params())
    assert all(bool(mask.all()) for mask in masks.values())


def test_gradients_that_are_no_numbers_mark_nothing() -> None:
    host = host_of(nn.Linear(6, 2))
    masks = masks_of(host, False)
    infer._mark(masks, ModuleCase(host).scaled(float("nan")), host.params())
    assert not bool(masks["weight"].any())


# --- what is said -------------------------------------------------------------------------------------------------


def test_inference_is_remembered_for_each_mode() -> None:
    host = host_of(Listed())
    first = infer.inferred(host)
    assert infer.inferred(host) is first
    assert infer.inferred(host, True) is not first
    assert host.facts["inferred", False] is first


def test_a_module_that_raises_is_quoted() -> None:
    with pytest.raises(CheckError) as raised:
        infer_sharing(nn.Linear(7, 2), **AGENTS)
    assert str(raised.value).startswith("the module raises on the example: RuntimeError: mat1 and mat2")


def test_an_operation_without_a_derivative_is_quoted_in_short() -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            raise RuntimeError("no   derivative\nhere " + "x" * 200)

    class Without(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return Refuses.apply(super().forward(input))

    with pytest.raises(CheckError) as raised:
        infer_sharing(Without(6, 2), **AGENTS)
    said = "no gradient can be computed: "
    assert str(raised.value) == said + ("no derivative here " + "x" * 200)[:160]


def test_claims_may_be_given_whole_and_changed_by_keywords() -> None:
    claims = Claims(torch.zeros(4, 2, 6), n_agents=3)
    assert infer_sharing(Listed(), claims, example=X).sharing == "independent"


def test_a_claimed_sharing_is_not_looked_at() -> None:
    assert infer_sharing(Listed(), sharing="shared", **AGENTS).sharing == "independent"


def test_what_no_training_moves_is_read_by_agents() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 2)
            self.register_buffer("scale", torch.ones(3, 1))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * self.get_buffer("scale")

    found = infer_sharing(Scaled(), **AGENTS)
    assert [leaf.name for leaf in found.constants] == ["scale"]
    assert found.constants[0].slots == ((0,), (1,), (2,))
    assert [leaf.name for leaf in found.leaves] == ["weight", "bias"]


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_part_is_a_view() -> None:
    module = Stacked()
    found = infer.part(host_of(module), ("heads", (1,)))
    assert found.data_ptr() == module.heads[1].data_ptr()
    assert found.shape == (5, 2)


def test_a_part_of_a_buffer() -> None:
    module = nn.BatchNorm1d(3)
    found = infer.part(host_of(module, example=torch.zeros(4, 3), agent_dim=-1), ("running_mean", ()))
    assert found.data_ptr() == module.get_buffer("running_mean").data_ptr()


def test_parts_of_two_agents_are_those_that_they_do_not_share() -> None:
    pairs = infer.pairs_of_parts(host_of(Stacked()), 2, 0)
    assert pairs == [(("heads", (2,)), ("heads", (0,)))]
    assert infer.pairs_of_parts(host_of(nn.Linear(6, 2)), 0, 1) == []


def test_parts_of_other_shapes_do_not_line_up() -> None:
    with pytest.raises(CheckError, match=r"^the agents' parameters do not line up$"):
        infer.pairs_of_parts(host_of(Groups(), **GROUPS), 0, 3)


def test_parts_that_overlap_do_not_line_up() -> None:
    class Sum(nn.Module):
        """Agent 0 uses the first row, agent 1 both, agent 2 the second."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(2, 6))

        def forward(self, x: Tensor) -> Tensor:
            used = torch.stack([self.rows[0], self.rows.sum(0), self.rows[1]])
            return (x * used).sum(-1, keepdim=True)

    with pytest.raises(CheckError, match=r"^the agents' parameters do not line up$"):
        infer.pairs_of_parts(host_of(Sum()), 0, 1)
