"""The life of a facade module as an ``nn.Module``: copies, files, hooks, swaps, compile, export, DDP."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import functional_marl as fm
from functional_marl.nn import MultiAgentConvNet, MultiAgentMLP, MultiAgentNetBase
from tests.nn.facade_cases import OURS, mlp, stored, subclass

SHARES: list[Any] = [True, False, [0, 0, 1], {"0.*": "shared", "*": [1, 0, 1]}]
every = pytest.mark.parametrize("share", SHARES, ids=["shared", "independent", "clusters", "per_layer"])
X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))


@stored
@every
def test_copies_and_files(td: bool, share: Any) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share, dropout=0.5)
    net.eval()
    y = net(X)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = mlp(OURS, use_td_params=td, share_params=share, dropout=0.5).eval()
    fresh.reset_parameters()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert torch.equal(other(X), y)
        assert not other.training
        for p in other.parameters():
            p.data.zero_()
        assert bool((other(X) == 0).all())
    assert torch.equal(net(X), y)


@stored
@every
def test_moves(td: bool, share: Any) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share)
    y, held = net(X), list(net.parameters())
    net.to(torch.float64)
    assert [id(p) for p in net.parameters()] == [id(p) for p in held]
    torch.testing.assert_close(net(X.double()).float(), y)
    vector = parameters_to_vector(net.parameters())
    vector_to_parameters(vector * 0, net.parameters())
    assert bool((net(X.double()) == 0).all())


@stored
@every
def test_swapped_parameters_are_honoured(td: bool, share: Any) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share)
    y = net(X)
    zeros = {k: p * 0 for k, p in net.named_parameters()}
    for _ in range(2):  # each leaves the module as it was, and knows the other
        assert bool((functional_call(net, zeros, (X,)) == 0).all())
        with TensorDict.from_module(net).data.apply(torch.zeros_like).to_module(net):  # pyright: ignore
            assert bool((net(X) == 0).all())
        assert torch.equal(net(X), y)
    with TensorDict.from_module(net).data.apply(torch.zeros_like).to_module(net):  # pyright: ignore
        pass
    assert bool((functional_call(net, zeros, (X,)) == 0).all())
    some = dict(list(zeros.items())[:1])  # the others stay
    assert not torch.equal(functional_call(net, some, (X,)), y)


@stored
def test_gradients_reach_the_registered_parameters(td: bool) -> None:
    for share in SHARES:
        net = mlp(OURS, use_td_params=td, share_params=share)
        net(X).square().sum().backward()
        functional, params, _ = net.functional()
        params = {k: p.requires_grad_() for k, p in params.items()}
        fm.apply(functional, params, X).square().sum().backward()
        root = "params." if td else "_empty_net."
        for name, p in net.named_parameters():
            grad = params[name.removeprefix(root)].grad
            assert grad is not None
            torch.testing.assert_close(p.grad, grad[0] if share is True else grad)


def test_train_and_eval_reach_the_template() -> None:
    net = mlp(OURS, dropout=0.5)
    assert not torch.equal(net(X), net(X))
    net.eval()
    assert not net._empty_net.training
    assert torch.equal(net(X), net(X))


def test_hooks_on_the_module_and_on_layers() -> None:
    net = mlp(OURS)
    y = net(X)
    calls: list[str] = []

    def outer(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append("outer")
        return out + 1

    def inner(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append("inner")
        return out * 0

    handles = [net.register_forward_hook(outer), net._empty_net[4].register_forward_hook(inner)]
    assert bool((net(X) == 1).all())
    assert calls[-1] == "outer"
    assert "inner" in calls
    count = len(calls)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(net(X), y)
    assert len(calls) == count


@stored
@every
def test_batch_norm_writes_its_buffers_back(td: bool, share: Any) -> None:
    share = [0, 0, 1] if isinstance(share, dict) else share
    net = mlp(OURS, use_td_params=td, share_params=share, norm_class=nn.BatchNorm1d, norm_kwargs={"num_features": 8})
    functional, params, state = net.functional()
    held = dict(net.named_buffers())
    y, after = fm.apply(functional, params, X, state=state, train=True, mutable=True)
    torch.testing.assert_close(net(X), y)
    root = "params." if td else "_empty_net."
    for name, buffer in after.items():
        assert net.get_buffer(root + name) is held[root + name] if not td else True
        torch.testing.assert_close(held[root + name], buffer[0] if share is True else buffer)
    net.eval()
    before = {k: b.clone() for k, b in net.named_buffers()}
    net(X)
    assert all(torch.equal(b, before[k]) for k, b in net.named_buffers())
    own = mlp(OURS, share_params=False, norm_class=nn.BatchNorm1d, norm_kwargs={"num_features": 8}).eval()
    own.load_state_dict(OURS.convert_state_dict(net.state_dict(), own, sharing=share))
    torch.testing.assert_close(own(X), net(X))


def test_a_recurrent_subclass_of_one_input() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    net = subclass(OURS, Last)(False, agent_dim=1)
    y = net(torch.randn(2, 3, 5, 6))
    assert y.shape == (2, 3, 5, 4)
    assert net.get_stateful_net().rnn.weight_ih_l0 is net.params["rnn", "weight_ih_l0"]


@pytest.mark.parametrize("share", [True, False])
def test_compile_fullgraph(share: bool) -> None:
    for td in (True, False):
        for net in (mlp(OURS, use_td_params=td, share_params=share), mlp(OURS, share_params=share, centralized=True)):
            compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(X), net(X))
            compiled(X).sum().backward()
            assert all(p.grad is not None for p in net.parameters())
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    image = torch.randn(4, 3, 2, 9, 9)
    small: dict[str, Any] = {"in_features": 2, "num_cells": [3], "kernel_sizes": 3, "share_params": False}
    for td in (True, False):
        for net, x in (
            (mlp(OURS, use_td_params=td), X),
            (mlp(OURS, use_td_params=td, centralized=True), X),
            (mlp(OURS, use_td_params=td, share_params=True), X),
            (MultiAgentConvNet(3, centralized=False, use_td_params=td, **small), image),
        ):
            template = {
                k: getattr(part, k) for part in net._empty_net.modules() for k in ("weight",) if hasattr(part, k)
            }
            exported = torch.export.export(net, (x,), strict=strict)
            assert not exported.constants
            torch.testing.assert_close(exported.module()(x), net(x))
            now = {k: getattr(part, k) for part in net._empty_net.modules() for k in ("weight",) if hasattr(part, k)}
            assert all(now[k] is template[k] for k in template)


_DDP = """
import sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from functional_marl.nn import MultiAgentMLP

