"""The laws of calls that leave nothing behind: for each assertion a module or a library that breaks just it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import LAWS, CheckError, Claims, LawViolation, module_subject, purity

Act = Callable[[Any, Tensor], Tensor]


class Does(nn.Module):
    """``act(self, x)`` is its forward: ``[B, n, 6] -> [B, n, 2]``."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.net, self.act = nn.Linear(6, 2), act
        self.register_buffer("seen", torch.zeros(()))
        self.kept: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def case(module: Any, **how: Any) -> Any:
    claims: dict[str, Any] = {
        "n_agents": 3,
        "sharing": "shared",
        "example": torch.zeros(4, 3, 6),
        **how.pop("claims", {}),
    }
    return module_subject(module, Claims(**claims), agents=(0, 1), **how)


def found(law: str, subject: Any) -> str:
    """What a law says of a subject that breaks it."""
    with pytest.raises(LawViolation) as raised:
        LAWS[law](subject)
    return raised.value.found


# --- outputs are numbers ------------------------------------------------------------------------------------------


def nan_of(agent: int) -> Act:
    def act(m: Any, x: Tensor) -> Tensor:
        y = m.net(x).clone()
        y[0, agent, 1] = float("nan")
        return y

    return act


@pytest.mark.parametrize("agent", [0, 2])
def test_nan_of_one_agent(agent: int) -> None:
    said = found("outputs_are_numbers", case(Does(nan_of(agent))))
    assert said == f"agent {agent}: output[0] is nan in 1 of 8 numbers, for inputs that are not"


