"""The reference page's example as printed, and the facade in torchrl's collectors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_EXAMPLE = """
>>> from functional_marl.nn import MultiAgentMLP
>>> import torch
>>> n_agents = 6
>>> n_agent_inputs=3
>>> n_agent_outputs=2
>>> batch = 64
>>> obs = torch.zeros(batch, n_agents, n_agent_inputs)
>>> mlp = MultiAgentMLP(
...     n_agent_inputs=n_agent_inputs,
...     n_agent_outputs=n_agent_outputs,
...     n_agents=n_agents,
...     centralized=False,
...     share_params=False,
...     depth=2,
... )
>>> snet = mlp.get_stateful_net()
>>> def init(module):
...     if hasattr(module, "weight"):
...         torch.nn.init.kaiming_normal_(module.weight)
>>> snet.apply(init)
>>> # If the module has been updated out-of-place (not the case here) we can reset the params
>>> mlp.from_stateful_net(snet)
"""


def test_the_reference_pages_example_runs_as_printed() -> None:
    """The page of ``MultiAgentNetBase`` with the import changed."""
    lines = [line[4:] for line in _EXAMPLE.strip().splitlines()]
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec("\n".join(lines), scope)
    mlp, obs = scope["mlp"], scope["obs"]
    assert mlp(obs).shape == (64, 6, 2)
    weight = mlp.params["0", "weight"]
    assert weight.shape == (6, 32, 3)
    # kaiming_normal_ on the stack of six draws with a fan of 32 * 3: std sqrt(2 / 96)
    assert abs(float(weight.std().detach()) - (2 / 96) ** 0.5) < 0.02


_COLLECT = """
import torch, warnings
warnings.simplefilter("ignore")
from functools import partial
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import MultiSyncCollector
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import ProbabilisticActor, TanhNormal
from functional_marl.nn import MultiAgentMLP

if __name__ == "__main__":
    make = partial(VmasEnv, "navigation", num_envs=2, continuous_actions=True, max_steps=5, n_agents=3, seed=0)
    env = make()
    width = env.observation_spec["agents", "observation"].shape[-1]
    net = MultiAgentMLP(width, 4, 3, centralized=False, share_params=False, depth=1)
    policy = ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(net, NormalParamExtractor()),
            [("agents", "observation")],
            [("agents", "loc"), ("agents", "scale")],
        ),
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[env.action_key],
        distribution_class=TanhNormal,
    )
    collector = MultiSyncCollector([make], policy, frames_per_batch=20, total_frames=40)
    loc = lambda data: net(data["agents", "observation"]).chunk(2, -1)[0]
    for k, data in enumerate(collector):
        assert torch.allclose(loc(data), data["agents", "loc"], atol=1e-5), k
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1)
        collector.update_policy_weights_()
    collector.shutdown()
    print("collected")
"""


def test_multi_process_collection(tmp_path: Path) -> None:
    """The policy is pickled into a worker, and follows updates of its parameters."""
    script = tmp_path / "collect.py"
    script.write_text(_COLLECT)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=150)
    assert "collected" in run.stdout, run.stderr
