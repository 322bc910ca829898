"""Group maps of the facade: torchrl's checks, and its environments, with either library imported first."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torchrl.envs.utils as rl_utils  # pyright: ignore[reportMissingTypeStubs]

from functional_marl.nn import MarlGroupMapType
from tests.nn.facade_cases import OURS, TORCHRL, both

THEIRS = rl_utils.MarlGroupMapType

_OURS = "from functional_marl.nn import MarlGroupMapType as Ours"
_THEIRS = "from torchrl.envs import PettingZooWrapper, VmasEnv"
_ENVIRONMENTS = """
import sys
{first}
known = {first!r}.startswith("from functional_marl") and Ours.ALL_IN_ONE_GROUP
assert not known or "torchrl" not in sys.modules
{second}
from mpe2 import simple_tag_v3

for member, groups in (
    (Ours.ALL_IN_ONE_GROUP, {{"agents": ["agent_0", "agent_1"]}}),
    (Ours.ONE_GROUP_PER_AGENT, {{"agent_0": ["agent_0"], "agent_1": ["agent_1"]}}),
):
    env = VmasEnv("navigation", num_envs=2, n_agents=2, group_map=member)
    assert env.group_map == groups, env.group_map
    assert set(groups) <= set(env.rollout(2).keys())
names = simple_tag_v3.parallel_env().possible_agents
for member, count in ((Ours.ONE_GROUP_PER_AGENT, len(names)), (Ours.ALL_IN_ONE_GROUP, 1)):
    parallel = simple_tag_v3.parallel_env(num_good=1, num_adversaries=3)
    try:
        env = PettingZooWrapper(env=parallel, group_map=member)
    except RuntimeError as error:  # different observations cannot be stacked, with torchrl's own member neither
        assert count == 1 and "stack" in str(error), error
        continue
    assert len(env.group_map) == count
print("done")
"""


@pytest.mark.parametrize(("first", "second"), [(_OURS, _THEIRS), (_THEIRS, _OURS)], ids=["ours first", "torchrl first"])
def test_environments_accept_our_members_in_both_import_orders(first: str, second: str) -> None:
    code = _ENVIRONMENTS.format(first=first, second=second)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip().endswith("done"), run.stderr


@pytest.mark.parametrize("member", MarlGroupMapType)
def test_a_member_is_of_our_class_and_of_torchrls(member: MarlGroupMapType) -> None:
    theirs = THEIRS[member.name]
    assert isinstance(member, MarlGroupMapType)
    assert isinstance(member, THEIRS)
    assert type(member) is MarlGroupMapType
    assert member == theirs
    assert theirs == member
    assert {member: 1}[theirs] == 1
    assert all(member != other for other in THEIRS if other.name != member.name)
    assert member != member.value
    assert repr(member) == repr(theirs)


@pytest.mark.parametrize("member", MarlGroupMapType)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_and_pickles_are_the_member_itself(member: MarlGroupMapType, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(member, protocol)) is member
    assert copy.copy(member) is copy.deepcopy(member) is member
    assert MarlGroupMapType(member) is MarlGroupMapType(member.value) is MarlGroupMapType[member.name] is member


@both
@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({}, []),
        ({"g": ["a", "a"]}, ["a", "a"]),
        ({"g": ["a"], "h": ["b"], "i": ["a"]}, ["a", "b"]),
        ({"g": ["a", "b"], "h": []}, ["a", "b"]),
        ({"g": ["a", "c"]}, ["a", "b"]),
        ({"g": ["a", "b"], "h": ["b"]}, ["a", "b"]),
        ({"g": ["a"]}, ["a", "b"]),
    ],
    ids=["none", "twins", "too_many", "empty", "unknown", "repeated", "missing"],
)
def test_check_marl_grouping(lib: Any, groups: Any, names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        lib.check_marl_grouping(groups, names)
    for kind in lib.MarlGroupMapType:
        lib.check_marl_grouping(kind.get_group_map(["a", "b"]), ["a", "b"])


def test_the_members_and_their_group_maps_are_torchrls() -> None:
    assert [(k.name, k.value) for k in OURS.MarlGroupMapType] == [(k.name, k.value) for k in TORCHRL.MarlGroupMapType]
    for ours, theirs in zip(OURS.MarlGroupMapType, TORCHRL.MarlGroupMapType, strict=True):
        assert ours.get_group_map(["a", "b"]) == theirs.get_group_map(["a", "b"])
