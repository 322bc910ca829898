"""Group maps: which agents form which group."""

from __future__ import annotations

import enum
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torchrl.data  # pyright: ignore[reportMissingTypeStubs]
import torchrl.envs  # pyright: ignore[reportMissingTypeStubs]
import torchrl.envs.utils  # pyright: ignore[reportMissingTypeStubs]
from mpe2 import simple_tag_v3  # pyright: ignore[reportMissingTypeStubs]

from functional_marl._errors import GroupingError
from functional_marl._groups.group_map import MarlGroupMapType, by_prefix, by_spec, group_map

AGENTS = ["agent_0", "agent_1", "agent_2", "agent_3"]


@pytest.mark.parametrize("names", [["a"], AGENTS, ["b", "a"]])
@pytest.mark.parametrize("kind", ["ALL_IN_ONE_GROUP", "ONE_GROUP_PER_AGENT"])
def test_premade_maps_equal_those_of_torchrl(kind: str, names: list[str]) -> None:
    ours, theirs = MarlGroupMapType[kind], torchrl.envs.utils.MarlGroupMapType[kind]
    assert ours.value == theirs.value
    expected: Any = theirs.get_group_map(names)
    assert ours.get_group_map(names) == expected
    assert group_map(names, ours) == expected
    assert group_map(names, theirs) == expected
    assert [kind.name for kind in MarlGroupMapType] == [kind.name for kind in torchrl.envs.utils.MarlGroupMapType]


def test_premade_maps_equal_those_of_the_reference_page() -> None:
    assert group_map(AGENTS, MarlGroupMapType.ALL_IN_ONE_GROUP) == {"agents": AGENTS}
    expected = {name: [name] for name in AGENTS}
    assert group_map(AGENTS, MarlGroupMapType.ONE_GROUP_PER_AGENT) == expected


def test_a_group_map_holds_none_of_the_given_lists() -> None:
    names, given = list(AGENTS), {"team": list(AGENTS)}
    for result in (
        MarlGroupMapType.ALL_IN_ONE_GROUP.get_group_map(names),
        group_map(names, MarlGroupMapType.ALL_IN_ONE_GROUP),
        group_map(names, given),
    ):
        next(iter(result.values())).append("intruder")
    assert names == AGENTS
    assert given == {"team": AGENTS}


def test_groups_of_a_function_follow_the_names_and_those_of_a_mapping_keep_their_order() -> None:
    names = ["b_1", "a_0", "b_0", "lone"]
    found = group_map(names, by_prefix)
    assert list(found.items()) == [("b", ["b_1", "b_0"]), ("a", ["a_0"]), ("lone", ["lone"])]
    given = {"two": ("lone", "b_0"), "one": ["a_0", "b_1"]}
    found = group_map(iter(names), given)
    assert list(found.items()) == [("two", ["lone", "b_0"]), ("one", ["a_0", "b_1"])]
    assert group_map(dict.fromkeys(names), lambda name: "all") == {"all": names}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("adversary_0", "adversary"),
        ("adversary_12", "adversary"),
        ("lead_agent_3", "lead_agent"),
        ("agent_0_1", "agent_0"),
        ("adversary", "adversary"),
        ("player_one", "player_one"),
        ("_0", "_0"),
        ("7", "7"),
        ("agent_", "agent_"),
        ("agent_²", "agent_²"),
        ("two\nlines_4", "two\nlines"),
        ("agent_0\n", "agent_0\n"),
        ("", ""),
    ],
)
def test_by_prefix(name: str, group: str) -> None:
    assert by_prefix(name) == group


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL is tested:UserWarning")
def test_by_prefix_groups_as_torchrl_does_by_default() -> None:
    env: Any = simple_tag_v3.parallel_env()  # pyright: ignore[reportUnknownMemberType]
    theirs = torchrl.envs.PettingZooWrapper(env=env)
    expected: Any = theirs.group_map  # pyright: ignore[reportUnknownMemberType]
    assert group_map(env.possible_agents, by_prefix) == expected


def spaces() -> dict[str, Any]:
    env: Any = simple_tag_v3.parallel_env()  # pyright: ignore[reportUnknownMemberType]
    return {name: (env.observation_space(name), env.action_space(name)) for name in env.possible_agents}


