"""The laws of axes, sizes and dtypes: for each assertion a module or a library that breaks just it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl.nn as fmnn
from functional_marl.laws import LAWS, CheckError, Claims, LawViolation, module_subject, shapes

Act = Callable[[Any, Tensor], Any]
BATCHES = torch.zeros(5, 4, 3, 6)  # two batch axes


class Does(nn.Module):
    """``act(net, x)`` is its forward: ``[*B, n, 6] -> [*B, n, 2]``."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.net, self.act = nn.Linear(6, 2), act

    def forward(self, x: Tensor) -> Any:
        return self.act(self.net, x)


def case(act: Act | nn.Module, example: Tensor = BATCHES, **claims: Any) -> Any:
    module = act if isinstance(act, nn.Module) else Does(act)
    given: dict[str, Any] = {
        "n_agents": 3,
        "sharing": "shared",
        "example": example,
        "batch_dims": example.ndim - 2,
        **claims,
    }
    return module_subject(module, Claims(**given), agents=(0, 1))


def found(law: str, subject: Any) -> str:
    """What a law says of a subject that breaks it."""
    with pytest.raises(LawViolation) as raised:
        LAWS[law](subject)
    return raised.value.found


def unknown(law: str, subject: Any) -> str:
    """Why a law cannot be asked."""
    with pytest.raises(CheckError) as raised:
        LAWS[law](subject)
    return str(raised.value)


# --- rows of a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_that_are_mixed_along_an_axis(axis: int) -> None:
    said = found("batch_is_a_loop", case(lambda net, x: net(x) + net(x).mean(axis, keepdim=True)))
    assert said.startswith(f"row 0 of batch axis {axis}, agent 0: output[0]: expected ")


@pytest.mark.parametrize("row", [1, 3])
def test_each_of_the_first_rows_is_looked_at(row: int) -> None:
    def act(net: nn.Module, x: Tensor) -> Tensor:
        y = net(x).clone()
        if len(y) > 1:
            y[row] += 1
        return y

    assert found("batch_is_a_loop", case(act)).startswith(f"row {row} of batch axis 0, agent 0: output[0]: ")


def test_four_rows_of_an_axis_are_enough() -> None:
    def act(net: nn.Module, x: Tensor) -> Tensor:
        y = net(x).clone()
        if len(y) > 1:
            y[4] += 1
        return y

    LAWS["batch_is_a_loop"](case(act))


@pytest.mark.parametrize("agent", [1, 2])
def test_rows_of_each_agent_are_looked_at(agent: int) -> None:
    def act(net: nn.Module, x: Tensor) -> Tensor:
        y = net(x).clone()
        y[:, :, agent] += y[:, :, agent].mean(0)
        return y

    assert found("batch_is_a_loop", case(act)).startswith(f"row 0 of batch axis 0, agent {agent}: output[0]: ")


def test_a_second_output_is_looked_at() -> None:
    said = found("batch_is_a_loop", case(lambda net, x: (net(x), net(x) + x.mean())))
    assert said.startswith("row 0 of batch axis 0, agent 0: output[1]: ")


def test_numbers_for_the_whole_batch_are_no_rows() -> None:
    LAWS["batch_is_a_loop"](case(lambda net, x: (net(x), net(x).mean((0, 1))), out_agent_dim=(-2, None)))


def test_a_batch_of_one_that_is_squeezed() -> None:
    said = found("batch_is_a_loop", case(lambda net, x: net(x).squeeze(0), torch.zeros(4, 3, 6)))
    assert said.startswith("a batch of one row, axis 0: ")


