"""Modules of lists with one entry an agent."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from functional_marl.laws import CheckError, check, infer_sharing
from functional_marl.laws._agent_lists import ListOfAgents, listed_by_agent


class Actors(nn.Module):
    """One network an agent, called on a list of observations: ``[[B, 6], [B, 4]] -> [[B, 2], [B, 2]]``."""

    def __init__(self, widths: tuple[int, ...] = (6, 4), swap: bool = False) -> None:
        super().__init__()
        self.actors = nn.ModuleList(nn.Linear(width, 2) for width in widths)
        self.swap = swap

    def forward(self, observations: list[Tensor]) -> list[Tensor]:
        out = [actor(x) for actor, x in zip(self.actors, observations, strict=True)]
        return out[::-1] if self.swap else out


class WithValues(Actors):
    """Lists in a tuple: actions and values."""

    def forward(self, observations: list[Tensor]) -> Any:
        out = super().forward(observations)
        return out, [x.sum(-1, keepdim=True) for x in out]


class InATuple(Actors):
    """A tuple with one entry an agent."""

    def forward(self, observations: list[Tensor]) -> Any:
        return tuple(super().forward(observations))


X = [torch.zeros(4, 6), torch.zeros(4, 4)]


@pytest.mark.parametrize("build", [Actors, WithValues, InATuple])
def test_lists_of_agents_are_checked(build: type[Actors]) -> None:
    report = check(build, agents=2, sharing="independent", example=X, examples=4)
    assert report, report
    assert report["local_jacobian"].cases
    assert infer_sharing(build(), agents=2, example=X).sharing == "independent"


def test_a_list_in_the_wrong_order_is_wrong() -> None:
    report = check(lambda: Actors((6, 6), swap=True), agents=2, sharing="independent", example=[X[0], X[0]], examples=4)
    assert report["local_jacobian"].verdict == "violated"


def test_calls_are_those_of_the_module_and_copies_are_copies() -> None:
    inner = Actors()
    module, names, example = listed_by_agent(inner, 2, X)
    given = {name: torch.randn_like(x) for name, x in example.items()}
    found = module(given)
    assert tuple(found) == names
    for name, want in zip(names, inner([*given.values()]), strict=True):
        assert torch.equal(found[name], want)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in inner.named_parameters()]
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for leaf in twin.parameters():
            leaf.zero_()
    assert not any(bool(out.any()) for out in twin(given).values())
    assert all(bool(leaf.any()) for leaf in inner.parameters())


def test_an_example_without_a_list_is_refused() -> None:
    with pytest.raises(CheckError, match="expected a list with one entry for each of 2 agents"):
        check(Actors, agents=2, example=torch.zeros(4, 2, 6))


def test_functions_draw_lists() -> None:
    def draw(generator: torch.Generator) -> list[Tensor]:
        return [torch.rand(4, 6, generator=generator), torch.rand(4, 4, generator=generator)]

    assert check(Actors, agents=2, sharing="independent", example=draw, examples=2)


# --- what goes in and what comes out --------------------------------------------------------------------------


class Echo(nn.Module):
    """Keeps what it was called with, and returns what it is told to."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output, self.given = output, [((), {})]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.given.append((args, kwargs))
        return self.output


