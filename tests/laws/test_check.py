"""Modules from anywhere under the laws: sound ones pass them all, each wrong one breaks the right law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from functional_marl._pytrees import flatten
from functional_marl.laws import (
    CheckError,
    Claims,
    Facade,
    LawViolation,
    check,
    check_marl_module,
    module_subject,
)
from functional_marl.laws._claims import _word
from tests.laws.check_cases import DICE, SOUND, WRONG, Around, Listed, X, claim, one, ours

# Wrong without a second agent.
ONE_OR_NONE = (
    "a detached agent",
    "rows of the batch",
    "gradients of one size",
    "another activation",
    "another precision",
    "own dice",
    "masks without error",
)
QUICK: dict[str, Any] = {"examples": 4}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("name", SOUND)
def test_sound_modules_pass(name: str) -> None:
    build, said = SOUND[name]
    report = check(built(build), **said, **QUICK)
    assert report, report
    assert sum(verdict.verdict == "holds" for verdict in report) >= 5
    assert not any(verdict.why.startswith("it raised") for verdict in report), report


@pytest.mark.parametrize("name", WRONG)
def test_wrong_modules_break_the_law(name: str) -> None:
    build, said, law = WRONG[name]
    report = check(built(build), **said, **QUICK)
    verdict = report[law]
    assert verdict.verdict == "violated", report
    if name not in ONE_OR_NONE:
        assert len(verdict.case["agents"] if verdict.case else []) == 2, verdict
    assert verdict.why.startswith(f"{law}: ")


@pytest.mark.parametrize("name", ["shared relu", "a list", "torchrl", "ours", "trunk and heads"])
def test_sound_modules_pass_in_training(name: str) -> None:
    build, said = SOUND[name]
    check_marl_module(built(build), **said, train=True, examples=4)


@pytest.mark.parametrize("law", ["randomness_has_one_meaning", "independent_equivariance"])
def test_sharing_is_inferred_where_a_law_records_no_gradients(law: str) -> None:
    module = ours(share_params=False, dropout=0.5 if law.startswith("random") else None, vmap_randomness="same")
    check_marl_module(module, **claim(), laws=[law], train=True, examples=3)


def test_a_gradient_that_is_only_rounding_is_no_violation() -> None:
    words: dict[str, Any] = {"norm_class": nn.BatchNorm1d, "norm_kwargs": [{"num_features": 1}] * 2}
    module = ours(share_params=True, depth=None, num_cells=[1, 1], dropout=0.5, vmap_randomness="same", **words)
    check_marl_module(module, **claim(example=X[:2]), laws=["slot_gradient_is_the_sum"], train=True, examples=6)


def over_all(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_batch_norm_over_agents_leaks_between_networks_and_not_within_one() -> None:
    """Agents of one network are rows of its batch; those of two networks are not."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.nets = nn.BatchNorm1d(6, affine=False), Listed()

        def forward(self, x: Tensor) -> Tensor:
            return self.nets(over_all(self.norm, x))

    assert check(Around(nn.BatchNorm1d(6), over_all), **claim("shared"), **QUICK)
    report = check(built(Behind), **claim("independent"), **QUICK)
    assert report["local_jacobian"].verdict == "violated"
    assert report["local_jacobian"].train
    assert report["training_others_changes_nothing"].verdict == "violated"
    assert "both write or read norm.running_mean" in report["gradient_reaches_own_slot"].why


def test_a_copy_is_one_of_a_module_that_has_been_called() -> None:
    """An actor that keeps its last distribution cannot be copied while that has a graph; detached, it can."""

    class KeepsLast(nn.Module):
        def __init__(self, detach: bool) -> None:
            super().__init__()
            self.net, self.detach, self.last = one(), detach, None

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x)
            self.last = y.detach() if self.detach else y
            return y

    laws: dict[str, Any] = {"laws": ["copies_are_whole"], "examples": 2}
    assert check(KeepsLast(detach=True), **claim("shared"), **laws)["copies_are_whole"].verdict == "holds"
    report = check(KeepsLast(detach=False), **claim("shared"), **laws)
    assert "deepcopy: RuntimeError" in report["copies_are_whole"].why
    again = check(KeepsLast(detach=False), **claim("shared", memory=True), **laws)
    assert again["copies_are_whole"].verdict == "holds"  # a graph kept between calls is what memory claims


