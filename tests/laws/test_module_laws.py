"""Laws on modules, one case at a time: what they call a violation, and in which words; and what they let pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import LAWS, Claims, LawViolation, module_subject
from tests.laws.check_cases import SOUND, WRONG, X, claim


class Holds(nn.Module):
    """``act(self, x)`` is the forward of a module with a linear layer, a buffer and a list."""

    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.act = nn.Linear(6, 2), act
        self.register_buffer("seen", torch.zeros(()))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def writes_inputs(m: Any, x: Tensor) -> Tensor:
    y = m.net(x)
    x.add_(1)
    return y


def writes_parameters(m: Any, x: Tensor) -> Tensor:
    y = m.net(x)
    m.net.weight.data.mul_(2)
    return y


def writes_a_buffer(m: Any, x: Tensor) -> Tensor:
    m.seen.add_(1)
    return m.net(x)


def turns_training_on(m: Any, x: Tensor) -> Tensor:
    m.net.train(True)
    return m.net(x)


def turns_training_off(m: Any, x: Tensor) -> Tensor:
    m.eval()
    return m.net(x)


def stays_broken(m: Any, x: Tensor) -> Tensor:
    weight, m.net.weight = m.net.weight, nn.Parameter(m.net.weight + 1)
    y = m.net(x)
    m.net.weight = weight
    return y


def loses_a_parameter(m: Any, x: Tensor) -> Tensor:
    bias, m.net._parameters["bias"] = m.net._parameters["bias"], None
    y = m.net(x)
    m.net._parameters["bias"] = bias
    return y + bias


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls.append(1)
    return m.net(x) * len(m.calls)


def remembers_the_tensor(m: Any, x: Tensor) -> Tensor:
    if not any(x is each for each, _ in m.calls):
        m.calls.append((x, m.net(x)))
    return next(y for each, y in m.calls if each is x)


def held(act: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Holds(act)


SHARED = claim("shared")
# name -> (builds the module, the claim about it, law, the words of the violation without numbers)
PURITY: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str, str]] = {
    "inputs": (held(writes_inputs), SHARED, "nothing_is_changed", r"train=False: inputs\[0\]: expected # at "),
    "parameters": (
        held(writes_parameters),
        SHARED,
        "nothing_is_changed",
        r"train=False: parameters\[0\]: expected # at ",
    ),
    "a buffer": (held(writes_a_buffer), SHARED, "nothing_is_changed", r"train=False: buffers\[0\]: expected # at \[\]"),
    "on": (
        held(turns_training_on),
        SHARED,
        "nothing_is_changed",
        r"train=False: the call has changed the flag training of net$",
    ),
    "off": (
        held(turns_training_off),
        SHARED,
        "nothing_is_changed",
        r"train=True: the call has changed the flag training of net, the module$",
    ),
    "after an exception": (
        held(stays_broken),
        SHARED,
        "nothing_is_changed",
        r"train=False, after an exception in the middle of a call, evaluation: outputs\[0\]\[0\]: expected # at ",
    ),
    "lost": (
        held(loses_a_parameter),
        SHARED,
        "nothing_is_changed",
        r"train=False, after an exception in the middle of a call: the parameters \['net.bias'\] are gone ",
    ),
    "a counter": (
        held(counts),
        SHARED,
        "calls_leave_no_memory",
        r"call 2 of three: outputs: expected # at .*; calls have changed attribute calls\b",
    ),
    "a cache by identity": (
        held(remembers_the_tensor),
        SHARED,
        "calls_leave_no_memory",
        r"call 2 of three: outputs: expected # at .*; calls have changed attribute calls\b",
    ),
}


def words(found: str) -> str:
    return re.sub(r"-?\d+\.\d+(e[-+]?\d+)?", "#", found.splitlines()[0])


def violation(
    build: Callable[[], nn.Module], said: dict[str, Any], law: str, pair: tuple[int, int] = (0, 1), train: bool = False
) -> str:
    torch.manual_seed(0)
    example = said["example"].clone() if said["example"] is X else said["example"]  # some write their inputs
    case = module_subject(build(), Claims(**{**said, "example": example}), agents=pair, train=train)
    with pytest.raises(LawViolation) as raised:
        LAWS[law](case)
    return words(raised.value.found)


@pytest.mark.parametrize("name", PURITY, ids=lambda name: f"purity-{name}")
def test_what_calls_change(name: str) -> None:
    build, said, law, match = PURITY[name]
    assert re.match(match, violation(build, said, law)), violation(build, said, law)


def test_purity_lets_training_write_buffers() -> None:
    def writes(m: Any, x: Tensor) -> Tensor:
        if m.training:
            m.seen.add_(1)
        return m.net(x)

    for law in ("nothing_is_changed", "calls_leave_no_memory"):
        LAWS[law](module_subject(Holds(writes), Claims(**SHARED)))


# What is said of the modules of check_cases.py, without numbers; # is a number.
WORDS = {
    "swapped outputs": "agent 1's output when agent 0's input changes[0]: expected # at [0, 0], got # (8 differ)",
    "a leak": "agent 1's output when agent 0's input changes[0]: expected # at [0, 0], got # (8 differ)",
    "leak between groups": "agents 0 and 2 both train nets.runner.weight[0, 0] (8 of 8 numbers), "
    "and the claim [0, 0, 1, 1, 1] keeps them apart",
    "a place of its own": "agents 0 and 1 change places, agent 0 with the input of agent 1: output[0]: ",
    "shared, claimed independent": "agents 0 and 1 both train 0.weight[0, 0] (30 of 30 numbers), "
    "and the claim [0, 1, 2] keeps them apart",
    "independent, claimed shared": "agents 0 and 1: 0 ",
    "copies": "after a step, agents 0 and 1 with equal inputs: output[0]: expected # at [0, 0], got # (8 differ)",
    "alike": "all parameters of the agents 0 and 1: expected different numbers, got the same",
    "one mask": "randomness 'different', agents 0 and 1 alike: output: expected different numbers in one of 32 draws, ",
    "many masks": "randomness 'same', agents 0 and 1 alike: output, draw 0[0]: expected ",
    "masks without error": "randomness 'error': expected an error at the first draw, got outputs",
    "a detached agent": "agent 2's loss: expected a nonzero gradient on some parameter, got zero on all",
    "a critic that sees one": "agent 0's output by inputs[0] of agent 1: expected a nonzero gradient, got zero",
    "a critic with a place": "agents 0 and 1: output of one network for one joint input[0]: expected ",
    "rows of the batch": "row 0 of batch axis 0, agent 0: output[0]: expected # at [0, 0], got # (2 differ)",
    "gradients of one size": "all 3 agents together: gradient of net.0.weight, flat: expected # at ",
    "another activation": "agent 0, against the network of one agent: output[0]: expected ",
    "another precision": "torch.float64 on cpu, agent 0: output: expected torch.float64 on cpu, got torch.float32",
    "own dice": "two calls under seed 0, train=False: outputs[0][0]: expected # at [0, 0], got # (8 differ)",
}


@pytest.mark.parametrize("name", WORDS, ids=lambda name: f"{LAWS[WRONG[name][2]].topic}-{name}")
def test_the_words_of_a_violation(name: str) -> None:
    build, said, law = WRONG[name]
    found = violation(build, said, law, (0, 2) if "groups" in name else (0, 1))
    assert found.startswith(WORDS[name]), found


# Laws that compare agents, on modules that share as they say.
@pytest.mark.parametrize(
    "law", ["local_jacobian", "gradient_reaches_own_slot", "tied_agents_stay_tied", "batch_is_a_loop"]
)
@pytest.mark.parametrize("name", ["shared relu", "a list", "clusters", "trunk and heads", "one critic", "groups"])
def test_sound_modules(law: str, name: str) -> None:
    build, said = SOUND[name]
    torch.manual_seed(0)
    case = module_subject(build(), Claims(**said), agents=(0, 1))
    if not LAWS[law].why_not(case):
        LAWS[law](case)
