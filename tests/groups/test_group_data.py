"""Data stacked by group, and split by agent again."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pettingzoo  # pyright: ignore[reportMissingTypeStubs]
import pytest
import tensordict
import torch
import torchrl.envs  # pyright: ignore[reportMissingTypeStubs]
from mpe2 import simple_tag_v3  # pyright: ignore[reportMissingTypeStubs]
from tensordict import TensorDict
from torch import Tensor

from functional_marl._errors import GroupingError, StructureError
from functional_marl._groups.group_data import group_agents, ungroup_agents
from functional_marl._groups.group_map import MarlGroupMapType, by_prefix, by_spec, group_map

AGENTS = ["agent_0", "agent_1", "agent_2", "agent_3"]


class Step(NamedTuple):
    observation: Any
    memory: Any


def tensors(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-100, 100, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("batch", [(), (5,), (5, 2), (0,)])
def test_group_agents_is_a_loop_of_stacks(batch: tuple[int, ...]) -> None:
    groups = {"team": ["c", "a"], "solo": ["b"]}
    per_agent = {
        name: Step(
            {"x": tensors(*batch, 3, seed=i), "flag": tensors(*batch, dtype=torch.bool, seed=i)},
            [None, (tensors(*batch, 2, 2, dtype=torch.int8, seed=i),), {}],
        )
        for i, name in enumerate("abc")
    }
    grouped = group_agents(groups, per_agent, len(batch))
    assert list(grouped) == ["team", "solo"]
    for group, members in groups.items():
        assert type(grouped[group]) is Step
        assert grouped[group].memory[0] is None
        assert grouped[group].memory[2] == {}
        for i, name in enumerate(members):
            found, wanted = grouped[group], per_agent[name]
            for whole, one in (
                (found.observation["x"], wanted.observation["x"]),
                (found.observation["flag"], wanted.observation["flag"]),
                (found.memory[1][0], wanted.memory[1][0]),
            ):
                assert whole.shape == (*batch, len(members), *one.shape[len(batch) :])
                assert whole.dtype == one.dtype
                assert torch.equal(whole.movedim(len(batch), 0)[i], one)
    again = ungroup_agents(groups, grouped, len(batch))
    assert list(again) == ["c", "a", "b"]
    for name, step in again.items():
        assert type(step) is Step
        assert step.memory[0] is None
        assert torch.equal(step.observation["x"], per_agent[name].observation["x"])
        assert torch.equal(step.memory[1][0], per_agent[name].memory[1][0])


def test_numbers_and_arrays_become_tensors() -> None:
    read_only = np.arange(3, dtype=np.int8)
    read_only.flags.writeable = False
    per_agent: dict[str, Any] = {
        "a": {"reward": 0, "done": True, "obs": read_only, "score": np.float32(0.5)},
        "b": {"done": False, "reward": 0.5, "obs": np.arange(3, dtype=np.int8)[::-1], "score": np.float32(1)},
    }
    found = group_agents({"g": ["a", "b"]}, per_agent)["g"]
    assert torch.equal(found["reward"], torch.tensor([0.0, 0.5]))
    assert torch.equal(found["done"], torch.tensor([True, False]))
    assert torch.equal(found["obs"], torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int8))
    assert torch.equal(found["score"], torch.tensor([0.5, 1.0]))
    back = ungroup_agents({"g": ["a", "b"]}, {"g": np.array([[1, 2], [3, 4]])[::-1]})
    assert torch.equal(back["a"], torch.tensor([3, 4]))


@pytest.mark.parametrize("squeeze", [False, True])
def test_grouped_leaves_are_copies_and_ungrouped_ones_are_views(squeeze: bool) -> None:
    groups = {"team": ["a", "b"], "solo": ["c"]}
    per_agent: dict[str, Any] = {"a": torch.zeros(2), "b": torch.zeros(2), "c": np.zeros(2)}
    grouped = group_agents(groups, {**per_agent, "c": torch.zeros(2)}, squeeze_singletons=squeeze)
    from_array = group_agents({"solo": ["c"]}, {"c": per_agent["c"]}, squeeze_singletons=squeeze)
    for leaf in (*grouped.values(), *from_array.values()):
        leaf += 1
    assert all((np.asarray(leaf) == 0).all() for leaf in per_agent.values())
    back = ungroup_agents(groups, grouped, squeeze_singletons=squeeze)
    for leaf in back.values():
        leaf += 1
    assert all((leaf == 2).all() for leaf in grouped.values())
    lone = ungroup_agents({"solo": ["c"]}, {"solo": torch.arange(5)}, 1, squeeze_singletons=True)
    assert lone["c"].tolist() == [0, 1, 2, 3, 4]
    array = np.zeros((1, 2))
    ungroup_agents({"g": ["a"]}, {"g": array})["a"] += 1
    assert (array == 0).all()


def test_gradients_reach_the_leaves_of_each_agent() -> None:
    per_agent = {name: torch.zeros(3, requires_grad=True) for name in "abc"}
    groups = {"team": ["a", "c"], "solo": ["b"]}
    out = ungroup_agents(groups, {g: x**2 + x for g, x in group_agents(groups, per_agent).items()})
    out["c"].sum().backward()
    assert [leaf.grad is not None and bool(leaf.grad.any()) for leaf in per_agent.values()] == [
        False,
        False,
        True,
    ]


def test_grouping_goes_through_vmap_and_compile() -> None:
    groups = {"team": ["b", "a"], "solo": ["c"]}
    per_agent = {name: tensors(4, 3, seed=i) for i, name in enumerate("abc")}

    def there(per_agent: dict[str, Tensor]) -> dict[str, Tensor]:
        grouped = group_agents(groups, per_agent)
        return ungroup_agents(groups, {group: 2 * x for group, x in grouped.items()})

    vmapped: Any = torch.func.vmap(there)(per_agent)
    compiled: Any = torch.compile(there, backend="eager", fullgraph=True)(per_agent)  # pyright: ignore[reportUnknownMemberType]
    for name, x in per_agent.items():
        assert torch.equal(vmapped[name], 2 * x)
        assert torch.equal(compiled[name], 2 * x)


# --- PettingZoo -------------------------------------------------------------------------------------------


def boards() -> tuple[list[str], dict[str, Any]]:
    """One step of a real game: what each player of tic-tac-toe sees and gets."""
    env: Any = pettingzoo.make("aec", "classic/tictactoe-v3")
    env.reset(seed=0)
    env.step(4)
    steps = {
        name: {
            "observation": env.observe(name)["observation"],
            "action": torch.nn.functional.one_hot(torch.tensor(4), 9),
            "mask": env.observe(name)["action_mask"],
            "reward": env.rewards[name],
            "done": env.terminations[name],
        }
        for name in env.possible_agents
    }
    return env.possible_agents, steps


def test_a_pettingzoo_step_is_grouped_and_ungrouped() -> None:
    names, steps = boards()
    assert names == ["player_1", "player_2"]
    groups = group_map(names, by_prefix)
    assert groups == {"player": names}
    grouped = group_agents(groups, steps)
    assert {key: list(leaf.shape) for key, leaf in grouped["player"].items()} == {
        "observation": [2, 3, 3, 2],
        "action": [2, 9],
        "mask": [2, 9],
        "reward": [2],
        "done": [2],
    }
    assert grouped["player"]["observation"].dtype == torch.int8
    assert grouped["player"]["done"].dtype == torch.bool
    back = ungroup_agents(groups, grouped)
    for name in names:
        assert (back[name]["observation"].numpy() == steps[name]["observation"]).all()
        assert back[name]["reward"].item() == steps[name]["reward"]


def test_a_parallel_environment_with_two_kinds_of_agents() -> None:
    env: Any = simple_tag_v3.parallel_env()  # pyright: ignore[reportUnknownMemberType]
    seen, _ = env.reset(seed=0)
    groups = group_map(env.agents, by_spec({name: env.observation_space(name) for name in env.agents}))
    grouped = group_agents(groups, seen)
    assert {group: list(x.shape) for group, x in grouped.items()} == {"adversary": [3, 16], "agent": [1, 14]}
    actions = {group: torch.zeros(len(members), dtype=torch.int64) for group, members in groups.items()}
    _, rewards, done, _, _ = env.step({k: v.item() for k, v in ungroup_agents(groups, actions).items()})
    assert list(group_agents(groups, rewards)["adversary"].shape) == [3]
    assert group_agents(groups, done)["agent"].tolist() == [False]
    with pytest.raises(StructureError, match=r"group 'agents' of .*per_agent\['agent_0'\]: expected shape \[16\]"):
        group_agents(group_map(env.agents, MarlGroupMapType.ALL_IN_ONE_GROUP), seen)


# --- the reference page -----------------------------------------------------------------------------------

# The shapes that the page of torchrl.envs.MarlGroupMapType prints.
PRINTED_ALL = {"action": [4, 9], "done": [4, 1], "observation": [4, 3, 3, 2]}
PRINTED_ONE = {"action": [9], "done": [1], "observation": [3, 3, 2]}


def reference_step() -> Any:
    one: Any = {"action": torch.zeros(9, dtype=torch.int64), "done": torch.zeros(1, dtype=torch.bool)}
    one["observation"] = torch.zeros(3, 3, 2, dtype=torch.int8)
    return TensorDict({name: TensorDict({k: x.clone() for k, x in one.items()}) for name in AGENTS})


def shapes(step: Any) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in sorted(step.items())}


def test_the_printed_layout_of_all_in_one_group() -> None:
    step = group_agents(group_map(AGENTS, MarlGroupMapType.ALL_IN_ONE_GROUP), reference_step())
    assert list(step.keys()) == ["agents"]
    assert shapes(step["agents"]) == PRINTED_ALL
    assert step["agents"].batch_size == torch.Size([4])
    assert step.batch_size == torch.Size([])


def test_the_printed_layout_of_one_group_per_agent() -> None:
    groups = group_map(AGENTS, MarlGroupMapType.ONE_GROUP_PER_AGENT)
    printed = group_agents(groups, reference_step(), squeeze_singletons=True)
    measured = group_agents(groups, reference_step())
    assert list(printed.keys()) == list(measured.keys()) == AGENTS
    for name in AGENTS:
        assert shapes(printed[name]) == PRINTED_ONE
        assert printed[name].batch_size == torch.Size([])
        assert shapes(measured[name]) == {key: [1, *shape] for key, shape in PRINTED_ONE.items()}
        assert measured[name].batch_size == torch.Size([1])


def test_the_printed_shapes_are_those_of_the_page() -> None:
    page: Any = torchrl.envs.MarlGroupMapType.__doc__
    found = re.findall(r"(action|done|observation): Tensor\(shape=torch\.Size\(\[([\d, ]+)\]\)", page)
    listed = [(name, [int(size) for size in sizes.split(",")]) for name, sizes in found]
    assert listed == [*PRINTED_ALL.items(), *list(PRINTED_ONE.items()) * 4]


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL is tested:UserWarning")
def test_the_default_layout_is_that_of_torchrl() -> None:
    env: Any = pettingzoo.make("aec", "classic/tictactoe-v3")
    names, steps = boards()
    for kind in MarlGroupMapType:
        groups = group_map(names, kind)
        theirs: Any = torchrl.envs.PettingZooWrapper(env=env, group_map=groups, use_mask=True)
        step = theirs.rand_action(theirs.reset())
        ours = group_agents(groups, steps)
        for group in groups:
            assert step[group, "observation", "observation"].shape == ours[group]["observation"].shape
            assert step[group, "action_mask"].shape == ours[group]["mask"].shape


# --- TensorDict -------------------------------------------------------------------------------------------


def is_plain_tensordict(tree: object) -> bool:
    return type(tree) is TensorDict


@pytest.mark.parametrize("batch", [[], [5], [5, 2]])
@pytest.mark.parametrize("inner", ["same", "none"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_a_tensordict_keyed_by_agent(batch: list[int], inner: str, squeeze: bool) -> None:
    size = batch if inner == "same" else []

    def one(seed: int) -> Any:
        deep = TensorDict({"z": tensors(*batch, 2, 2, seed=seed)}, size)
        return TensorDict({"x": tensors(*batch, 2, seed=seed), "deep": deep}, size)

    per_agent: Any = TensorDict({name: one(i) for i, name in enumerate("abc")}, size)
    groups = {"team": ["c", "a"], "solo": ["b"]}
    grouped = group_agents(groups, per_agent, len(batch), squeeze_singletons=squeeze)
    assert is_plain_tensordict(grouped)
    assert grouped.batch_size == torch.Size(size)
    lone = [] if squeeze else [1]
    assert grouped["team"].batch_size == torch.Size([*batch, 2])
    assert grouped["team", "deep"].batch_size[: len(batch) + 1] == torch.Size([*batch, 2])
    assert grouped["solo"].batch_size == torch.Size([*batch, *lone])
    expected = torch.stack([per_agent["c", "x"], per_agent["a", "x"]], len(batch))
    assert torch.equal(grouped["team", "x"], expected)
    back = ungroup_agents(groups, grouped, len(batch), squeeze_singletons=squeeze)
    assert is_plain_tensordict(back)
    assert list(back.keys()) == ["c", "a", "b"]
    for name in "abc":
        assert back[name].batch_size == torch.Size(batch)
        assert (back[name] == per_agent[name]).all()
    back["c"].set("new", torch.zeros(batch))
    back["b"].set("new", torch.zeros(batch))
    assert [sorted(grouped[group].keys()) for group in groups] == [["deep", "x"]] * 2


def test_tensordicts_with_other_keys_sizes_and_classes() -> None:
    one = TensorDict({"x": torch.zeros(5, 3)}, [5])
    other_order = TensorDict({"y": torch.ones(5), "x": torch.zeros(5, 3)}, [5])
    first = TensorDict({"x": torch.zeros(5, 3), "y": torch.ones(5)}, [5])
    # The order of keys makes no difference.
    found = group_agents({"g": ["a", "b"]}, {"a": first, "b": other_order}, 1)
    assert not is_plain_tensordict(found)
    assert found["g"].batch_size == torch.Size([5, 2])
    # More batch axes than batch_dims: those after the agent axis belong to the leaf.
    assert group_agents({"g": ["a"]}, {"a": one})["g"].batch_size == torch.Size([1])
    back = ungroup_agents({"g": ["a"]}, {"g": TensorDict({"x": torch.zeros(1, 5, 3)}, [1, 5])})
    assert back["a"].batch_size == torch.Size([5])
    # An entry without leaves keeps its batch size; one without batch axes is split leaf by leaf.
    empty = ungroup_agents({"g": ["a", "b"]}, {"g": TensorDict({}, [2, 5])})
    assert empty["b"].batch_size == torch.Size([5])
    rows = ungroup_agents({"g": ["a", "b"]}, TensorDict({"g": TensorDict({"x": torch.tensor([3, 4])})}))
    assert rows["b"].batch_size == torch.Size([])
    assert rows["b", "x"] == 4
    # The agent axis of a single group may be a batch axis of the whole; the result has no such batch axis.
    whole = ungroup_agents({"g": ["a", "b"]}, TensorDict({"g": torch.tensor([[3, 4], [5, 6]])}, [2]))
    assert whole.batch_size == torch.Size([])
    assert whole["b"].tolist() == [5, 6]
    # Tensors directly under the names, an empty entry, and a lazy stack.
    flat = group_agents({"g": ["a", "b"]}, TensorDict({"a": torch.zeros(5, 3), "b": torch.ones(5, 3)}, [5]), 1)
    assert flat["g"].shape == (5, 2, 3)
    assert group_agents({"g": ["a"]}, TensorDict({"a": TensorDict()}))["g"].is_empty()
    lazy = tensordict.LazyStackedTensorDict(TensorDict({"a": one, "b": one}), TensorDict({"a": one, "b": one}))
    stacked = group_agents({"g": ["a", "b"]}, lazy)
    assert stacked.batch_size == torch.Size([])
    assert stacked["g", "x"].shape == (2, 2, 5, 3)


def test_a_tensordict_with_more_than_agents() -> None:
    td = TensorDict({"a": torch.zeros(1), "done": torch.zeros(1)})
    with pytest.raises(GroupingError, match=r"per_agent: .*\(missing: none; extra: 'done'\); give every agent"):
        group_agents({"g": ["a"]}, td)
