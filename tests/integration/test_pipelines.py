"""Groups of a PettingZoo environment in torchrl's collector: a facade network per group, each with its own sharing.

Losses, collection by several processes and DDP are in ``tests/nn``, VMAS training in ``test_examples_torchrl.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tensordict.nn import (  # pyright: ignore[reportMissingTypeStubs]
    TensorDictModule,
    TensorDictSequential,
)
from torchrl.envs import PettingZooWrapper  # pyright: ignore[reportMissingTypeStubs]
from torchrl.modules import ProbabilisticActor  # pyright: ignore[reportMissingTypeStubs]

import functional_marl as fm
from tests.nn.facade_cases import OURS, TORCHRL, stored

with warnings.catch_warnings():
    # torchrl subclasses a class that it deprecates
    warnings.filterwarnings("ignore", "Creating .* which inherits from WeightUpdaterBase", DeprecationWarning)
    from torchrl.collectors import Collector  # pyright: ignore[reportMissingTypeStubs]

simple_tag: Any = pytest.importorskip("mpe2.simple_tag_v3")

# torchrl warns that it was tested with an older PettingZoo
pytestmark = pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL is tested:UserWarning")

SHARED = {"adversary": True, "agent": False}


def make_env() -> Any:
    env = simple_tag.parallel_env(num_good=2, num_adversaries=3, max_cycles=10)
    groups = fm.group_map(env.possible_agents, fm.by_prefix)
    return PettingZooWrapper(env=env, group_map=groups, categorical_actions=True, seed=0)


def make_nets(lib: Any, env: Any, td: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        group: lib.MultiAgentMLP(
            env.observation_spec[group, "observation"].shape[-1],
            5,
            len(agents),
            centralized=False,
            share_params=SHARED[group],
            depth=1,
            use_td_params=td,
        )
        for group, agents in env.group_map.items()
    }


def collect(env: Any, nets: dict[str, Any]) -> Any:
    """Twenty frames of sampled actions: two episodes."""
    actors: list[Any] = []
    for group, net in nets.items():
        logits: Any = TensorDictModule(net, in_keys=[(group, "observation")], out_keys=[(group, "logits")])
        actor: Any = ProbabilisticActor(
            logits,
            in_keys=[(group, "logits")],
            out_keys=[(group, "action")],
            distribution_class=torch.distributions.Categorical,
        )
        actors.append(actor)
    sizes: Any = {"frames_per_batch": 20, "total_frames": 20, "auto_register_policy_transforms": False}
    collector: Any = Collector(env, TensorDictSequential(*actors), **sizes)
    try:
        torch.manual_seed(1)
        return next(iter(collector))
    finally:
        collector.shutdown()


@stored
def test_two_groups_collect_the_same_as_with_torchrls_networks(td: bool) -> None:
    batches: list[Any] = []
    for lib in (TORCHRL, OURS):
        env = make_env()
        assert env.group_map == {"adversary": [f"adversary_{i}" for i in range(3)], "agent": ["agent_0", "agent_1"]}
        nets = make_nets(lib, env, td)
        slots = {group: next(net.parameters()).shape[:-1] for group, net in nets.items()}
        assert slots == {"adversary": (32,), "agent": (2, 32)}
        batches.append(collect(env, nets))
    theirs, ours = batches
    for group in SHARED:
        assert torch.equal(ours[group, "action"], theirs[group, "action"])
        assert len(ours[group, "action"].unique()) > 2
        torch.testing.assert_close(ours[group, "logits"], theirs[group, "logits"])
        torch.testing.assert_close(ours["next", group, "reward"], theirs["next", group, "reward"])
    assert int(ours["next", "done"].sum()) == 2


def test_the_groups_as_pure_functions_give_what_was_collected() -> None:
    env = make_env()
    facades = make_nets(OURS, env, True)
    batch = collect(env, facades)
    nets, params = dict[str, fm.Network](), dict[str, Any]()
    for group, facade in facades.items():
        nets[group], params[group], state = facade.functional()
        assert not state
    logits = fm.apply_groups(nets, params, {group: batch[group, "observation"] for group in nets})
    for group in nets:
        torch.testing.assert_close(logits[group], batch[group, "logits"])