def test_a_checkpoint_of_a_sampler_has_its_gate() -> None:
    """Under one seed a sampler draws what its numbers say: a gate in a plain dict is in no checkpoint."""

    class Gated(nn.Module):
        def __init__(self, registered: bool) -> None:
            super().__init__()
            gates = {"gate": nn.Linear(6, 2)}
            self.net, self.gates = one(), nn.ModuleDict(gates) if registered else gates

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x)
            return y * torch.bernoulli(self.gates["gate"](x).sigmoid())

    law = "state_dicts_are_whole"
    how: dict[str, Any] = claim("shared", samples=True) | {"laws": [law, "evaluation_draws_nothing"], "examples": 2}
    assert check(lambda: Gated(registered=True), **how)[law].verdict == "holds"
    assert check(lambda: Gated(registered=False), **how)[law].verdict == "violated"


def test_a_template_on_the_meta_device_has_no_numbers() -> None:
    class Templated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(one(), nn.BatchNorm1d(2, affine=False))
            self.template = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)).to("meta")

        def forward(self, x: Tensor) -> Tensor:
            return over_all(self.net, x)

    report = check(Templated(), **claim("shared"), **QUICK)
    assert report, report
    assert report["gradient_reaches_own_slot"].verdict == "holds"


def test_everything_of_ours_holds() -> None:
    for share in (True, False):
        report = check_marl_module(
            lambda share=share: ours(share_params=share), **claim(), laws="all", skip=["compilation"], examples=2
        )
        held = {"copies_are_whole", "number_of_parameters", "threads_agree", "state_dicts_are_whole"}
        assert held <= {v.law for v in report if v.cases}


def test_the_smallest_case_comes_first() -> None:
    def last_two(net: nn.Module, x: Tensor) -> Tensor:
        return net(x)[..., [0, 2, 1], :]

    report = check(Around(one(), last_two), **claim("shared"))
    case = report["local_jacobian"].case
    assert case is not None
    assert case["agents"] == [1, 2]
    assert case["rows"] == 1


def test_the_snippet_breaks_the_law_again() -> None:
    module = built(one)
    report = check(module, **claim("independent"), **QUICK)
    names: dict[str, Any] = {"module": module}
    with pytest.raises(LawViolation, match="agents 0 and 1 both train"):
        exec(report.violated[0].snippet, names)


@pytest.mark.parametrize(
    "example",
    [
        X,
        (X, X),
        {"a": {"b": X}, "c": [X.double(), torch.tensor([[[1, 2, 0]]])]},
        TensorDict({"a": {"b": X}}, [4]),
        torch.arange(6).view(1, 3, 2),
        (torch.zeros(1, 3, dtype=torch.bool),),
    ],
)
def test_examples_are_printed_as_python(example: Any) -> None:
    again = eval(_word(example), {"torch": torch, "TensorDict": TensorDict})
    assert type(again) is type(example)
    for a, b in zip(flatten(again)[0], flatten(example)[0], strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_the_module_is_left_as_it_was() -> None:
    module = built(lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 2)))
    module.get_submodule("1").eval()
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    flags = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    check(module, **claim("shared", randomness="different"), examples=2, train=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [part.training for part in module.modules()]
    assert all(torch.equal(leaf, before[name]) for name, leaf in module.state_dict().items())
    assert all(leaf.grad is None for leaf in module.parameters())


def test_a_module_that_a_law_breaks_is_built_again() -> None:
    class Fragile(Listed):
        """Loses its parameters where it raises."""

        def forward(self, x: Tensor) -> Tensor:
            if not x.numel():
                self.nets = nn.ModuleList()
            return super().forward(x)

    report = check(Fragile, **claim("independent"), **QUICK, laws=["empty_batches", "slots_differ"])
    assert [verdict.verdict for verdict in report] == ["not applicable", "holds"]


def test_draws_are_those_that_outputs_show_and_be_it_seldom() -> None:
    claims = Claims(X, n_agents=3)
    assert module_subject(Around(one(), lambda net, x: net(x) + 0 * torch.rand(1)), claims).repeatable
    own = Around(one(), lambda net, x: net(x) + torch.rand(1, generator=DICE))  # not of torch's global generator
    assert not module_subject(own, claims).repeatable
    for seed in range(10):
        torch.manual_seed(seed)
        masked = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Dropout(0.5))  # one unit, and one row
        assert not module_subject(masked, Claims(X[:1], n_agents=3), train=True).repeatable


