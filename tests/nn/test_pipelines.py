"""The reference page's example as printed, the facade in torchrl's collectors, under FSDP2 and inductor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nn.facade_cases import OURS, mlp, stored

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


_FSDP = """
import sys, warnings, torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from functional_marl.nn import MultiAgentMLP

warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # a word about in-place writes

def make(td, share):
    torch.manual_seed(0)
    return MultiAgentMLP(6, 2, 3, centralized=False, share_params=share, depth=1, use_td_params=td)

def same(sharded, whole, what):
    whole = dict(whole)
    for name, leaf in sharded:
        assert isinstance(leaf, DTensor), (what, name)  # this process holds its part and no more
        torch.testing.assert_close(leaf.full_tensor(), whole[name], msg=lambda text: f"{what} {name}: {text}")

def flat(td):
    return td.flatten_keys(".").items()

def check(mesh, td, share):
    net, plain = make(td, share), make(td, share)
    fully_shard(net, mesh=mesh)
    same(net.named_parameters(), plain.named_parameters(), "sharded")
    same(flat(net.params), flat(plain.params), "params")
    optimizers = [torch.optim.Adam(m.parameters(), 0.1) for m in (net, plain)]
    data = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(1))  # [process, batch, agent, feature]
    for _ in range(2):
        mine = net(data[dist.get_rank()])
        torch.testing.assert_close(mine, plain(data[dist.get_rank()]))
        mine.square().mean().backward()
        plain(data).square().mean().backward()  # the mean over processes is the mean over their batches
        slopes = [[(k, p.grad) for k, p in m.named_parameters()] for m in (net, plain)]
        same(*slopes, "grad")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    same(net.state_dict().items(), plain.state_dict().items(), "state_dict")
    same(flat(net.params), flat(plain.params), "params after a step")
    fresh = make(td, share)
    fresh.reset_parameters()
    fully_shard(fresh, mesh=mesh)
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(data[0]), plain(data[0]))

def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    for td in (True, False):
        for share in (True, False, [0, 0, 1]):
            check(mesh, td, share)
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
    print("as unsharded")
"""


def test_fsdp2_on_two_gloo_processes(tmp_path: Path) -> None:
    """Sharded over agents and unsharded: outputs, gradients, two steps of Adam, checkpoints."""
    script = tmp_path / "fsdp.py"
    script.write_text(_FSDP)
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, timeout=100
    )
    assert "as unsharded" in run.stdout, run.stderr


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@stored
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("share", "centralized"), [(True, True), (False, False), ([0, 0, 1], False)], ids=["shared", "independent", "mixed"]
)
def test_inductor_fullgraph(td: bool, share: Any, centralized: bool) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share, centralized=centralized)
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))

    def run(call: Any) -> list[torch.Tensor]:
        net.zero_grad()
        given = x.clone().requires_grad_()
        y = call(given)
        y.square().sum().backward()
        return [y, *(leaf.grad.clone() for leaf in (given, *net.parameters()) if leaf.grad is not None)]

    compiled = torch.compile(net, fullgraph=True)
    wanted = run(net)
    assert len(wanted) == 2 + len(list(net.parameters()))
    torch.testing.assert_close(run(compiled), wanted)
    with torch.no_grad():
        for p in net.parameters():  # the graph holds no numbers
            p.mul_(2)
    torch.testing.assert_close(run(compiled), run(net))
