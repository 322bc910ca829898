"""A factory samples from the key alone: generators of its own, seeds, threads, networks inside of a factory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._module.record_init import record_init
from functional_marl._randomness.use_generator import sampling_from_seed
from functional_marl.nn import MultiAgentMLP
from tests.builders import N, generators_untouched, same

Build = Callable[[], nn.Module]


class OneParameter(nn.Module):
    """One parameter with the values that a function samples."""

    def __init__(self, sample: Callable[[], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(sample().float())


# --- generators of its own -----------------------------------------------------------------------------

HALF = torch.full((5,), 0.5)
SAMPLES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "rand": lambda g: torch.rand(5, generator=g),
    "randn": lambda g: torch.randn(5, generator=g),
    "randint": lambda g: torch.randint(9, (5,), generator=g),
    "randperm": lambda g: torch.randperm(5, generator=g),
    "normal": lambda g: torch.normal(HALF, HALF, generator=g),
    "bernoulli": lambda g: torch.bernoulli(HALF, generator=g),
    "multinomial": lambda g: torch.multinomial(HALF, 3, generator=g),
    "poisson": lambda g: torch.poisson(HALF, generator=g),
    "binomial": lambda g: torch.binomial(HALF, HALF, generator=g),
    "_standard_gamma": lambda g: torch.ops.aten._standard_gamma(HALF, g),
    "rrelu_with_noise": lambda g: torch.ops.aten.rrelu_with_noise(-HALF, torch.empty(5), 0.1, 0.3, True, g),
    "uniform_": lambda g: torch.empty(5).uniform_(generator=g),
    "normal_": lambda g: nn.init.orthogonal_(torch.empty(5, 5), generator=g),
    "random_": lambda g: torch.empty(5).random_(generator=g),
    "exponential_": lambda g: torch.empty(5).exponential_(generator=g),
}
GENERATORS: dict[str, Callable[[], torch.Generator]] = {
    "new": lambda: torch.Generator().manual_seed(0),
    "global": lambda: torch.default_generator,
}


@pytest.mark.parametrize("of", GENERATORS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_generator_of_the_factorys_own_raises_before_it_is_used(name: str, of: str) -> None:
    generator = GENERATORS[of]()
    before = generator.get_state()
    build = lambda: OneParameter(lambda: SAMPLES[name](generator))
    message = rf"random operation aten.{name}\..*generator of its own.*without generator="
    with generators_untouched():
        with pytest.raises(fm.RandomnessError, match=message):
            fm.network(build, N)
        with pytest.raises(fm.RandomnessError, match=message):
            fm.network(Resets(build), N)
        with pytest.raises(fm.RandomnessError, match=message), sampling_from_seed(0):
            build()
        with pytest.raises(fm.RandomnessError, match=message):
            record_init(_built_from_seed(build))
    assert torch.equal(generator.get_state(), before)


class Resets(nn.Linear):
    """Its reset calls a function that samples; its constructor does not."""

    def __init__(self, sample: Callable[[], Any]) -> None:
        super().__init__(2, 2)
        self.sample = [sample]

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        if "sample" in self.__dict__:
            self.sample[0]()


def _built_from_seed(build: Build) -> Callable[[int], nn.Module]:
    def built(seed: int) -> nn.Module:
        with sampling_from_seed(seed):
            return build()

    return built


def test_a_factory_that_uses_a_generator_later_raises_then() -> None:
    generator: list[Any] = [None]
    net = fm.network(lambda: OneParameter(lambda: torch.rand(3, generator=generator[0])), 6)
    params = fm.init_params(net, 0)  # by replay
    generator[0] = torch.Generator()
    before = generator[0].get_state()
    with generators_untouched(), pytest.raises(fm.RandomnessError, match=r"aten.rand.generator"):
        fm.init_params(net, 0)
    assert torch.equal(generator[0].get_state(), before)
    generator[0] = None
    assert same(fm.init_params(net, 0), params)


def test_a_generator_that_is_seeded_and_never_used_is_allowed() -> None:
    class Sampler(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.generator = torch.Generator().manual_seed(0)

    with generators_untouched():
        params = fm.init_params(fm.network(Sampler, 6), 3)
    assert same(params, fm.init_params(fm.network(lambda: nn.Linear(4, 2), 6), 3))


class OwnGenerator(nn.Linear):
    """Samples its weight from a generator of its own, as torchrl's networks may."""

    def __init__(self, features: int, out: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(features, out, bias, device, dtype)
        with torch.no_grad():
            self.weight.uniform_(generator=torch.Generator().manual_seed(5))


def test_the_facade_builds_such_a_module_agent_by_agent_as_torchrl_does() -> None:
    def leaves() -> dict[str, Tensor]:  # 20 agents: enough for a replay
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            team = MultiAgentMLP(4, 2, 20, centralized=False, share_params=False, depth=0, layer_class=OwnGenerator)
        return {name: leaf.detach() for name, leaf in team.named_parameters()}

    first = leaves()
    assert same(leaves(), first)
    (weight,) = (leaf for name, leaf in first.items() if name.endswith("weight"))
    (bias,) = (leaf for name, leaf in first.items() if name.endswith("bias"))
    expected = torch.empty(2, 4).uniform_(generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(agent, expected) for agent in weight)
    assert len({tuple(agent.flatten().tolist()) for agent in bias}) == 20


# --- seeds ---------------------------------------------------------------------------------------------


def _forked(seed: int) -> Build:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Linear(4, 2)

    return build


def _then_linear(seed: Callable[[], Any]) -> Build:
    def build() -> nn.Module:
        seed()
        return nn.Linear(4, 2)

    return build


def _linear_then(seed: Callable[[], Any]) -> Build:
    def build() -> nn.Module:
        module = nn.Linear(4, 2)
        seed()
        return module

    return build


CALLERS_SEED = 3
SEEDS: dict[str, Callable[[], Any]] = {
    "torch.manual_seed": lambda: torch.manual_seed(0),
    "the seed of the caller": lambda: torch.manual_seed(CALLERS_SEED),
    "torch.random.manual_seed": lambda: torch.random.manual_seed(0),
    "torch.seed": torch.seed,
    "default_generator": lambda: torch.default_generator.manual_seed(0),
    "set_rng_state": lambda: torch.set_rng_state(torch.Generator().manual_seed(0).get_state()),
}


@pytest.mark.parametrize("when", [_then_linear, _linear_then])
@pytest.mark.parametrize("name", SEEDS)
def test_a_factory_that_seeds_raises_and_changes_nothing(name: str, when: Callable[[Any], Build]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CALLERS_SEED)
        torch.rand(3)
        with generators_untouched(), pytest.raises(fm.RandomnessError, match="the factory seeds torch's global gener"):
            fm.network(when(SEEDS[name]), 2)
        assert torch.initial_seed() == CALLERS_SEED
        assert sys.getprofile() is None
        torch.manual_seed(3)  # afterwards seeding works as always
        first = torch.rand(2)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(2), first)


