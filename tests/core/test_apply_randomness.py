"""Dropout for many agents: "same", "different" and "error" mean the same with a key and without, under every sharing
and every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._randomness.keyed_dropout import run_keyed
from functional_marl._strategies.plan import PlanEvaluator
from tests.builders import FLAT_SHARINGS, N, generators_untouched, numbers

KEY = fm.key(7)
STRATEGIES: list[Any] = ["auto", "loop", "vmap", "plan"]
KINDS: list[Any] = ["different", "same"]


def layers() -> nn.Module:
    """A module of known layers, which has a plan."""
    return nn.Sequential(
        nn.Dropout(0.3), nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.AlphaDropout(0.2), nn.Linear(8, 2)
    ).double()


def channels() -> nn.Module:
    return nn.Sequential(
        nn.Dropout1d(0.5), nn.Conv1d(5, 6, 1), nn.FeatureAlphaDropout(0.4), nn.Conv1d(6, 4, 1), nn.Dropout2d(0.5)
    ).double()


class Attends(nn.Module):
    """Attention dropout, then a functional one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return F.dropout(y, 0.3, self.training) + F.dropout(x, 0.3, self.training)


def only_dropout() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Tanh())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layers": (layers, (6, 4)),
    "channels": (channels, (6, 5, 3)),
    "attention": (Attends, (2, 5, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True).double(), (2, 5, 4)),
    "dropout": (only_dropout, (6, 4)),
}


def supported(net: fm.Network) -> bool:
    return net.strategy != "plan" or isinstance(PlanEvaluator.prepare(net, True), PlanEvaluator)


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("randomness", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_each_agent_has_its_own_stream_of_the_key(case: str, randomness: Any, sharing: Any) -> None:
    build, shape = CASES[case]
    net = fm.network(build, N, sharing=sharing, randomness=randomness, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, *shape)
    expected: list[Tensor] = []
    for i in range(N):
        module = fm.agent_module(net, params, i).train()
        stream = i if randomness == "different" else 0
        expected.append(run_keyed(lambda: module(x[i]), KEY, stream, False))  # noqa: B023
    for strategy in STRATEGIES:
        tried = net.replace(strategy=strategy)
        if supported(tried):
            with generators_untouched():
                got = fm.apply(tried, params, x, key=KEY, train=True)
            torch.testing.assert_close(got, torch.stack(expected).detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("centralized", [False, True])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_same_and_different_decide_whether_agents_have_equal_masks(
    sharing: Any, centralized: bool, strategy: Any, key: Any
) -> None:
    wide = lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8 * N if centralized else 8, 3)).double()
    base = fm.network(wide, N, sharing=sharing, centralized=centralized, strategy=strategy)
    # Parameters and inputs are equal: outputs can differ only by random numbers.
    params = fm.stack_agents(wide(), n_agents=N, sharing="shared")
    params = {name: leaf.expand(base.param_shapes[name]).clone() for name, leaf in params.items()}
    x = numbers(20, 1, 8).expand(20, N, 8)
    outputs: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for randomness in KINDS:
            net = base.replace(randomness=randomness)
            outputs[randomness] = fm.apply(net, params, x, key=key, train=True)
        still = fm.apply(base, params, x)
    alike: Callable[[Tensor, int, int], bool] = lambda y, i, j: torch.allclose(y[:, i], y[:, j], rtol=1e-12, atol=1e-12)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert all(alike(outputs["same"], i, j) for i, j in pairs)
    assert not any(alike(outputs["different"], i, j) for i, j in pairs)
    assert all(alike(still, i, j) for i, j in pairs)
    assert not alike(torch.stack([outputs["same"][:, 0], still[:, 0]], 1), 0, 1)


class Rolls(nn.Module):
    """No parameters and no inputs: agents differ in their random numbers only."""

    def forward(self) -> Tensor:
        return F.dropout(torch.ones(16), 0.5, self.training)


@pytest.mark.parametrize("randomness", KINDS)
def test_agents_without_tensors_have_random_numbers_too(randomness: Any) -> None:
    net = fm.network(Rolls, N, randomness=randomness, out_agent_dim=0)
    drawn = {s: fm.apply(net.replace(strategy=s), {}, key=KEY, train=True) for s in ("loop", "vmap", "auto")}
    assert torch.equal(drawn["vmap"], drawn["loop"])
    assert torch.equal(drawn["auto"], drawn["loop"])
    assert torch.equal(drawn["loop"][0], drawn["loop"][1]) == (randomness == "same")