def torchrl_specs() -> dict[str, Any]:
    wide = torchrl.data.Unbounded(shape=torch.Size([16]))
    narrow = torchrl.data.Bounded(-1.0, 1.0, shape=torch.Size([14]))
    return {f"adversary_{i}": wide.clone() for i in range(3)} | {"agent_0": narrow}


@pytest.mark.parametrize("make", [spaces, torchrl_specs])
def test_by_spec_groups_agents_of_equal_specs(make: Callable[[], dict[str, Any]]) -> None:
    specs = make()
    expected = {"adversary": ["adversary_0", "adversary_1", "adversary_2"], "agent": ["agent_0"]}
    assert group_map(specs, by_spec(specs)) == expected


def test_by_spec_looks_at_the_whole_spec() -> None:
    box = gymnasium.spaces.Box
    specs = {"a_0": box(-1, 1, (3,)), "a_1": box(-1, 1, (3,), np.float64), "a_2": box(-2, 1, (3,))}
    assert group_map(specs, by_spec(specs)) == {"group_0": ["a_0"], "group_1": ["a_1"], "group_2": ["a_2"]}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        # All members share a prefix and no other group has it.
        ({"a_0": 1, "b_0": 2, "a_1": 1}, {"a": ["a_0", "a_1"], "b": ["b_0"]}),
        # Two teams with equal specs; a team that is split.
        ({"a_0": 1, "b_0": 1, "c_0": 2}, {"group_0": ["a_0", "b_0"], "c": ["c_0"]}),
        ({"a_0": 1, "a_1": 2}, {"group_0": ["a_0"], "group_1": ["a_1"]}),
        ({"a_0": 1, "b_0": 1, "a_1": 2}, {"group_0": ["a_0", "b_0"], "group_1": ["a_1"]}),
        # A numbered group never takes the name of a prefix.
        ({"group_0_7": 1, "a_0": 2, "b_0": 2}, {"group_0": ["group_0_7"], "group_1": ["a_0", "b_0"]}),
    ],
)
def test_by_spec_names_groups(specs: dict[str, int], expected: dict[str, list[str]]) -> None:
    assert group_map(specs, by_spec(specs)) == expected


def test_by_spec_errors() -> None:
    with pytest.raises(GroupingError, match=r"specs: no spec for agent 'b'; given are 'a'; add it"):
        group_map(["a", "b"], by_spec({"a": 1}))
    with pytest.raises(GroupingError, match=r"^specs: expected strings as agent names, got \[0\]"):
        by_spec({0: 1})  # pyright: ignore[reportArgumentType]
    arrays = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(GroupingError, match=r"specs: expected True or False from comparing those of 'a' and 'b'"):
        by_spec(arrays)
    tensors = {"a": (torch.zeros(2),), "b": (torch.zeros(2),)}
    with pytest.raises(GroupingError, match=r"of 'a' and 'b', got an error: .*; give spaces"):
        by_spec(tensors)


class Foreign(enum.Enum):
    """An enum that is no MarlGroupMapType."""

    ALL_IN_ONE_GROUP = 1


@pytest.mark.parametrize("grouping", ["ALL_IN_ONE_GROUP", None, 1, Foreign.ALL_IN_ONE_GROUP])
def test_what_is_no_grouping_raises(grouping: Any) -> None:
    with pytest.raises(
        GroupingError, match=r"^grouping: expected a MarlGroupMapType, a mapping .* from agent to group, got "
    ):
        group_map(["a"], grouping)


def test_a_function_that_returns_no_name_raises() -> None:
    def nothing(name: str) -> Any:
        return None

    with pytest.raises(GroupingError, match=r"grouping\('a'\): expected a group name, got None; return a string"):
        group_map(["a"], nothing)


def test_group_maps_need_no_torchrl() -> None:
    code = (
        "import sys, functional_marl as g;"
        "g.group_map(['a_0', 'b'], g.MarlGroupMapType.ALL_IN_ONE_GROUP);"
        "print([m for m in ('torchrl', 'tensordict', 'hypothesis', 'pettingzoo') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert pickle.loads(pickle.dumps(MarlGroupMapType.ALL_IN_ONE_GROUP)) is MarlGroupMapType.ALL_IN_ONE_GROUP
