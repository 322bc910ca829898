"""A module under test: where it has the agents, what it states of itself, how it is called and left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._sharing import Sharing
from functional_marl.laws import CheckError, Claims
from functional_marl.laws._module_under_test import ModuleUnderTest, Place, is_lazy, module_of
from tests.laws.check_cases import Listed, ours, torchrl_mlp

X = torch.zeros(4, 3, 6)


class Echo(nn.Module):
    """Gives back its inputs, and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls: Any = self.calls + 1
        self.seen.append((args, kwargs))
        return (*args, kwargs) if kwargs else args[0] if len(args) == 1 else args


def under_test(
    example: Any = X, n_agents: int | None = 3, module: nn.Module | None = None, **how: Any
) -> ModuleUnderTest:
    return ModuleUnderTest(module or Echo(), Claims(example, n_agents=n_agents, **how))


def dims(host: ModuleUnderTest) -> list[int | None]:
    return [place.dim for place in host.places]


# --- where the agents are ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "how", "dim", "batch"),
    [
        ((4, 3, 6), {}, 1, (4,)),
        ((3, 6), {}, 0, ()),
        ((2, 4, 3, 6), {}, 2, (2,)),
        ((2, 4, 3, 6), {"batch_dims": 2}, 2, (2, 4)),
        ((2, 4, 3, 6), {"batch_dims": 0}, 2, ()),
        ((4, 3, 6), {"agent_dim": 1}, 1, (4,)),
        ((3, 4, 6), {"agent_dim": 0}, 0, ()),
        ((3, 4, 6), {"agent_dim": -3}, 0, ()),
        ((4, 6, 3), {"agent_dim": -1}, 2, (4,)),
    ],
)
def test_the_axis_of_agents(shape: tuple[int, ...], how: dict[str, Any], dim: int, batch: tuple[int, ...]) -> None:
    host = under_test(torch.zeros(shape), **how)
    assert (dims(host), host.position, host.batch, host.batch_dims) == ([dim], dim, batch, len(batch))
    assert host.batched == [True]
    assert [place.dim for place in host.out_places] == [dim]
    assert (host.n_agents, host.centralized, host.fault) == (3, False, None)


def test_several_inputs() -> None:
    state, hidden = torch.zeros(7), torch.zeros(2, 4, 3, 5)
    positions = (1, None, 2)
    host = under_test((X, state, hidden), agent_dim=positions, out_agent_dim=positions)
    assert dims(host) == [1, None, 2]
    assert host.batched == [True, False, False]
    assert [place.name for place in host.places] == ["inputs[0]", "inputs[1]", "inputs[2]"]
    assert [place.members for place in host.places] == [(0, 1, 2)] * 3
    again = host.rebuild(host.leaves)
    assert (len(again[0]), again[1]) == (3, {})


def test_keyword_inputs_have_the_agents_where_the_first_has_them() -> None:
    out = (1, {"hard": 1})
    assert dims(under_test(X, kwargs={"hard": X}, out_agent_dim=out)) == [1, 1]
    host = under_test((X, X[0, 0]), kwargs={"hard": X}, agent_dim=(1, None), out_agent_dim=(1, None, {"hard": 1}))
    assert dims(host) == [1, None, 1]
    assert host.places[2].name == "kwargs['hard']"
    args, kwargs = host.rebuild(host.leaves)
    assert (len(args), list(kwargs)) == (2, ["hard"])


def test_dicts() -> None:
    example = {"obs": X, "state": torch.zeros(4, 5)}
    host = under_test(example, agent_dim={"obs": 1, "state": None}, out_agent_dim={"obs": 1, "state": None})
    assert dict(zip([place.name for place in host.places], dims(host), strict=True)) == {
        "inputs[0]['obs']": 1,
        "inputs[0]['state']": None,
    }
    assert host.batched == [True, True]


def test_groups() -> None:
    example = {"a": torch.zeros(4, 2, 6), "b": torch.zeros(4, 3, 6), "state": torch.zeros(4, 1)}
    host = under_test(example, 5, groups={"a": 2, "b": 3}, agent_dim=1, out_agent_dim=1)
    members = {place.name: (place.members, place.dim) for place in host.places}
    assert members == {
        "inputs[0]['a']": ((0, 1), 1),
        "inputs[0]['b']": ((2, 3, 4), 1),
        "inputs[0]['state']": ((), None),
    }
    assert [host.group_of(agent) for agent in range(5)] == [(0, 1), (0, 1), (2, 3, 4), (2, 3, 4), (2, 3, 4)]
    with pytest.raises(CheckError, match=r"^agent 5: expected one of 5$"):
        host.group_of(5)
    assert under_test().group_of(2) == (0, 1, 2)