def test_a_violation_that_is_a_draw_is_none() -> None:
    """Found by hypothesis: a unit that is dead for nearly every input, with a mask behind it."""
    options: Any = (("num_cells", [1]), ("activation_class", "ReLU"), ("dropout", 0.5))
    case = Facade("mlp", 3, [2, 0, 1], use_td_params=False, randomness="same", batch=(2,), options=options, seed=703)
    report = check(case.module(), example=case.input(), laws=["agents_are_networks"], examples=3, train=True, seed=703)
    assert report["agents_are_networks"].why == "calls draw random numbers"


def test_a_wrong_module_that_draws_out_of_sight_is_wrong() -> None:
    place = torch.arange(1.0, 4.0)[:, None]

    def act(net: nn.Module, x: Tensor) -> Any:
        y = net(x) * place
        return y, y.softmax(-1).flatten(0, -2).multinomial(1)

    report = check(Around(one(), act), **claim("shared", select=lambda out: out[0]), **QUICK)
    assert report["shared_equivariance"].verdict == "violated"


def test_a_frozen_parameter_blinds_nobody() -> None:
    net = built(one)
    net.get_parameter("2.bias").requires_grad_(False)
    report = check(net, **claim("independent"), **QUICK)
    assert report["gradient_reaches_own_slot"].verdict == "violated"
    assert not net.get_parameter("2.bias").requires_grad


def test_masks_that_are_one_by_chance_or_seldom_seen_are_no_violation() -> None:
    net = built(lambda: nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1, 1)))
    said = claim("shared", randomness="different", example=X[:1])
    for seed in range(20):
        law = check(net, **said, laws=["randomness_has_one_meaning"], examples=1, seed=seed)
        assert law["randomness_has_one_meaning"].verdict == "holds"


def test_nothing_claimed_is_inferred() -> None:
    report = check(built(Listed), **claim(), **QUICK)
    assert report
    assert report.facts["inferred"] == "independent"
    assert report.facts["sharing"] is None


def test_functions_draw_inputs() -> None:
    def draw(generator: torch.Generator) -> Tensor:
        return torch.rand(2, 3, 6, generator=generator)

    assert check(built(one), n_agents=3, sharing="shared", example=draw, examples=3)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"n_agents": 4}, r"inputs\[0\]: expected 4 agents at dim 1, got shape \[4, 3, 6\]"),
        ({"n_agents": 0}, "n_agents: expected 1 or more"),
        ({"agent_dim": 5}, "agent_dim=5: the first input has shape"),
        ({"sharing": "sharde"}, "expected 'shared', 'independent', a list of slots"),
        ({"sharing": [0, 1]}, "expected one slot for each of 3 agents"),
        ({"sharing": {"nothing*": "shared"}}, "no pattern"),
        ({"randomness": "some"}, "randomness: expected"),
        ({"example": torch.zeros(4, 3, 5)}, "raises on the example: RuntimeError"),
        ({"example": [1, 2]}, "example: expected tensors, got"),
        ({"laws": "no_such_law"}, "laws: expected .*got no_such_law"),
        ({"batch_dims": 2}, "batch_dims: expected at most the 1 axes"),
        ({"groups": {"a": 1}}, "groups: expected 3 agents"),
        ({"out_agent_dim": 0}, r"outputs.*: expected 3 agents at dim 0, got shape \[4, 3, 2\]"),
    ],
)
def test_what_cannot_be_asked(how: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckError, match=match):
        check(built(one), **{**claim("shared"), **how})


def test_a_facade_is_believed_unless_it_is_contradicted() -> None:
    with pytest.raises(CheckError, match="the module has 3 agents"):
        check(ours(), n_agents=2, example=X[:, :2])
    assert check(ours(share_params=True), **claim(), examples=2).facts["sharing"] == "shared (claimed by the module)"


def test_subjects_that_are_no_modules() -> None:
    with pytest.raises(CheckError, match="expected a module"):
        check(lambda: 3, **claim())
    with pytest.raises(CheckError, match="a function that builds one"):
        check(3, **claim())  # pyright: ignore