def sent(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What a module of two agents gets when its dict form is called like this."""
    echo = Echo()
    ListOfAgents(echo, ("agent_0", "agent_1"))(*args, **kwargs)
    return echo.given[-1]


def returned(output: Any) -> Any:
    """What the dict form of a module of two agents returns for this output."""
    return ListOfAgents(Echo(output), ("agent_0", "agent_1"))()


BY_AGENT = {"agent_0": 1, "agent_1": 2}


def test_dicts_of_agents_go_in_as_lists() -> None:
    assert sent(BY_AGENT, 5, h=BY_AGENT) == (([1, 2], 5), {"h": [1, 2]})


def test_dicts_of_agents_go_in_as_lists_at_any_depth() -> None:
    assert sent({"obs": (BY_AGENT, [BY_AGENT])}) == (({"obs": ([1, 2], [[1, 2]])},), {})


def test_other_dicts_go_in_as_they_are() -> None:
    reordered, fewer = {"agent_1": 2, "agent_0": 1}, {"agent_0": 1}
    (first, second), _ = sent(reordered, fewer)
    assert first is reordered
    assert second is fewer


def test_lists_of_agents_come_out_as_dicts() -> None:
    assert returned([1, 2]) == BY_AGENT
    assert list(returned([1, 2])) == ["agent_0", "agent_1"]


def test_a_tuple_of_agents_comes_out_as_a_dict() -> None:
    assert returned((1, 2)) == BY_AGENT


def test_two_lists_in_a_tuple_come_out_as_two_dicts() -> None:
    assert returned(([1, 2], [3, 4])) == (BY_AGENT, {"agent_0": 3, "agent_1": 4})


def test_lists_come_out_as_dicts_at_any_depth() -> None:
    assert returned({"q": [1, 2], "v": {"w": [3, 4]}, "k": 5}) == {
        "q": BY_AGENT,
        "v": {"w": {"agent_0": 3, "agent_1": 4}},
        "k": 5,
    }


@pytest.mark.parametrize("output", [[1], [1, 2, 3], (1,), (1, 2, 3), {"a": [1]}, {"a": 1, "b": (1, 2)}, 7, [], ()])
def test_what_has_no_entry_for_each_agent_comes_out_as_it_is(output: Any) -> None:
    assert returned(output) is output


def test_a_part_without_agents_stays_itself() -> None:
    inner: dict[str, Any] = {"a": [1]}
    found = returned(([1, 2], inner, 3))
    assert found == (BY_AGENT, inner, 3)
    assert found[1] is inner


# --- the dict form --------------------------------------------------------------------------------------------


def test_the_example_has_a_dict_in_the_place_of_the_list() -> None:
    _, names, example = listed_by_agent(Actors(), 2, ({"obs": X}, 4))
    assert names == ("agent_0", "agent_1")
    keyed = example[0]["obs"]
    assert list(keyed) == ["agent_0", "agent_1"]
    assert keyed["agent_0"] is X[0]
    assert keyed["agent_1"] is X[1]
    assert example[1] == 4


@pytest.mark.parametrize("n_agents", [1, 3])
def test_a_list_of_another_length_is_refused(n_agents: int) -> None:
    with pytest.raises(CheckError) as raised:
        listed_by_agent(Actors(), n_agents, X)
    assert str(raised.value) == (
        f"example: expected a list with one entry for each of {n_agents} agents, as agents= claims"
    )


def test_a_tensordict_is_no_function_that_draws() -> None:
    with pytest.raises(CheckError, match="expected a list with one entry"):
        listed_by_agent(Actors(), 2, TensorDict({"obs": X[0]}, batch_size=[4]))


def test_a_function_draws_from_the_generator_that_it_gets() -> None:
    module, names, draw = listed_by_agent(Actors(), 2, lambda g: [torch.rand(4, 6, generator=g), torch.zeros(4, 4)])
    generator = torch.Generator().manual_seed(3)
    found = draw(generator)
    assert tuple(found) == names == ("agent_0", "agent_1")
    assert torch.equal(found["agent_0"], torch.rand(4, 6, generator=generator.manual_seed(3)))
    assert set(module(found)) == set(names)


def test_the_dict_form_has_the_attributes_of_the_module() -> None:
    inner = Actors()
    module: Any = ListOfAgents(inner, ("agent_0", "agent_1"))
    assert module.actors is inner.actors
    module.swap = True
    assert inner.swap
    module.train(False)
    assert not inner.training
    with pytest.raises(AttributeError, match="no_such"):
        print(module.no_such)


def test_the_dict_form_has_the_methods_of_the_module() -> None:
    class Resets(Actors):
        def reset_parameters(self) -> str:
            return "reset"

    module: Any = ListOfAgents(Resets(), ("agent_0", "agent_1"))
    assert module.reset_parameters() == "reset"


def test_hooks_run_once_and_on_lists() -> None:
    inner, seen = Actors(), []
    inner.register_forward_hook(lambda _module, given, output: seen.append((type(given[0]), type(output))))
    ListOfAgents(inner, ("agent_0", "agent_1"))({"agent_0": X[0], "agent_1": X[1]})
    assert seen == [(list, list)]


def test_a_copy_has_the_same_names_and_another_module() -> None:
    module = ListOfAgents(Actors(), ("agent_0", "agent_1"))
    for twin in (copy.deepcopy(module), copy.copy(module)):
        assert type(twin) is ListOfAgents
        assert twin.names == ("agent_0", "agent_1")
    assert copy.deepcopy(module).inner is not module.inner
