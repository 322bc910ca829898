"""Initial leaves of every kind: empty, of integers, bools and complex numbers, for populations, from a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import generators_untouched, same

Build = Callable[[], nn.Module]


class Leaves(nn.Module):
    """Random and constant leaves of every dtype, as parameters and as buffers, some of them empty."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        if branches and float(torch.rand(())) < 0:  # a branch on a number: it cannot be replayed
            raise AssertionError
        leaves: dict[str, Tensor] = {
            "single": torch.randn(3, 2),
            "doubled": torch.rand(2, dtype=torch.float64),
            "halved": torch.randn(4).to(torch.bfloat16),
            "complex": torch.randn(2, dtype=torch.complex64),
            "integer": torch.randint(0, 1000, (5,), dtype=torch.int32),
            "flags": torch.rand(40) < 0.5,
            "order": torch.randperm(9),
            "none": torch.randn(0, 3),
            "no numbers": torch.randint(0, 5, (2, 0)),
            "scalar": torch.randn(()),
            "constant": torch.arange(3),
            "zero": torch.zeros(0, dtype=torch.bool),
        }
        for name, leaf in leaves.items():
            floats = leaf.is_floating_point() or leaf.is_complex()
            self.register_parameter(name, nn.Parameter(leaf, requires_grad=floats))
            self.register_buffer(f"{name} buffer", leaf + torch.rand(leaf.shape) if floats else leaf.clone())
        self.linear = nn.Linear(3, 0)
        self.embedding = nn.Embedding(4, 2, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return x


BUILDS: dict[str, Build] = {"replayed": Leaves, "built": lambda: Leaves(True)}


def by_torch(build: Build, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    return {k: leaf.detach() for k, leaf in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize("agents", [1, 2, 6])
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_leaves_of_every_kind_are_those_of_the_factory(name: str, agents: int) -> None:
    build = BUILDS[name]
    with generators_untouched():
        net, keys = fm.network(build, agents), fm.split(3, 2)
        got = {**fm.init_params(net, keys), **fm.init_state(net, keys)}
    assert (net.module_spec.init_trace() is not None) == (name == "replayed")
    for p, key in enumerate(keys):
        assert same({k: leaf[p] for k, leaf in got.items()}, {**fm.init_params(net, key), **fm.init_state(net, key)})
        for slot, (high, low) in enumerate(fm.split(key, agents).tolist()):
            expected = by_torch(build, high << 32 | low)
            assert same({k: leaf[p, slot] for k, leaf in got.items()}, expected)
            assert all(got[k].shape == (2, agents, *leaf.shape) for k, leaf in expected.items())


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_sharing_chooses_slots_and_changes_no_numbers(name: str) -> None:
    whole = fm.network(BUILDS[name], 5)
    some: Any = {"s*": "shared", "d*": [0, 1, 1, 0, 1], "*": "independent"}
    few = fm.network(BUILDS[name], 5, sharing=some)
    expected, got = ({**fm.init_params(net, 7), **fm.init_state(net, 7)} for net in (whole, few))
    for leaf, rows in got.items():
        assert torch.equal(rows, expected[leaf][: len(rows)]), leaf
        assert len(rows) == (1 if leaf[0] == "s" else 2 if leaf[0] == "d" else 5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_cast_changes_floats_only() -> None:
    net = fm.network(Leaves, 4)
    for init in (fm.init_params, fm.init_state):
        plain, cast = init(net, 0), init(net, 0, dtype=torch.float64)
        for name, leaf in plain.items():
            assert torch.equal(cast[name], leaf.double() if leaf.is_floating_point() else leaf)


def test_the_buffers_of_a_key_are_those_built_with_its_parameters() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("start", self.weight.detach() * 2)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    for agents in (2, 6):
        net = fm.network(Scaled, agents)
        assert torch.equal(fm.init_state(net, 4)["start"], 2 * fm.init_params(net, 4)["weight"])


def test_a_module_instance_with_integers_and_empty_leaves() -> None:
    class Table(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.order = nn.Parameter(torch.randperm(6), requires_grad=False)
            self.flags = nn.Parameter(torch.rand(5) < 0.5, requires_grad=False)
            self.none = nn.Parameter(torch.zeros(0, 2))
            self.register_buffer("count", torch.arange(3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Table()
    for agents in (2, 6):
        net = fm.network(module, agents)
        params, state = fm.init_params(net, 0), fm.init_state(net, 0)
        plain = fm.init_params(fm.network(nn.Linear(3, 2), agents), 0)
        assert torch.equal(params["weight"], plain["weight"])
        for name in ("order", "flags", "none"):
            assert torch.equal(params[name], getattr(module, name).detach().expand(params[name].shape))
        assert torch.equal(state["count"], module.get_buffer("count").expand(agents, 3))
        state["count"] += 1
        params["order"] += 1
        assert same(fm.init_params(net, 0), {**params, "order": params["order"] - 1})
