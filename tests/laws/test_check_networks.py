"""Functional networks, ``(net, params)``, under the laws: as modules, and as networks with slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl.laws import CheckError, LawViolation, ModuleSubject, check, check_marl_module, infer_sharing
from functional_marl.laws._check import laws_named
from functional_marl.laws._network_module import as_module
from tests.laws.check_cases import X, one

QUICK: dict[str, Any] = {"examples": 4}


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Dropout())


NETS: dict[str, tuple[fm.Network, Any]] = {
    "shared": (fm.network(fm.nets.mlp(6, 5, 2), 3, sharing="shared"), X),
    "clusters": (fm.network(fm.nets.mlp(6, 5, 2), 3, sharing={"0.*": "shared", "*": [1, 0, 1]}), X),
    "agents in front": (fm.network(fm.nets.mlp(6, 5, 2), 3, agent_dim=0, out_agent_dim=1), X.movedim(1, 0)),
    "a critic": (fm.network(fm.nets.mlp(18, 5, 2), 3, sharing="shared", centralized=True), X),
    "two inputs": (
        fm.network(fm.nets.gru(6, 4), 3, agent_dim=(-3, -2)),
        (torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4)),
    ),
    "buffers": (fm.network(normed, 3, sharing=[0, 0, 1]), X),
    "dropout": (fm.network(dropped, 3, randomness="same"), X),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_functional_networks(name: str, train: bool) -> None:
    net, example = NETS[name]
    how: dict[str, Any] = {"skip": ["compilation", "threads_agree"], "examples": 3, "train": train}
    report = check_marl_module((net, fm.init_params(net, 0)), example=example, laws="all", **how)
    assert report.facts["sharing"].endswith("(claimed by the module)")
    assert sum(verdict.verdict == "holds" for verdict in report) >= 5
    assert not any(verdict.why.startswith("it raised") for verdict in report), report


@pytest.mark.parametrize("name", NETS)
def test_functional_networks_are_asked_our_own_laws(name: str) -> None:
    net, example = NETS[name]
    given = (net, fm.init_params(net, 0))
    names = [law.name for law in laws_named("all") if not law.is_about(ModuleSubject) and law.topic != "compilation"]
    report = check_marl_module(given, example=example, laws=names, examples=3)
    held = {verdict.law for verdict in report if verdict.verdict == "holds"}
    assert {"shared_is_tiled", "relabelling_keeps_outputs", "initialization_is_the_modules_own"} <= held
    assert not any(verdict.why.startswith("it raised") for verdict in report), report


def test_a_wrong_module_of_a_functional_network_breaks_our_own_laws() -> None:
    class Counting(nn.Linear):
        """Which agent it is told by counting calls: the loop and vmap call it differently often."""

        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(input) + Counting.calls

    net = fm.network(lambda: Counting(6, 2), 3)
    report = check((net, fm.init_params(net, 0)), example=X, laws="agents_are_networks", **QUICK)
    assert report["agents_are_networks"].verdict == "violated"
    assert report["agents_are_networks"].snippet.endswith("seed=0)))")
    names: dict[str, Any] = {"module": (net, fm.init_params(net, 0))}
    with pytest.raises(LawViolation, match="agents_are_networks: "):
        exec(report.violated[0].snippet, names)


def test_functional_networks_are_called_as_apply_calls_them() -> None:
    net, _ = NETS["buffers"]
    params, state = fm.init_params(net, 0), fm.init_state(net)
    module = as_module((net, params, state))
    x = torch.randn(4, 3, 6)
    assert torch.equal(module.eval()(x), fm.apply(net, params, x, state=state))
    y, after = fm.apply(net, params, x, state=state, train=True, mutable=True)
    assert torch.equal(module.train()(x), y)
    assert all(torch.equal(leaf, after[name]) for name, leaf in module.named_buffers())
    assert [name for name, _ in module.named_parameters()] == list(params)


def test_functional_networks_are_believed_unless_they_are_contradicted() -> None:
    net, example = NETS["shared"]
    params = fm.init_params(net, 0)
    assert infer_sharing((net, params), example=example).sharing == "shared"
    with pytest.raises(CheckError, match="the module has 3 agents"):
        check((net, params), n_agents=2, example=example)
    report = check((net, params), sharing="independent", example=example, **QUICK)
    assert report["gradient_reaches_own_slot"].verdict == "violated"
    assert "module_subject(" in report.violated[0].snippet
    with pytest.raises(CheckError, match=r"a Network alone has no parameters: give \(net, params\)"):
        check(net, example=example)  # pyright: ignore
    with pytest.raises(CheckError, match=r"params\['0.weight'\]: missing, expected \[1, 5, 6\]"):
        check((net, {}), example=example)
    with pytest.raises(CheckError, match="n_agents: expected how many"):
        check(one, example=X)


def test_laws_of_evaluation_have_no_verdict_of_training() -> None:
    net, example = NETS["dropout"]
    report = check((net, fm.init_params(net, 0)), example=example, examples=2)
    trained = {verdict.law for verdict in report if verdict.train}
    assert {"local_jacobian", "gradient_reaches_own_slot"} <= trained
    assert not trained & {
        "nothing_is_changed",
        "shared_is_tiled",
        "kinds_are_kept",
        "cluster_equivariance",
        "batch_is_a_loop",
    }
    twice = check((net, fm.init_params(net, 0)), example=example, laws="shared_is_tiled", train=True, examples=2)
    assert twice["shared_is_tiled"].verdict == "holds"
