"""Idioms of public programs give the same numbers, step by step, with the classes of either library."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]
from tensordict.nn import TensorDictModule  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from tests.nn.facade_cases import OURS, TORCHRL, both, mlp, shared, stored

X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))


def trained(net: nn.Module, parameters: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses: list[float] = []
    for _ in range(steps):
        loss = net(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compare(run: Any) -> None:
    torch.testing.assert_close(run(OURS), run(TORCHRL))


@shared
@pytest.mark.parametrize("centralized", [True, False])
def test_values_as_one_column(share: bool, centralized: bool) -> None:
    """``values.view(-1)``, on the small batches of a rollout: where torchrl's output is contiguous, ours is."""
    theirs, ours = (mlp(lib, share_params=share, centralized=centralized)(X) for lib in (TORCHRL, OURS))
    torch.testing.assert_close(ours.reshape(-1), theirs.reshape(-1))
    if theirs.is_contiguous():  # shared networks that are not centralized
        torch.testing.assert_close(ours.view(-1), theirs.view(-1))
    assert theirs.is_contiguous() == (share and not centralized)


@stored
@shared
def test_learning_rates_by_name(td: bool, share: bool) -> None:
    """Groups of parameters by name: biases without weight decay, the first layer with a lower learning rate."""

    def run(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        named = list(net.named_parameters())
        biases = [p for name, p in named if name.endswith("bias")]
        first = [p for name, p in named if name.split(".")[1] == "0" and p.ndim > 2 - share]
        rest = [p for p in net.parameters() if all(p is not q for q in biases + first)]
        groups = [{"params": biases, "weight_decay": 0.0}, {"params": first, "lr": 1e-3}, {"params": rest}]
        return [name for name, _ in named if "bias" in name], trained(net, groups)

    compare(lambda lib: run(lib)[1])
    assert run(OURS)[0] == run(TORCHRL)[0]


@stored
@shared
def test_a_target_by_deepcopy_follows_by_polyak(td: bool, share: bool) -> None:
    def run(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        # torchrl's copy under use_td_params=False computes with the original's numbers: so a new network is made there
        target = copy.deepcopy(net) if td or lib is OURS else mlp(lib, use_td_params=td, share_params=share)
        for p in target.parameters():
            p.requires_grad_(False)
        losses = trained(net, net.parameters())
        with torch.no_grad():
            for p, q in zip(net.parameters(), target.parameters(), strict=True):
                q.mul_(0.9).add_(p, alpha=0.1)
        return losses, target(X), [p.requires_grad for p in target.parameters()]

    compare(run)


@stored
@shared
def test_swa_averages(td: bool, share: bool) -> None:
    net = mlp(OURS, use_td_params=td, share_params=share)
    averaged: Any = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    before = [p.detach().clone() for p in net.parameters()]
    averaged.update_parameters(net)
    trained(net, net.parameters())
    averaged.update_parameters(net)
    for p, q, r in zip(averaged.parameters(), before, net.parameters(), strict=True):
        torch.testing.assert_close(p, (q + r) / 2)
    reference = mlp(OURS, use_td_params=td, share_params=share)
    reference.load_state_dict(averaged.module.state_dict())
    torch.testing.assert_close(averaged(X), reference(X))


@stored
@shared
def test_a_checkpoint_of_policy_and_optimizer(td: bool, share: bool) -> None:
    def saved(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        optimizer = torch.optim.Adam(net.parameters())
        net(X).square().mean().backward()
        optimizer.step()
        file = io.BytesIO()
        torch.save({"net": dict(net.state_dict()), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        return net, file

    for giver, taker in ((TORCHRL, OURS), (OURS, TORCHRL), (OURS, OURS)):
        net, file = saved(giver)
        loaded = torch.load(file, weights_only=True)
        other = mlp(taker, use_td_params=td, share_params=share)
        other.load_state_dict(loaded["net"])
        optimizer = torch.optim.Adam(other.parameters())
        optimizer.load_state_dict(loaded["optimizer"])
        torch.testing.assert_close(other(X), net(X))
        other(X).square().mean().backward()
        optimizer.step()


@both
def test_an_ensemble_over_the_params_of_td(lib: Any) -> None:
    """REDQ and SAC: the parameters of several critics as one TensorDict, mapped by ``vmap_func_module``."""
    nets = [mlp(lib), mlp(lib)]
    nets[1].reset_parameters()
    stacked = torch.stack([net.params.data for net in nets])

    def one(params: Any, x: Tensor) -> Tensor:
        with params.to_module(nets[0].params):
            return nets[0](x)

    out = torch.stack([one(params, X) for params in stacked.unbind(0)])
    torch.testing.assert_close(out, torch.stack([net(X) for net in nets]))
    mapped = lib.MultiAgentNetBase.vmap_func_module(nets[0]._empty_net, (0, 1), (1,), "error")
    torch.testing.assert_close(mapped(stacked[1], X), nets[1](X))


@stored
@shared
def test_an_ensemble_by_stack_module_state(td: bool, share: bool) -> None:
    """``torch.func``'s own recipe, which does not work with torchrl's classes."""
    nets: list[Any] = [mlp(OURS, use_td_params=td, share_params=share) for _ in range(3)]
    for net in nets[1:]:
        net.reset_parameters()
    params, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def one(params: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(base, (params, buffers), (x,))

    out = torch.vmap(one, (0, 0, None))(params, buffers, X)
    torch.testing.assert_close(out, torch.stack([net(X) for net in nets]))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape[0] == 3 for p in params.values())


@stored
@shared
def test_clipping_norms_and_freezing(td: bool, share: bool) -> None:
    def run(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        frozen = [p.requires_grad_(False) for name, p in net.named_parameters() if ".0." in name]
        before = [p.clone() for p in frozen]
        net(X).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1).step()
        assert all(torch.equal(p, q) for p, q in zip(frozen, before, strict=True))
        return norm, sum(p.numel() for p in net.parameters()), net(X)

    compare(run)


@stored
@shared
def test_orthogonal_initialization_through_the_stateful_net(td: bool, share: bool) -> None:
    def run(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        stateful = net.get_stateful_net()
        torch.manual_seed(2)
        for part in stateful.modules():
            if isinstance(part, nn.Linear):
                for weight in part.weight if part.weight.ndim == 3 else [part.weight]:
                    nn.init.orthogonal_(weight.data, 0.5)
                nn.init.zeros_(part.bias)
        return net(X)

    compare(run)


@stored
@shared
def test_a_policy_and_a_value_in_one_tensordict_module(td: bool, share: bool) -> None:
    def run(lib: Any) -> Any:
        net = mlp(lib, use_td_params=td, share_params=share)
        module: Any = TensorDictModule(net, in_keys=[("agents", "observation")], out_keys=[("agents", "logits")])
        data = TensorDict({"agents": TensorDict({"observation": X}, [5, 3])}, [5])
        logits = module(data)["agents", "logits"]
        half: Any = TensorDict.from_module(module).data.apply(lambda p: p * 0.5)  # pyright: ignore
        with half.to_module(module):
            halved = module(data)["agents", "logits"]
        return logits, halved if td or lib is OURS else None

    ours, theirs = run(OURS), run(TORCHRL)
    torch.testing.assert_close(ours[0], theirs[0])
    assert not torch.allclose(ours[0], ours[1])
    if td:
        torch.testing.assert_close(ours[1], theirs[1])