@pytest.mark.parametrize("randomness", KINDS)
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_a_traced_call_uses_the_public_vmap(sharing: Any, randomness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    same: Any = {"randomness": randomness, "strategy": "vmap", "out_agent_dim": 0}
    net, whole = fm.network(layers, N, sharing=sharing, **same), fm.network(only_dropout, N, agent_dim=None, **same)
    params, x = fm.init_params(net, 0), numbers(6, N, 4)

    def drawn() -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            alone = [fm.apply(whole, {}, x, train=True), fm.apply(fm.network(Rolls, N, **same), {}, train=True)]
            return alone + [fm.apply(net, params, x, key=key, train=True) for key in (KEY, None)]

    expected = drawn()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(a, b) for a, b in zip(drawn(), expected, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
def test_error_raises_for_dropout_in_training_only(sharing: Any, strategy: Any, key: Any) -> None:
    net = fm.network(layers, N, sharing=sharing, randomness="error", strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with generators_untouched():
        for _ in range(3):  # the second call of a network may use another strategy
            with pytest.raises(fm.RandomnessError, match=r'"same" or "different", or .*train=False'):
                fm.apply(net, params, x, key=key, train=True)
        y = fm.apply(net, params, x, key=key)
    expected = torch.stack([fm.agent_module(net, params, i)(x[:, i]) for i in range(N)], 1)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("randomness", KINDS)
def test_without_a_key_the_seed_of_torch_is_used(randomness: Any, strategy: Any) -> None:
    net = fm.network(layers, N, randomness=randomness, strategy=strategy)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    outputs: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outputs.append(fm.apply(net, params, x, train=True))
        moved = torch.get_rng_state()
        outputs.append(fm.apply(net, params, x, train=True))
        assert not torch.equal(torch.get_rng_state(), moved)
    assert torch.equal(outputs[0], outputs[1])
    assert not any(torch.equal(outputs[0], other) for other in outputs[2:])


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_dropout_of_all_agents_has_the_right_rate_and_no_correlation(key: Any, p: float, strategy: Any) -> None:
    net = fm.network(lambda: nn.Sequential(nn.Dropout(p), nn.ReLU()), N, strategy=strategy)
    count = 40_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = fm.apply(net, {}, torch.ones(count, N, 1, dtype=torch.float64), key=key, train=True)[..., 0]
    values = set(y.unique().tolist())
    assert len(values) == 2
    assert 0.0 in values
    assert math.isclose(max(values), 1 / (1 - p), rel_tol=1e-4)
    dropped = (y == 0).double() - p
    for i in range(N):
        assert abs(float(dropped[:, i].mean())) < 5 * math.sqrt(p * (1 - p) / count)
        j = (i + 1) % N
        assert abs(float((dropped[:, i] * dropped[:, j]).mean())) < 5 * p * (1 - p) / math.sqrt(count)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_depend_only_on_the_key_and_the_agent(strategy: Any) -> None:
    def dropped(n_agents: int, sharing: Any, key: Any) -> Tensor:
        net = fm.network(lambda: nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5)), n_agents, sharing=sharing)
        ones = {"0.weight": torch.zeros(net.param_shapes["0.weight"]), "0.bias": torch.ones(net.param_shapes["0.bias"])}
        return fm.apply(net.replace(strategy=strategy), ones, torch.ones(9, n_agents, 1), key=key, train=True)

    base = dropped(N, "independent", KEY)
    for sharing in FLAT_SHARINGS.values():
        assert torch.equal(dropped(N, sharing, KEY), base)
    assert torch.equal(dropped(5, "independent", KEY)[:, :N], base)
    assert torch.equal(dropped(N, "shared", 7), base)
    assert not torch.equal(dropped(N, "shared", fm.key(8)), base)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shared_equals_independent_with_equal_parameters_in_training(strategy: Any) -> None:
    shared = fm.network(layers, N, sharing="shared", strategy=strategy)
    params, x = fm.init_params(shared, 0), numbers(5, N, 4)
    apart, tiled = fm.reshare(shared, params, "independent")
    got, expected = (fm.apply(net, p, x, key=KEY, train=True) for net, p in ((shared, params), (apart, tiled)))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_keyed_call_are_those_of_its_masks() -> None:
    net = fm.network(layers, N, agent_dim=0)
    x = numbers(N, 6, 4)
    for strategy in STRATEGIES:
        params = {k: v.requires_grad_() for k, v in fm.init_params(net, 0).items()}
        fm.apply(net.replace(strategy=strategy), params, x, key=KEY, train=True).pow(2).sum().backward()
        for i in range(N):
            module = fm.agent_module(net, params, i).train()
            run_keyed(lambda: module(x[i]), KEY, i, False).pow(2).sum().backward()  # noqa: B023
            for name, parameter in module.named_parameters():
                grad = params[name].grad
                assert grad is not None
                assert parameter.grad is not None
                torch.testing.assert_close(grad[i], parameter.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_without_a_key_other_random_operations_use_torchs_generator(strategy: Any) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    x = torch.zeros(50, N, 2, dtype=torch.float64)
    outputs: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for randomness in KINDS:
            net = fm.network(Noise, N, randomness=randomness, strategy=strategy)
            outputs[randomness] = fm.apply(net, {}, x)
    assert torch.equal(outputs["same"][:, 0], outputs["same"][:, 1])
    assert not torch.equal(outputs["different"][:, 0], outputs["different"][:, 1])
    forbidden = fm.network(Noise, N, randomness="error", strategy=strategy)
    with generators_untouched(), pytest.raises(fm.RandomnessError, match=r"random operation .*randn_like"):
        fm.apply(forbidden, {}, x)