def test_places() -> None:
    leaf = torch.arange(12).view(2, 3, 2)
    place = Place("x", (4, 7, 5), 1)
    assert torch.equal(place.of(7, leaf), leaf[:, 1])  # pyright: ignore[reportArgumentType]
    assert place.of(0, leaf) is None
    assert Place("x", (0, 1), None).of(5, leaf) is leaf


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"n_agents": None}, "n_agents: expected how many agents there are; the module does not state it"),
        (
            {"n_agents": 4},
            "inputs[0]: expected 4 agents at dim 1, got shape [4, 3, 6]; state where with agent_dim= "
            "(a tree of positions, None for what all agents see)",
        ),
        ({"agent_dim": 3}, "agent_dim=3: the first input has shape [4, 3, 6]"),
        ({"agent_dim": -4}, "agent_dim=-4: the first input has shape [4, 3, 6]"),
        ({"agent_dim": None}, "agent_dim=None: no input has an axis of agents: state out_agent_dim="),
        ({"batch_dims": 2}, "batch_dims: expected at most the 1 axes ahead of the agents, got 2"),
        ({"batch_dims": -1}, "batch_dims: expected at most the 1 axes ahead of the agents, got -1"),
        ({"example": ()}, "example: expected tensors, got []"),
        ({"groups": {"a": 2, "b": 2}}, "groups: expected 3 agents, got {'a': 2, 'b': 2}"),
        (
            {"out_agent_dim": 0},
            "outputs: expected 3 agents at dim 0, got shape [4, 3, 6]; state where with out_agent_dim= "
            "(None for what belongs to all), or choose with select=",
        ),
        ({"select": lambda y: ()}, "output: expected tensors, got a tuple of 0; choose what to look at with select="),
        ({"sharing": [0, 1]}, None),
        ({"communication": [[1]]}, None),
    ],
)
def test_claims_that_do_not_fit(how: dict[str, Any], says: str | None) -> None:
    with pytest.raises(CheckError) as raised:
        under_test(**how)
    assert says is None or str(raised.value) == says


def test_the_edges_of_what_fits() -> None:
    assert dims(under_test(torch.zeros(4, 6, 3), agent_dim=2)) == [2]
    assert under_test(batch_dims=1).batch == (4,)
    assert dims(under_test(agent_dim=None, out_agent_dim=1)) == [None]
    assert under_test(agent_dim=None, out_agent_dim=1).position is None
    assert under_test(agent_dim=None, out_agent_dim=1).batch == (4,)


# --- what a module states of itself ----------------------------------------------------------------------


def test_what_a_facade_states() -> None:
    host = ModuleUnderTest(torchrl_mlp(share_params=True, centralized=True), Claims(X))
    claims = host.claims
    assert (host.n_agents, host.centralized, host.facade, host.claimed_by) == (3, True, True, "the module")
    assert (claims.sharing, claims.agent_dim, host.given.n_agents) == ("shared", -2, None)
    assert claims.single is not None
    independent = ModuleUnderTest(torchrl_mlp(share_params=False), Claims(X, randomness="same"))
    assert (independent.claims.sharing, independent.claims.randomness) == ("independent", "same")
    assert not independent.centralized


def test_what_is_claimed_of_a_facade() -> None:
    host = ModuleUnderTest(torchrl_mlp(share_params=True), Claims(X, sharing="independent", centralized=True))
    assert (host.claims.sharing, host.claimed_by, host.centralized) == ("independent", "you", True)
    with pytest.raises(CheckError, match=r"^n_agents: the module has 3 agents, and n_agents=2$"):
        ModuleUnderTest(torchrl_mlp(), Claims(X, n_agents=2))
    messages = ModuleUnderTest(torchrl_mlp(share_params=True, centralized=True), Claims(X, communication=True))
    assert not messages.centralized
    assert messages.hears == [{0, 1, 2}] * 3


def test_nothing_is_stated() -> None:
    host = under_test()
    assert (host.claimed_by, host.facade, host.slots, host.claims.single, host.build) == (
        "nobody",
        False,
        None,
        None,
        None,
    )
    assert host.hears == [{0}, {1}, {2}]
    assert under_test(sharing=True).claims.sharing == "shared"
    assert under_test(sharing=False).claims.sharing == "independent"


def test_agents_by_name() -> None:
    class Named(nn.Module):
        def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {agent: 2 * x for agent, x in obs.items()}

    host = ModuleUnderTest(Named(), Claims({"b": X[:, 0], "a": X[:, 1]}, agents=["b", "a"]))
    assert (host.n_agents, host.names) == (2, ("b", "a"))
    assert host.batch == (4,)
    assert host.out_places[0].dim == 1


# --- slots ------------------------------------------------------------------------------------------------


