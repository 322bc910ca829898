"""The tensordicts printed on the page of ``MarlGroupMapType``, made by torchrl's wrapper of PettingZoo."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pettingzoo  # pyright: ignore[reportMissingTypeStubs]
import pytest
import torch
import torchrl.envs  # pyright: ignore[reportMissingTypeStubs]
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]

import functional_marl as fm
from functional_marl.nn import check_marl_grouping

# torchrl warns of a PettingZoo newer than the one it was tested with
pytestmark = pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL is tested:UserWarning")

ALL, EACH = fm.MarlGroupMapType.ALL_IN_ONE_GROUP, fm.MarlGroupMapType.ONE_GROUP_PER_AGENT
AGENTS = ["agent_0", "agent_1", "agent_2", "agent_3"]
kinds = pytest.mark.parametrize("kind", [ALL, EACH], ids=["all", "each"])


class Boards(pettingzoo.ParallelEnv[str, Any, Any]):
    """Four agents, each with a board of 3x3x2 and nine actions: the environment of the page."""

    metadata: dict[str, Any] = {"name": "boards"}  # noqa: RUF012
    render_mode = None

    def __init__(self) -> None:
        self.possible_agents = list(AGENTS)
        self.agents = list(AGENTS)

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(0, 1, (3, 3, 2), np.int8)

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(9)

    def boards(self) -> dict[str, Any]:
        return {name: np.full((3, 3, 2), i % 2, np.int8) for i, name in enumerate(AGENTS)}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(AGENTS)
        return self.boards(), {name: {} for name in AGENTS}

    def step(self, actions: Any) -> Any:
        no, nothing = dict.fromkeys(AGENTS, False), dict.fromkeys(AGENTS, 0.0)
        return self.boards(), nothing, no, no, {name: {} for name in AGENTS}


def tictactoe() -> Any:
    return pettingzoo.make("aec", "classic/tictactoe-v3")


def wrapped(env: Any, kind: fm.MarlGroupMapType) -> Any:
    """Wrapped by torchrl, with the plain dict of ``fm.group_map`` and one-hot actions, as on the page."""
    groups = fm.group_map(env.possible_agents, kind)
    turns = {"use_mask": True} if isinstance(env, pettingzoo.AECEnv) else {}
    return torchrl.envs.PettingZooWrapper(env=env, group_map=groups, categorical_actions=False, seed=0, **turns)


def stepped(env: Any) -> Any:
    """The entries of ``env.rand_action(env.reset())`` that the page prints: tic-tac-toe also has an action mask."""
    step = env.rand_action(env.reset())
    kept = TensorDict({}, [])
    for group in env.group_map:
        held = step[group]
        board = held["observation"]
        board = board if isinstance(board, torch.Tensor) else board["observation"]
        found = {"action": held["action"], "done": held["done"], "observation": board}
        kept[group] = TensorDict(found, held.batch_size)
    return kept


Facts = list[tuple[str, str, str]]


def facts(text: str) -> Facts:
    """The facts of a printed tensordict, in order: each entry's name, shape and dtype, and each batch size."""
    entry = r"(\w+): Tensor\(shape=torch\.Size\(\[([\d, ]*)\]\), device=cpu, dtype=torch\.(\w+)"
    found = re.findall(rf"{entry}|(\w+): TensorDict\(|batch_size=torch\.Size\(\[([\d, ]*)\]\)", text)
    return [(name or group, shape or size, dtype) for name, shape, dtype, group, size in found]


def page(kind: fm.MarlGroupMapType) -> Facts:
    """The facts printed on the page; the page is the docstring of torchrl's class."""
    doc: Any = torchrl.envs.MarlGroupMapType.__doc__
    return facts(re.findall(r"TensorDict\(\s*fields=\{.*?print\(env\.group_map\)", doc, re.DOTALL)[kind.value - 1])


def with_the_lone_axis(printed: Facts) -> Facts:
    """The page's facts of one group per agent, with the agent axis of size 1 that torchrl has and the page lacks."""
    return [
        (name, f"1, {shape}" if dtype else shape or ("1" if i < len(printed) - 1 and not name else ""), dtype)
        for i, (name, shape, dtype) in enumerate(printed)
    ]


def renamed(printed: Facts, kind: fm.MarlGroupMapType, names: list[str]) -> Facts:
    """The facts of the page for other agents, fewer than the page's four."""
    if kind is ALL:
        return [(name, re.sub(r"^4", str(len(names)), shape), dtype) for name, shape, dtype in printed]
    size = (len(printed) - 1) // len(AGENTS)
    groups = [[(name, "", ""), *printed[1:size]] for name in names]
    return [*(fact for group in groups for fact in group), printed[-1]]