def test_a_factory_that_seeds_later_raises_then() -> None:
    seeds = [False]
    net = fm.network(_then_linear(lambda: seeds[0] and torch.manual_seed(0)), 2, sharing="shared")
    seeds[0] = True
    with generators_untouched(), pytest.raises(fm.RandomnessError, match="the factory seeds"):
        fm.init_params(net, 0)


def test_a_seed_that_is_undone_raises_too() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CALLERS_SEED)
        with generators_untouched(), pytest.raises(fm.RandomnessError, match="the factory seeds"):
            fm.network(_forked(0), 2)
        # Not detected, and without effect: the parameters come from the key, the caller's generator is unchanged.
        with generators_untouched():
            params = fm.init_params(fm.network(_forked(CALLERS_SEED), 2), 5)
    assert same(params, fm.init_params(fm.network(lambda: nn.Linear(4, 2), 2), 5))


@pytest.mark.parametrize(
    "nothing",
    [lambda: torch.set_rng_state(torch.get_rng_state()), torch.get_rng_state, torch.initial_seed],
    ids=["set_rng_state", "get_rng_state", "initial_seed"],
)
def test_calls_that_do_not_change_the_generator_are_allowed(nothing: Callable[[], Any]) -> None:
    with generators_untouched():
        params = fm.init_params(fm.network(_then_linear(nothing), 6), 5)
    assert same(params, fm.init_params(fm.network(lambda: nn.Linear(4, 2), 6), 5))


