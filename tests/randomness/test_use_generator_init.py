"""Initialization under a key gives the numbers that plain torch gives under ``torch.manual_seed``."""

from __future__ import annotations

import random as python_random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import Tensors, generators_untouched, same

Build = Callable[[], nn.Module]


class ParameterAndBuffer(nn.Module):
    """One parameter and one buffer with the values that a function samples."""

    def __init__(self, sample: Callable[[], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(sample().float())
        self.register_buffer("buffer", sample())


def _by_initializer(name: str) -> Tensor:
    function: Any = getattr(nn.init, name)
    weight = torch.empty((4, 2, 3) if name == "dirac_" else (6, 4))
    return function(weight, *{"constant_": (2.0,), "sparse_": (0.5,)}.get(name, ()))


INITIALISERS = sorted(n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_"))
D: Any = torch.distributions
HALF = torch.full((5,), 0.5)
SAMPLES: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5, 2),
    "randint": lambda: torch.randint(0, 100, (5,)),
    "randint low": lambda: torch.randint(100, (5,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(HALF),
    "randn_like": lambda: torch.randn_like(HALF),
    "randint_like": lambda: torch.randint_like(HALF, 100),
    "normal": lambda: torch.normal(0.0, 1.0, (5,)),
    "normal tensors": lambda: torch.normal(HALF, HALF),
    "normal mean": lambda: torch.normal(HALF, 2.0),
    "normal std": lambda: torch.normal(1.0, HALF),
    "bernoulli": lambda: torch.bernoulli(HALF),
    "bernoulli p": lambda: torch.bernoulli(HALF, 0.3),
    "bernoulli_": lambda: torch.empty(5).bernoulli_(0.3),
    "bernoulli_ tensor": lambda: torch.empty(5).bernoulli_(HALF),
    "multinomial": lambda: torch.multinomial(HALF, 3),
    "poisson": lambda: torch.poisson(HALF * 10),
    "uniform_": lambda: torch.empty(5).uniform_(-1, 1),
    "exponential_": lambda: torch.empty(5).exponential_(),
    "geometric_": lambda: torch.empty(5).geometric_(0.3),
    "cauchy_": lambda: torch.empty(5).cauchy_(),
    "log_normal_": lambda: torch.empty(5).log_normal_(),
    "random_": lambda: torch.empty(5).random_(0, 50),
    "double": lambda: torch.randn(5, dtype=torch.float64),
    "complex": lambda: torch.randn(5, dtype=torch.complex64).real,
    "dropout": lambda: nn.Dropout(0.5)(torch.ones(20)),
    "rrelu": lambda: nn.functional.rrelu(-HALF, training=True),
    "gumbel": lambda: nn.functional.gumbel_softmax(HALF),
    "Normal": lambda: D.Normal(0.0, HALF).sample(),
    "Normal.rsample": lambda: D.Normal(0.0, HALF).rsample((3,)),
    "Bernoulli": lambda: D.Bernoulli(HALF).sample(),
    "Categorical": lambda: D.Categorical(HALF).sample((4,)),
    "Beta": lambda: D.Beta(HALF, HALF).sample(),
    "Gamma": lambda: D.Gamma(HALF, HALF).rsample(),
    "Dirichlet": lambda: D.Dirichlet(HALF).sample(),
    "Poisson": lambda: D.Poisson(HALF).sample(),
    "Laplace": lambda: D.Laplace(HALF, HALF).sample(),
    "Gumbel": lambda: D.Gumbel(HALF, HALF).sample(),
    "StudentT": lambda: D.StudentT(HALF).sample(),
    "Multinomial": lambda: D.Multinomial(4, HALF).sample(),
    "MultivariateNormal": lambda: D.MultivariateNormal(torch.zeros(3), torch.eye(3)).sample(),
} | {name: lambda name=name: _by_initializer(name) for name in INITIALISERS}


def _of_one_sign() -> nn.Module:
    module = nn.Linear(4, 1)
    with torch.no_grad():
        if float(module.weight.detach().sum()) < 0:
            module.weight.neg_()
    return module


def _small() -> nn.Module:
    """Samples again until all weights are small."""
    module = nn.Linear(4, 1)
    with torch.no_grad():
        while bool((module.weight.abs() > 0.3).any()):
            module.weight.uniform_(-0.5, 0.5)
    return module


def _normalised() -> nn.Module:
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight /= module.weight.norm(dim=1, keepdim=True)
        module.bias.zero_()[1] = 2.0
    return module


def _copied() -> nn.Module:
    """An actor, and its target with the same weights."""
    module = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    module[1].load_state_dict(module[0].state_dict())
    return module


def _rare_branch() -> nn.Module:
    """The branch on the numbers is the same under most seeds."""
    module = nn.Linear(4, 1)
    if bool(module.weight.detach().max() > 0.4):
        nn.init.zeros_(module.weight)
    return module


MODULES: dict[str, Build] = {
    "of one sign": _of_one_sign,
    "small": _small,
    "normalised": _normalised,
    "copied": _copied,
    "rare branch": _rare_branch,
    "Linear": lambda: nn.Linear(4, 3),
    "Conv1d": lambda: nn.Conv1d(2, 3, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 3, 3),
    "Bilinear": lambda: nn.Bilinear(2, 3, 4),
    "Embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 3),
    "BatchNorm": lambda: nn.BatchNorm1d(3),
    "LayerNorm": lambda: nn.LayerNorm(3),
    "PReLU": lambda: nn.PReLU(3),
    "GRU": lambda: nn.GRU(3, 4, 2, bidirectional=True),
    "LSTM": lambda: nn.LSTM(3, 4, proj_size=2),
    "GRUCell": lambda: nn.GRUCell(3, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "MultiheadAttention kdim": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    "EncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "DecoderLayer": lambda: nn.TransformerDecoderLayer(4, 2, 8),
    "Encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "AdaptiveSoftmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 10, [3, 6]),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    "mlp": fm.nets.mlp(4, 8, 2),
    "convnet": fm.nets.convnet([3, 4]),
    "gru": fm.nets.gru(3, 4),
}


FACTORIES = {**{n: lambda sample=sample: ParameterAndBuffer(sample) for n, sample in SAMPLES.items()}, **MODULES}


def by_torch(build: Build, seed: int) -> Tensors:
    """The same factory under ``torch.manual_seed``, in plain torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("agents", [1, 6])  # one agent: a module is built; six: by replay
@pytest.mark.parametrize("name", FACTORIES)
def test_a_slot_is_what_the_factory_builds_under_the_seed_of_its_key(name: str, agents: int) -> None:
    build: Build = FACTORIES[name]
    with generators_untouched():
        net = fm.network(build, agents)
        key = fm.key(11)
        got = {**fm.init_params(net, key), **fm.init_state(net, key)}
        again = {**fm.init_params(net, key), **fm.init_state(net, key)}
    assert same(got, again)
    for slot, (high, low) in enumerate(fm.split(key, agents).tolist()):
        expected = by_torch(build, high * 2**32 + low)
        assert got.keys() == expected.keys()
        for leaf in got:
            assert got[leaf].dtype == expected[leaf].dtype
            assert torch.equal(got[leaf][slot], expected[leaf].detach())


def test_torchs_initializers_are_found() -> None:
    assert {"xavier_uniform_", "kaiming_normal_", "orthogonal_", "trunc_normal_", "sparse_"} <= set(INITIALISERS)


def test_a_module_instance_is_initialized_as_its_class_is() -> None:
    for name in ("Linear", "Conv1d", "Bilinear", "Embedding", "GRU", "MultiheadAttention", "GRUCell", "gru"):
        build = MODULES[name]
        given, built = (fm.init_params(fm.network(b, 2), 3) for b in (build(), build))
        assert same(given, built), name


def test_default_dtype_and_device_are_those_of_the_call() -> None:
    net = fm.network(fm.nets.mlp(4, 8, 2), 6)
    key = fm.key(0)
    plain = fm.init_params(net, key)
    assert {leaf.dtype for leaf in plain.values()} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    try:
        assert {leaf.dtype for leaf in fm.init_params(net, 0).values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert {leaf.device.type for leaf in fm.init_params(net, key).values()} == {"meta"}
    assert same(fm.init_params(net, 0), plain)


# --- what is unaffected, and what is not possible --------------------------------------------------------


def test_a_profiler_that_runs_stays() -> None:
    def profile(*_: Any) -> None: ...

    sys.setprofile(profile)
    try:
        fm.init_params(fm.network(lambda: nn.Linear(4, 2), 2), 0)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def test_an_op_without_a_generator_raises_with_its_name() -> None:
    build = lambda: ParameterAndBuffer(lambda: torch.native_dropout(torch.ones(4), 0.5, True)[0])
    with generators_untouched(), pytest.raises(fm.RandomnessError, match=r"native_dropout.* takes no generator"):
        fm.network(build, 2)


def test_numpy_and_python_do_not_sample_from_the_key_and_the_docstring_says_so() -> None:
    assert "numpy's and Python's random numbers" in " ".join(str(fm.network.__doc__).split())
    for sample in (lambda: torch.from_numpy(np.random.rand(3)), lambda: torch.tensor([python_random.random()])):
        net = fm.network(lambda: ParameterAndBuffer(sample), 1)  # noqa: B023
        numpy_state: Any = np.random.get_state()
        python_state = python_random.getstate()
        try:
            assert not same(fm.init_params(net, 0), fm.init_params(net, 0))
        finally:
            np.random.set_state(numpy_state)
            python_random.setstate(python_state)


def test_threads_do_not_affect_each_other() -> None:
    nets = [fm.network(MODULES[name], 2) for name in ("mlp", "EncoderLayer", "orthogonal")]
    jobs = [(net, seed) for seed in range(10) for net in nets]
    expected = [fm.init_params(net, seed) for net, seed in jobs]
    with generators_untouched(), ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda job: fm.init_params(*job), jobs))
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