def step(rank, td, share):
    torch.manual_seed(rank)
    net = MultiAgentMLP(6, 2, 3, centralized=False, share_params=share, depth=1, use_td_params=td)
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(rank))
    ddp(x).square().sum().backward()
    for p in net.parameters():
        both = [torch.empty_like(p.grad) for _ in range(2)]
        dist.all_gather(both, p.grad)
        assert torch.equal(*both) and bool(p.grad.abs().sum() > 0)

def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for td, share in ((True, True), (True, False), (False, False)):
        step(rank, td, share)  # the reducers are gone before the group is
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
    print("equal gradients")
"""


def test_ddp_on_two_gloo_processes(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(_DDP)
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, timeout=100
    )
    assert "equal gradients" in run.stdout, run.stderr


def test_the_facade_needs_no_torchrl() -> None:
    code = (
        "import sys; sys.modules['torchrl'] = None; import functional_marl; "
        "assert 'tensordict' not in sys.modules; import functional_marl.nn as n, torch; "
        "n.MultiAgentMLP(4, 2, 3, centralized=False, share_params=False)(torch.zeros(3, 4)); print('done')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "done" in run.stdout, run.stderr


def test_populations_through_vmap() -> None:
    """An ensemble of modules: ``torch.func.vmap`` over stacked parameters, as losses do."""
    net = mlp(OURS)
    stacked = {k: torch.stack([p.detach(), p.detach() * 2]) for k, p in net.named_parameters()}
    out = torch.func.vmap(lambda params: functional_call(net, params, (X,)))(stacked)
    torch.testing.assert_close(out[0], net(X))
    assert not torch.equal(out[0], out[1])


def test_the_base_is_abstract_in_the_two_hooks() -> None:
    assert {"_build_single_net", "_pre_forward_check"} <= {
        k for k, v in vars(MultiAgentNetBase).items() if getattr(v, "__isabstractmethod__", False)
    }
    assert MultiAgentMLP(6, 2, 3, centralized=False, share_params=True)._build_single_net(device="meta") is not None
