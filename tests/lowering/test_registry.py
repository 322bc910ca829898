"""The registry of layer rules: a rule is registered for exact classes, its leaves are checked, it can be removed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._lowering import Context, Plan, Step, batching_rules, lowering_rule, registry
from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.rows import Rows, over_rows
from functional_marl._lowering.steps import Run
from functional_marl.nn._single_agent_convnet import SquashDims
from tests.builders import numbers
from tests.lowering.test_plan import SHARINGS, N, assert_plan_is_loop, network, seq


class Scale(nn.Module):
    """A toy layer: one factor a feature."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.weight = size, nn.Parameter(torch.linspace(1, 2, size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Subclass(Scale):
    pass


def build() -> nn.Module:
    return seq(nn.Linear(4, 3), Scale(3), nn.Tanh())


def scale(module: Scale, context: Context) -> Step:
    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        weight = rows("weight")
        assert weight is not None
        return x * weight.unsqueeze(1)

    return over_rows(context.leaves, inner, lambda ndim: 1)


def leaves(module: Scale) -> ExpectedLeaves:
    return ExpectedLeaves({"weight": (module.size,)})


@pytest.fixture
def toy_rule() -> Iterator[None]:
    lowering_rule(Scale, leaves=leaves)(scale)
    yield
    del registry.RULES[Scale]


def why_no_plan(build: object) -> str:
    plan = fm.network(build, N).plans[False]  # pyright: ignore[reportArgumentType]
    assert isinstance(plan, str)
    return plan


@pytest.mark.usefixtures("toy_rule")
@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_registered_rule_is_used(sharing: str) -> None:
    net = network(build, {**SHARINGS, "biases shared": "shared"}[sharing])
    assert isinstance(net.plans[False], Plan)
    for batch in ([], [5], [2, 3], [0]):
        assert_plan_is_loop(net, (numbers(*batch, N, 4),))


def test_without_the_rule_there_is_no_plan() -> None:
    assert why_no_plan(build) == "1 (Scale): no rule for Scale"


@pytest.mark.usefixtures("toy_rule")
def test_a_rule_holds_for_exactly_its_class() -> None:
    assert why_no_plan(lambda: Subclass(4)) == "the module (Subclass): no rule for Subclass"


@pytest.mark.usefixtures("toy_rule")
def test_the_leaves_of_a_layer_are_checked() -> None:
    def other_shape() -> nn.Module:
        module = Scale(4)
        module.weight = nn.Parameter(torch.ones(1))
        return module

    def other_leaf() -> nn.Module:
        module = Scale(4)
        module.register_buffer("more", torch.ones(1))
        return module

    assert why_no_plan(other_shape) == "the module (Scale): weight of another shape than its class registers"
    assert why_no_plan(other_leaf) == "the module (Scale): other leaves than its class registers"


@pytest.mark.usefixtures("toy_rule")
def test_a_class_has_one_rule() -> None:
    with pytest.raises(ValueError, match="Scale: expected one rule for a class, got a second: scale"):
        lowering_rule(Scale)(scale)
    with pytest.raises(ValueError, match="Linear: expected one rule"):
        lowering_rule(nn.Linear)(scale)


def test_a_whole_network_has_no_rule_as_a_part() -> None:
    assert why_no_plan(lambda: seq(nn.Linear(4, 4), nn.GRUCell(4, 4))) == (
        "1 (GRUCell): it has a rule only as the whole network"
    )


def test_the_part_without_a_rule_is_named_once() -> None:
    inner = "1.0 (Conv1d): padding_mode='circular'"
    assert why_no_plan(lambda: seq(nn.Tanh(), seq(nn.Conv1d(4, 4, 3, padding_mode="circular")))) == inner


def test_a_rule_by_another_layer_never_returns_its_input() -> None:
    net = fm.network(lambda: SquashDims(1), N)
    x = numbers(5, N, 4)
    fm.apply(net, {}, x).zero_()
    assert x.any()


def test_some_batching_rules_are_for_autocast_alone() -> None:
    linear = torch.nn.functional.linear
    assert linear not in batching_rules(autocast=False)
    assert batching_rules(autocast=True).keys() == {linear, *batching_rules(autocast=False)}