def test_slots() -> None:
    shared = Sharing([0, 0, 0])
    assert under_test(sharing="shared").slots == {"gain": shared, "calls": shared}
    assert under_test(sharing={"gain": "shared"}).slots == {"gain": shared}
    assert under_test(sharing={"gain": "shared", "calls": [0, 0, 1]}).slots == {
        "gain": shared,
        "calls": Sharing([0, 0, 1]),
    }
    assert under_test(module=nn.Identity(), sharing="shared").slots == {"module": shared}
    host = ModuleUnderTest(ours(share_params={"*.bias": "shared", "*": "independent"}), Claims(X))
    assert host.slots is not None
    assert {name.endswith("bias"): sharing for name, sharing in host.slots.items()} == {
        True: shared,
        False: Sharing([0, 1, 2]),
    }


def test_a_pattern_of_nothing() -> None:
    with pytest.raises(CheckError, match="nothing"):
        under_test(sharing={"nothing": "shared"})


# --- calls ------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.idle = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(2, dtype=torch.int64), False)
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last: Any = self.last + 1
        return self.gain * x + self.last + (torch.rand(()) if self.training else 0)


def test_a_call_leaves_all_as_it_was() -> None:
    host, x = under_test(module=Noisy()), torch.ones(4, 3, 6)
    state = torch.get_rng_state()
    host.module.train()
    after: dict[str, Tensor] = {}
    y = host.run([x], train=False, seed=3, after=after)
    assert torch.equal(y, x + 1)
    assert y.requires_grad
    assert after == {"last": torch.ones(())}
    assert host.module.get_buffer("last") == 0
    assert host.module.training
    assert torch.equal(torch.get_rng_state(), state)
    one, again, other = (host.run([x], train=True, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, y)


def test_other_numbers_for_one_call() -> None:
    host, x = under_test(module=Noisy()), torch.ones(4, 3, 6)
    y = host.run([x], train=False, seed=0, numbers={"gain": torch.tensor(5.0), "last": torch.tensor(10.0)})
    assert torch.equal(y, 5 * x + 11)
    assert not y.requires_grad
    assert host.params()["gain"] == 1
    assert host.buffers()["last"] == 0
    with torch.no_grad():
        assert not host.run([x], train=False, seed=0).requires_grad


def test_who_draws() -> None:
    host = under_test(module=Noisy())
    assert not host.samples(host.leaves, train=False)
    assert host.samples(host.leaves, train=True)
    assert host.module.get_buffer("last") == 0


def test_memory_shows_in_the_second_call() -> None:
    host = under_test(module=Noisy(), memory=True)
    first, second = host.run([torch.ones(4, 3, 6)], train=False, seed=0)
    assert torch.equal(second, first + 1)


def test_what_laws_look_at() -> None:
    host = under_test((X, X[0, 0]), select=lambda y: y[0], agent_dim=(1, None))
    assert torch.equal(host.run(host.leaves, train=False, seed=0), X)
    assert len(host.out_places) == 1


def test_parameters_and_buffers() -> None:
    host = under_test(module=Noisy())
    assert list(host.params()) == ["gain"]  # integers train nothing
    assert list(host.buffers()) == ["last"]
    lazy = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert is_lazy(lazy[0].weight)
    assert not is_lazy(None)
    assert not is_lazy(torch.zeros(1))


def test_a_lazy_module_gets_its_shapes() -> None:
    host = under_test(module=nn.LazyLinear(2))
    assert {name: tuple(leaf.shape) for name, leaf in host.params().items()} == {"weight": (2, 6), "bias": (2,)}


def test_a_module_that_raises() -> None:
    host = under_test(torch.zeros(4, 3, 5), module=nn.Linear(6, 2))
    assert isinstance(host.fault, RuntimeError)
    assert host.out_places == ()


def test_built_again() -> None:
    def build() -> nn.Module:
        return nn.Linear(6, 2)

    host = ModuleUnderTest(build(), Claims(X, n_agents=3, sharing="shared"), build)
    one, same, other = (host.again(seed) for seed in (1, 1, 2))
    assert torch.equal(one.params()["weight"], same.params()["weight"])
    assert not torch.equal(one.params()["weight"], other.params()["weight"])
    assert (one.given, one.build, one.n_agents) == (host.given, build, 3)


# --- what can be checked ----------------------------------------------------------------------------------


def test_modules() -> None:
    net = fm.network(lambda: nn.Linear(6, 2), 3)
    listed = Listed()
    assert module_of(listed) is listed
    assert isinstance(module_of((net, fm.init_params(net, 0))), nn.Module)
    assert isinstance(module_of((lambda params, x: x, {"w": X})), nn.Module)


@pytest.mark.parametrize("subject", [3, "word", (1, 2), (len,), None])
def test_what_is_no_module(subject: Any) -> None:
    with pytest.raises(CheckError, match=r"^subject: expected "):
        module_of(subject)


def test_an_example_that_is_drawn() -> None:
    host = under_test(lambda generator: torch.rand(4, 3, 6, generator=generator))
    assert host.draw is not None
    assert torch.equal(host.leaves[0], torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0)))
    assert under_test().draw is None
