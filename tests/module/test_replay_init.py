"""A replayed initialization against the module that the factory builds under the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._module.leaves import named_tensors
from functional_marl._module.record_init import record_init
from functional_marl._module.replay_init import InitTrace
from functional_marl._randomness.use_generator import sampling_from_seed

Build = Callable[[], nn.Module]


class Made(nn.Module):
    """A module whose leaves are what a function returns."""

    def __init__(self, leaves: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        for name, leaf in leaves().items():
            self.register_parameter(name, nn.Parameter(leaf, requires_grad=leaf.is_floating_point()))


def _several() -> dict[str, Tensor]:
    rows = [torch.randn(3), 2 * torch.ones(3), torch.rand(()) * torch.ones(3)]
    return {"stacked": torch.stack(rows), "again": torch.cat([rows[0], rows[2]]).view(2, 3).t().contiguous()}


def _written_constant() -> dict[str, Tensor]:
    scale = torch.tensor([1.0, 2.0]).mul_(3)  # replayed twice it must not be 9 times
    return {"scale": scale, "drawn": (torch.tensor([1.0, 2.0]).mul_(3) + torch.rand(2)).mul_(2)}


def _discarded() -> dict[str, Tensor]:
    torch.rand(5)  # moves the stream on
    return {"kept": torch.rand(2)}


def _orthogonal() -> nn.Module:
    layer = nn.Linear(5, 3)
    nn.init.orthogonal_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 0.5)
    return layer


def _sparse() -> nn.Module:
    layer = nn.Linear(6, 4)
    nn.init.sparse_(layer.weight, 0.5)
    return layer


def _in_parts() -> nn.Module:
    layer = nn.Linear(4, 6)
    for part in layer.weight.chunk(3):
        nn.init.xavier_uniform_(part)
    return layer


REPLAYED: dict[str, Build] = {
    "linear": lambda: nn.Linear(3, 2),
    "no bias": lambda: nn.Linear(3, 2, bias=False),
    "embedding with padding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "norms use no random numbers": lambda: nn.BatchNorm1d(3),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "gru": lambda: nn.GRU(3, 4, num_layers=2),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "orthogonal": _orthogonal,
    "sparse": _sparse,
    "in parts": _in_parts,
    "computed from random numbers": lambda: Made(lambda: {"log_std": 0.1 * torch.randn(4)}),
    "computed from several": lambda: Made(_several),
    "a constant written": lambda: Made(_written_constant),
    "random numbers thrown away": lambda: Made(_discarded),
    "an order": lambda: Made(lambda: {"order": torch.randperm(6), "normal": torch.normal(torch.zeros(6), 2.0)}),
}


def _branching() -> dict[str, Tensor]:
    leaf = torch.rand(3)
    return {"leaf": leaf if leaf[0] < 0.5 else -leaf}


def _resampled() -> dict[str, Tensor]:
    leaf = torch.randn(20)
    far = (leaf.abs() > 3).nonzero().flatten()  # none under seeds 0 and 1
    if len(far):
        leaf[far] = torch.randn(len(far))
    return {"leaf": leaf}


def _seen(see: Callable[[Tensor], float]) -> Build:
    """A factory whose Python looks at the numbers, and does the same under seeds 0 and 1."""

    def leaves() -> dict[str, Tensor]:
        leaf = torch.rand(8)
        return {"leaf": 2 * leaf if see(leaf) > 0.999 else leaf}

    return lambda: Made(leaves)


REFUSED: dict[str, Build] = {
    "sampled again where it is far": lambda: Made(_resampled),
    "seen by tolist": _seen(lambda leaf: max(leaf.tolist())),
    "seen by numpy": _seen(lambda leaf: float(leaf.numpy().max())),
    "seen by an array": _seen(lambda leaf: float(np.asarray(leaf).max())),
    "seen by item": _seen(lambda leaf: leaf.max().item()),
    "seen by a shape": _seen(lambda leaf: float(leaf[leaf > 0.999].numel())),
    "seen by how many differ": _seen(lambda leaf: float(9 - leaf.unique().numel())),
    "a branch on a number": lambda: Made(_branching),
    "a number of Python's own": lambda: Made(lambda: {"leaf": torch.full((3,), random.random())}),
    "a view": lambda: Made(lambda: {"leaf": torch.rand(6)[::2]}),
    "two leaves in one storage": lambda: Made(lambda: dict(zip("ab", torch.rand(2, 3), strict=True))),
    "resized": lambda: Made(lambda: {"leaf": torch.empty(2).resize_(4).uniform_()}),
}


def _built(build: Build) -> dict[str, Tensor]:
    """The leaves that the factory fills from torch's own global generator."""
    module = build()
    return {k: t.detach() for kind in ("_parameters", "_buffers") for k, t in named_tensors(module, kind).items()}


def _trace(build: Build) -> InitTrace | None:
    def init(seed: int) -> nn.Module:
        with sampling_from_seed(seed):
            return build()

    return record_init(init)


@pytest.mark.parametrize("build", REPLAYED.values(), ids=REPLAYED)
def test_a_replay_gives_what_the_factory_builds(build: Build) -> None:
    trace = _trace(build)
    assert trace is not None
    for seed in (5, 6, 5):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = _built(build)
        rows = {name: torch.full_like(leaf, 3) for name, leaf in expected.items()}
        trace.replay(rows, torch.Generator().manual_seed(seed))
        assert all(torch.equal(rows[name], leaf) for name, leaf in expected.items())


@pytest.mark.parametrize("build", REPLAYED.values(), ids=REPLAYED)
def test_without_a_generator_the_global_one_is_used_and_left_as_by_building(build: Build) -> None:
    trace = _trace(build)
    assert trace is not None
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = [_built(build) for _ in range(2)]
        after = torch.rand(3)
        torch.manual_seed(7)
        for leaves in expected:
            rows = {name: torch.full_like(leaf, 3) for name, leaf in leaves.items()}
            trace.replay(rows, None)
            assert all(torch.equal(rows[name], leaf) for name, leaf in leaves.items())
        assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_what_operations_alone_do_not_determine_has_no_trace(build: Build) -> None:
    assert _trace(build) is None


def test_a_factory_that_now_does_something_else_is_called_again() -> None:
    gain = [1.0]
    net = fm.network(lambda: Made(lambda: {"leaf": gain[0] * torch.randn(3)}), n_agents=5)
    before = fm.init_params(net, 0)["leaf"]
    gain[0] = 8.0
    assert torch.equal(fm.init_params(net, 0)["leaf"], 8 * before)


def test_under_autocast_factories_are_built() -> None:
    def product() -> dict[str, Tensor]:
        return {"leaf": torch.randn(3, 3) @ torch.randn(3, 3)}

    net = fm.network(lambda: Made(product), n_agents=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = fm.init_params(net, 0)["leaf"]
    assert low.dtype == torch.bfloat16
    assert fm.init_params(net, 0)["leaf"].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fm.init_params(net, 0)["leaf"], low)