def test_all_facts_of_the_page_are_read() -> None:
    entries = {"action": "9", "done": "1", "observation": "3, 3, 2"}
    dtypes = {"action": "int64", "done": "bool", "observation": "int8"}
    team = [(key, f"4, {shape}", dtypes[key]) for key, shape in entries.items()]
    assert page(ALL) == [("agents", "", ""), *team, ("", "4", ""), ("", "", "")]
    lone = [*((key, shape, dtypes[key]) for key, shape in entries.items()), ("", "", "")]
    assert page(EACH) == [*(fact for name in AGENTS for fact in [(name, "", ""), *lone]), ("", "", "")]


@kinds
def test_four_agents_give_the_printed_tensordict(kind: fm.MarlGroupMapType) -> None:
    env = wrapped(Boards(), kind)
    step = stepped(env)
    assert env.group_map == fm.group_map(AGENTS, kind)
    assert facts(str(step)) == (page(ALL) if kind is ALL else with_the_lone_axis(page(EACH)))
    if kind is EACH:  # exactly as printed
        squeezed = regrouped(env, step)
        assert facts(str(squeezed)) == page(EACH)


def regrouped(env: Any, step: Any) -> Any:
    """Ungrouped and grouped again, without the agent axis where a group has one agent."""
    return fm.group_agents(env.group_map, fm.ungroup_agents(env.group_map, step), squeeze_singletons=True)


@kinds
def test_tictactoe_gives_the_printed_tensordict(kind: fm.MarlGroupMapType) -> None:
    env = wrapped(tictactoe(), kind)
    step = stepped(env)
    expected = renamed(page(kind), kind, ["player_1", "player_2"])
    assert facts(str(step)) == (expected if kind is ALL else with_the_lone_axis(expected))
    assert facts(str(regrouped(env, step))) == expected


@kinds
@pytest.mark.parametrize("make", [Boards, tictactoe])
def test_a_step_is_ungrouped_and_grouped_again(make: Any, kind: fm.MarlGroupMapType) -> None:
    env = wrapped(make(), kind)
    step = stepped(env)
    apart = fm.ungroup_agents(env.group_map, step)
    assert list(apart.keys()) == env.possible_agents
    assert all(apart[name, "action"].sum() == 1 for name in env.possible_agents)  # one-hot
    back = fm.group_agents(env.group_map, apart)
    assert facts(str(back)) == facts(str(step))
    assert bool((back == step).all())


@kinds
def test_the_network_of_a_single_agent_keeps_the_agent_axis(kind: fm.MarlGroupMapType) -> None:
    env = wrapped(Boards(), kind)
    step = stepped(env)
    for group, agents in env.group_map.items():
        net = fm.nn.MultiAgentMLP(18, 9, len(agents), centralized=False, share_params=False, depth=1, num_cells=4)
        scores = net(step[group, "observation"].flatten(-3).float())
        assert scores.shape == step[group, "action"].shape == (len(agents), 9)


def test_torchrl_accepts_our_enum_and_our_dict() -> None:
    theirs: Any = torchrl.envs.PettingZooWrapper
    groups = wrapped(Boards(), ALL).group_map
    assert theirs(env=Boards(), group_map=ALL).group_map == groups
    check_marl_grouping(groups, AGENTS)


@pytest.mark.parametrize(
    ("groups", "names", "message"),
    [
        ({}, [], "names: expected at least one agent, got none"),
        ({"g": ["a", "a"]}, ["a", "a"], "names: 'a' given more than once"),
        ({"g": ["a"], "h": ["b"], "i": ["a"]}, ["a", "b"], "expected at most 2 groups for 2 agents, got 3"),
        ({"g": ["a", "b"], "h": []}, ["a", "b"], "group 'h' is empty"),
        ({"g": ["a", "b", "c"]}, ["a", "b"], "unknown agent 'c'"),
        ({"g": ["a", "b"], "h": ["b"]}, ["a", "b"], "agent 'b' is in 2 places, 'g', 'h'"),
        ({"g": ["a"]}, ["a", "b"], "agent 'b' is in no group"),
    ],
    ids=["none", "twins", "too_many", "empty", "unknown", "repeated", "missing"],
)
def test_check_marl_grouping_names_each_fault(groups: Any, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_marl_grouping(groups, names)