def test_nan_that_the_network_of_one_agent_gives_is_right() -> None:
    class Positive(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            return torch.where(y < 0, float("nan"), y)

    subject = case(Positive(6, 2), claims={"single": lambda: Positive(6, 2)})
    assert bool(torch.stack([output[0] for output in subject.outputs()]).isnan().any())
    LAWS["outputs_are_numbers"](subject)


def test_nan_that_the_network_of_one_agent_does_not_give() -> None:
    said = found("outputs_are_numbers", case(Does(nan_of(1)), claims={"single": lambda: nn.Linear(6, 2)}))
    assert said.startswith("agent 1: output[0] is nan")


def test_nan_where_the_network_of_one_agent_does_not_fit() -> None:
    said = found("outputs_are_numbers", case(Does(nan_of(1)), claims={"single": lambda: nn.Bilinear(6, 6, 2)}))
    assert said.startswith("agent 1: output[0] is nan")


def test_integers_and_infinities_are_numbers() -> None:
    class Chooses(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            y = super().forward(input)
            return y.argmax(-1), y / 0

    LAWS["outputs_are_numbers"](case(Chooses(6, 2)))


# --- memory -------------------------------------------------------------------------------------------------------


def test_what_is_left_is_named() -> None:
    def adds(m: Any, x: Tensor) -> Tensor:
        m.seen.add_(1)
        return m.net(x) + m.seen

    said = found("calls_leave_no_memory", case(Does(adds)))
    assert said.startswith("call 2 of three: outputs: expected ")
    assert said.endswith("; calls have changed buffer seen")


def test_what_another_input_leaves() -> None:
    """The second call is right: the third sees what the second left."""

    def of_the_first(m: Any, x: Tensor) -> Tensor:
        m.kept.append(x.clone())
        first = len(m.kept) % 3
        return m.net(x) + (0 if first else 1)

    said = found("calls_leave_no_memory", case(Does(of_the_first)))
    assert said.startswith("call ")
    assert "calls have changed attribute kept" in said


def test_what_is_left_and_not_seen_is_right() -> None:
    def counts(m: Any, x: Tensor) -> Tensor:
        m.seen.add_(1)
        m.kept.append(x)
        return m.net(x)

    module = Does(counts)
    LAWS["calls_leave_no_memory"](case(module))
    assert float(module.get_buffer("seen")) == 0
    assert module.kept == []


def test_a_module_that_samples_under_torchs_seed_has_no_memory() -> None:
    LAWS["calls_leave_no_memory"](case(Does(lambda m, x: m.net(x) + torch.rand(())), claims={"samples": True}))


def test_memory_is_asked_in_evaluation() -> None:
    def counts_in_training(m: Any, x: Tensor) -> Tensor:
        m.kept += [1] * m.training
        return m.net(x) * (1 + len(m.kept))

    LAWS["calls_leave_no_memory"](case(Does(counts_in_training).train()))


# --- nothing is changed -------------------------------------------------------------------------------------------


def only_in(train: bool, act: Callable[[Any, Tensor], object]) -> Act:
    """A forward that acts after its result is there, in evaluation or in training alone."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.net(x)
        if m.training is train:
            act(m, x)
        return y

    return forward


def only_after_an_exception(act: Callable[[Any, Tensor], object]) -> Act:
    """A forward that acts where a part of the module raises."""

    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            return m.net(x)
        except Exception:
            act(m, x)
            raise

    return forward


CHANGES: dict[str, tuple[Callable[[Any, Tensor], object], str]] = {
    "inputs": (lambda m, x: x.add_(1), "inputs[0]: expected "),
    "parameters": (lambda m, x: m.net.bias.data.add_(1), "parameters[1]: expected "),
    "a flag": (lambda m, x: m.net.train(not m.net.training), "the call has changed the flag training of net"),
    "the flag": (lambda m, x: setattr(m, "training", not m.training), "the call has changed the flag training of the "),
    "a lost parameter": (
        lambda m, x: delattr(m.net, "bias"),
        "the parameters ['net.bias'] are gone from the module",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("train", [False, True])
def test_changes_of_calls(what: str, train: bool) -> None:
    act, words = CHANGES[what]
    said = found("nothing_is_changed", case(Does(only_in(train, act))))
    assert said.startswith(f"train={train}: {words}")


@pytest.mark.parametrize("what", CHANGES)
def test_changes_after_an_exception(what: str) -> None:
    act, words = CHANGES[what]
    said = found("nothing_is_changed", case(Does(only_after_an_exception(act))))
    assert said.startswith(f"train=False, after an exception in the middle of a call: {words}")


def test_a_change_after_an_exception_in_training() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            return m.net(x)
        except Exception:
            if m.training:
                x.add_(1)
            raise

    said = found("nothing_is_changed", case(Does(forward)))
    assert said.startswith("train=True, after an exception in the middle of a call: inputs[0]: expected ")


def test_the_last_bit_of_an_input_counts() -> None:
    def nudge(m: Any, x: Tensor) -> None:
        x.copy_(torch.nextafter(x, x + 1))

    assert found("nothing_is_changed", case(Does(only_in(False, nudge)))).startswith("train=False: inputs[0]: ")


def test_buffers_stay_in_evaluation_and_move_in_training() -> None:
    def adds(m: Any, x: Tensor) -> None:
        m.seen.add_(1)

    said = found("nothing_is_changed", case(Does(only_in(False, adds))))
    assert said.startswith("train=False: buffers[0]: expected 0.0 at [], got 1.0")
    LAWS["nothing_is_changed"](case(Does(only_in(True, adds))))


def test_several_lost_parameters_are_sorted() -> None:
    def lose(m: Any, x: Tensor) -> None:
        del m.net.weight, m.net.bias

    said = found("nothing_is_changed", case(Does(only_in(False, lose))))
    assert said == "train=False: the parameters ['net.bias', 'net.weight'] are gone from the module"


@pytest.mark.parametrize("train", [False, True])
def test_evaluation_that_raises_after_an_exception(train: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.kept:
            raise ValueError("still busy")
        m.kept += [1] * (m.training is train)
        y = m.net(x)
        m.kept.clear()
        return y

    said = found("nothing_is_changed", case(Does(forward)))
    where = f"train={train}, after an exception in the middle of a call, evaluation: "
    assert said == where + "expected outputs, got ValueError: still busy"


def test_evaluation_that_differs_after_an_exception() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.kept.append(1)
        y = m.net(x) * len(m.kept)
        m.kept.pop()
        return y

    said = found("nothing_is_changed", case(Does(forward)))
    assert said.startswith("train=False, after an exception in the middle of a call, evaluation: outputs[0][0]: ")


def test_evaluation_may_differ_after_an_exception_in_training() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.training:
            m.seen.add_(1)
        return m.net(x) + m.seen

    LAWS["nothing_is_changed"](case(Does(forward)))


def test_samplers_may_differ_after_an_exception() -> None:
    dice = torch.Generator().manual_seed(0)
    LAWS["nothing_is_changed"](
        case(Does(lambda m, x: m.net(x) + torch.rand((), generator=dice)), claims={"samples": True})
    )


def test_exceptions_of_hidden_parts_are_tried_too() -> None:
    class Hidden(Does):
        def __init__(self, act: Act) -> None:
            super().__init__(act)
            self.parts = [nn.Identity()]

    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            return m.net(m.parts[0](x)) if m.training else m.net(x)
        except Exception:
            x.add_(1)
            raise

    assert "after an exception" in found("nothing_is_changed", case(Hidden(forward)))


def test_hooks_are_gone_afterwards() -> None:
    module = Does(lambda m, x: m.net(x))
    with purity._breaking(module):
        assert len(module.net._forward_hooks) == 1
        assert not module._forward_hooks
        with pytest.raises(purity.Trip):
            module(torch.zeros(4, 3, 6))
    assert not module.net._forward_hooks
    LAWS["nothing_is_changed"](case(module))
    assert not module.net._forward_hooks


# --- copies -------------------------------------------------------------------------------------------------------


def test_a_module_without_a_deepcopy_is_quoted() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.later = (each for each in ())  # a generator cannot be copied
        return m.net(x)

    said = found("copies_are_whole", case(Does(forward)))
    assert said.startswith("deepcopy: TypeError: cannot pickle 'generator' object")


def test_a_copy_that_computes_with_the_parameters_of_the_original() -> None:
    class Stale(Does):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.get()(x))
            net = self.net
            self.get = lambda: net  # functions are copied by reference

    said = found("copies_are_whole", case(Stale()))
    assert said.startswith("parameters of a deepcopy changed: its outputs, against those of the original[0][0]: ")


def test_a_copy_whose_parameters_are_those_of_the_original() -> None:
    class Tied(Does):
        def __deepcopy__(self, memo: Any) -> Tied:
            twin = Tied(self.act)
            twin.net = self.net
            return twin

    said = found("copies_are_whole", case(Tied(lambda m, x: m.net(x))))
    assert said.startswith("parameters of a deepcopy changed: outputs of the original[0][0]: ")


def test_a_state_dict_that_does_not_bring_the_numbers() -> None:
    class Forgets(Does):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    said = found("copies_are_whole", case(Forgets(lambda m, x: m.net(x))))
    assert said.startswith("state_dict loaded into a deepcopy: outputs[0][0]: ")


def test_copies_are_made_of_modules_that_have_been_called() -> None:
    module = Does(lambda m, x: m.net(x))
    module.act = lambda m, x: m.kept.append(len(m.kept)) or m.net(x)  # type: ignore[func-returns-value]
    assert purity._copied(case(module)).kept == [0]
    assert purity._copied(case(module, claims={"memory": True})).kept == []
    assert module.kept == []


# --- state dicts --------------------------------------------------------------------------------------------------


class Shifted(nn.Linear):
    """A number of its constructor is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.shift = torch.rand(2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.shift


def test_a_checkpoint_without_a_number() -> None:
    said = found("state_dicts_are_whole", case(Shifted))
    assert said.startswith("state_dict loaded into a second module: outputs[0][0]: expected ")


def test_a_checkpoint_that_does_not_load() -> None:
    sizes = iter(range(6, 100))

    class Grows(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 2)
            self.register_buffer("size", torch.zeros(next(sizes)))

    said = found("state_dicts_are_whole", case(Grows))
    start = "state_dict loaded into a second module: RuntimeError: Error(s) in loading state_dict for Grows: size "
    assert said.startswith(start)
    assert len(said) <= len("state_dict loaded into a second module: RuntimeError: ") + 160


def test_a_function_that_builds_the_same_module_again() -> None:
    module = nn.Linear(6, 2)
    with pytest.raises(CheckError, match=r"^the function that builds the module returns the same one again$"):
        LAWS["state_dicts_are_whole"](case(lambda: module))


def test_a_whole_copy_and_a_whole_checkpoint() -> None:
    for law in ("copies_are_whole", "state_dicts_are_whole"):
        LAWS[law](case(lambda: nn.Linear(6, 2)))