@pytest.mark.parametrize("seeds", [False, True])
def test_a_factory_that_raises_changes_nothing(seeds: bool) -> None:
    def build() -> nn.Module:
        torch.rand(3)
        if seeds:
            torch.manual_seed(0)
        raise KeyError("mine")

    with generators_untouched(), pytest.raises(KeyError, match="mine"):
        fm.network(build, 2)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        torch.rand(3)
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 7])
def test_seeding_of_cudas_generators_is_detected(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.Generator().manual_seed(7)  # in place of a device's generator
    torch.rand(3, generator=cuda)
    before = cuda.get_state()
    monkeypatch.setattr(torch.cuda, "default_generators", (cuda,))
    with generators_untouched(), pytest.raises(fm.RandomnessError, match="the factory seeds"):
        fm.network(_linear_then(lambda: cuda.manual_seed(seed)), 2)
    assert torch.equal(cuda.get_state(), before)


def test_other_threads_sample_from_the_global_generator_at_the_same_time() -> None:
    def build() -> nn.Module:
        thread = threading.Thread(target=lambda: sampled.append(torch.rand(2)))
        thread.start()
        thread.join()
        return nn.Linear(4, 2)

    sampled: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params = fm.init_params(fm.network(build, 2), 5)
        after = torch.rand(2)
        torch.manual_seed(0)
        expected = [torch.rand(2) for _ in range(len(sampled) + 1)]
    assert all(map(torch.equal, [*sampled, after], expected))
    assert same(params, fm.init_params(fm.network(lambda: nn.Linear(4, 2), 2), 5))


def test_a_factory_whose_own_threads_sample_raises() -> None:
    def build() -> nn.Module:
        with ThreadPoolExecutor(2) as pool:
            return nn.Sequential(*pool.map(lambda width: nn.Linear(4, width), (4, 2)))

    with generators_untouched(), pytest.raises(fm.RandomnessError, match="uses torch's global generator where"):
        fm.network(build, 2)


# --- networks inside of a factory ------------------------------------------------------------------------


class Nested(nn.Module):
    """Takes parameters from two networks, one initialized by building modules and one by replay."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(4, 2)
        few, many = fm.network(lambda: nn.Linear(3, 2), 2), fm.network(lambda: nn.Linear(3, 2), 7)
        self.few = nn.Parameter(fm.init_params(few, 1)["weight"])
        self.many = nn.Parameter(fm.init_params(many, 1)["weight"])


def test_a_factory_may_initialize_networks_of_its_own() -> None:
    linear = lambda: nn.Linear(3, 2)
    with generators_untouched():
        params = fm.init_params(fm.network(Nested, 5), 0)
        inner = {"few": fm.init_params(fm.network(linear, 2), 1), "many": fm.init_params(fm.network(linear, 7), 1)}
        plain = fm.init_params(fm.network(lambda: nn.Linear(4, 2), 5), 0)
    assert torch.equal(params["own.weight"], plain["weight"])  # the inner networks do not change the outer stream
    for name, leaves in inner.items():
        assert all(torch.equal(agent, leaves["weight"]) for agent in params[name])


def test_a_factory_may_build_a_team_of_the_facade() -> None:
    def build() -> nn.Module:
        team = MultiAgentMLP(4, 2, 20, centralized=False, share_params=False, depth=0)
        return OneParameter(lambda: next(iter(team.parameters())).detach().clone())

    with generators_untouched():
        first, again = (fm.init_params(fm.network(build, 4), 0)["weight"] for _ in range(2))
    assert torch.equal(first, again)
    assert len({float(agent.sum()) for agent in first}) == 4


def test_threads_get_the_parameters_that_one_thread_gets() -> None:
    nets = [fm.network(Nested, 3) for _ in range(2)]
    expected = fm.init_params(nets[0], 0)
    with generators_untouched(), ThreadPoolExecutor(4) as pool:
        assert all(same(got, expected) for got in pool.map(lambda k: fm.init_params(nets[k % 2], 0), range(12)))