def test_a_module_that_takes_no_batch_of_one() -> None:
    def act(net: nn.Module, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("too few")
        return net(x)

    assert unknown("batch_is_a_loop", case(act)) == "the module takes no batch of one: ValueError: too few"


class Centred(nn.Linear):
    """One agent's network, which itself mixes the rows of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean(0, keepdim=True))


def test_a_network_of_one_agent_that_mixes_rows() -> None:
    subject = case(Centred(6, 2), torch.zeros(4, 3, 6), single=lambda: Centred(6, 2))
    assert unknown("batch_is_a_loop", subject) == "one agent's network itself mixes the rows of a batch"


def test_a_network_of_one_agent_that_does_not_fit_is_no_excuse() -> None:
    subject = case(Centred(6, 2), torch.zeros(4, 3, 6), single=lambda: nn.Bilinear(6, 6, 2))
    assert found("batch_is_a_loop", subject).startswith("row 0 of batch axis 0, agent 0: output[0]: ")


def test_rows_of_leaves_that_have_the_batch() -> None:
    whole = [torch.arange(6.0).view(2, 3), torch.zeros(3), torch.zeros(5, 3, 2), torch.zeros(())]
    row = [torch.ones(2, 1), torch.ones(1), torch.ones(5, 1, 2), torch.ones(())]
    ones, pieces = shapes._rows_of(row, whole, 1, 3, 2)
    assert ones[0] is row[0]
    assert ones[1] is row[2]
    assert len(ones) == 2
    assert [piece.tolist() for piece in pieces] == [[[2.0], [5.0]], torch.zeros(5, 1, 2).tolist()]


# --- one more batch axis ------------------------------------------------------------------------------------------


class Facade(fmnn.MultiAgentMLP):
    """One of our classes, whose outputs change where there are two batch axes."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__(6, 2, 3, centralized=False, share_params=True, depth=0)
        self.act = act

    def forward(self, *inputs: Tensor) -> Tensor:
        y = super().forward(*inputs)
        return self.act(y) if y.ndim > 3 else y


def facade(act: Callable[[Tensor], Tensor]) -> Any:
    return module_subject(Facade(act), Claims(torch.zeros(4, 3, 6)), agents=(0, 1))


def test_one_more_batch_axis_is_a_loop() -> None:
    LAWS["batch_axes_are_free"](facade(lambda y: y))


@pytest.mark.parametrize("row", [0, 1])
def test_one_more_batch_axis_with_a_wrong_row(row: int) -> None:
    said = found("batch_axes_are_free", facade(lambda y: y + torch.eye(2)[row].view(2, 1, 1, 1)))
    assert said.startswith(f"row {row} of one more batch axis: output: expected ")


def test_one_more_batch_axis_that_exchanges_rows() -> None:
    assert found("batch_axes_are_free", facade(lambda y: y.flip(0))).startswith("row 0 of one more batch axis: ")


def test_a_module_that_takes_no_further_axis() -> None:
    def refuse(y: Tensor) -> Tensor:
        raise ValueError("three axes")

    said = unknown("batch_axes_are_free", facade(refuse))
    assert said == "the module takes no further batch axis: ValueError: three axes"


# --- empty batches ------------------------------------------------------------------------------------------------


def empty(act: Callable[[Tensor], Any]) -> Act:
    """A module whose outputs change where the batch is empty."""
    return lambda net, x: net(x) if len(x) else act(net(x))


def refuse(y: Tensor) -> Tensor:
    raise ValueError("no rows")


def test_empty_batches_give_no_rows() -> None:
    LAWS["empty_batches"](case(empty(lambda y: y)))
    LAWS["empty_batches"](case(lambda net, x: (net(x), net(x).argmax(-1))))


@pytest.mark.parametrize(
    ("act", "got"),
    [
        (lambda y: y.double(), "torch.float64 [0, 4, 2]"),
        (lambda y: y.new_zeros(1, *y.shape[1:]), "torch.float32 [1, 4, 2]"),
        (lambda y: y[..., :1], "torch.float32 [0, 4, 1]"),
    ],
)
def test_empty_batches_that_give_something_else(act: Callable[[Tensor], Any], got: str) -> None:
    said = found("empty_batches", case(empty(act)))
    assert said == f"batch [0, 4], agent 0: expected torch.float32 [0, 4, 2], got {got}"


def test_empty_batches_whose_second_output_is_wrong() -> None:
    def act(net: nn.Module, x: Tensor) -> Any:
        y = net(x)
        return y, (y if len(x) else y.double())

    said = found("empty_batches", case(act))
    assert said == "batch [0, 4], agent 0: expected torch.float32 [0, 4, 2], got torch.float64 [0, 4, 2]"


def test_a_module_that_takes_no_empty_batch() -> None:
    said = unknown("empty_batches", case(empty(refuse)))
    assert said == "the module takes no empty batch: ValueError: no rows"


def test_a_module_that_takes_no_empty_batch_while_one_agent_does() -> None:
    said = found("empty_batches", case(empty(refuse), single=lambda: nn.Linear(6, 2)))
    assert said == "batch [0, 4]: expected outputs without rows, got ValueError: no rows"


class NeedsRows(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not input.numel():
            raise ValueError("no rows")
        return super().forward(input)


def test_neither_the_module_nor_one_agents_network_takes_an_empty_batch() -> None:
    said = unknown("empty_batches", case(NeedsRows(6, 2), single=lambda: NeedsRows(6, 2)))
    assert said == "the network of one agent takes no empty batch: no rows"


# --- dtypes -------------------------------------------------------------------------------------------------------


def test_outputs_have_the_dtype_of_inputs() -> None:
    LAWS["kinds_are_kept"](case(lambda net, x: (net(x), net(x).argmax(-1, keepdim=True), net(x) > 0)))


def test_complex_outputs_have_twice_the_bits() -> None:
    LAWS["kinds_are_kept"](case(lambda net, x: torch.complex(net(x), net(x))))
    said = found("kinds_are_kept", case(lambda net, x: torch.complex(net(x), net(x)).to(torch.complex64)))
    assert said == (
        "torch.float64 on cpu, agent 0: output: expected torch.complex128 on cpu, got torch.complex64 on cpu"
    )


def test_an_output_in_another_precision() -> None:
    said = found("kinds_are_kept", case(lambda net, x: net(x).float()))
    assert said == "torch.float64 on cpu, agent 0: output: expected torch.float64 on cpu, got torch.float32 on cpu"


def test_a_second_output_in_another_precision() -> None:
    said = found("kinds_are_kept", case(lambda net, x: (net(x), net(x).float())))
    assert said.startswith("torch.float64 on cpu, agent 0: output: expected torch.float64 on cpu, got torch.float32 ")


def test_a_module_that_does_not_run_in_another_precision() -> None:
    said = unknown("kinds_are_kept", case(lambda net, x: net(x) @ torch.eye(2)))
    assert said.startswith("the module does not run in torch.float64: RuntimeError: ")


def test_dtypes_of_outputs_where_floats_have_another() -> None:
    for given, wanted in (
        (torch.float32, torch.float64),
        (torch.float16, torch.float64),
        (torch.complex64, torch.complex128),
        (torch.int64, torch.int64),
        (torch.bool, torch.bool),
    ):
        assert shapes._dtype_of(torch.zeros(2, dtype=given), torch.float64) is wanted


@pytest.mark.parametrize("leaf", [torch.zeros(2, dtype=torch.float64), torch.zeros(2, device="meta")])
def test_kinds_are_dtype_and_device(leaf: Tensor) -> None:
    shapes._kind(leaf, leaf.clone(), "here")
    with pytest.raises(shapes.Broken) as raised:
        shapes._kinds({"a": torch.zeros(2), "b": leaf}, {"a": torch.zeros(2), "b": torch.zeros(2)}, "here")
    assert str(raised.value) == (f"here: expected torch.float32 on cpu, got {leaf.dtype} on {leaf.device}")


def test_kinds_are_those_of_all_devices() -> None:
    found = [(place, dtype) for place, dtype in shapes._KINDS if place != "cuda"]
    assert found == [
        ("cpu", torch.float32),
        ("cpu", torch.float64),
        ("cpu", torch.bfloat16),
        ("meta", torch.float32),
    ]
