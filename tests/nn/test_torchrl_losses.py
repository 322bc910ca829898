"""torchrl's losses with the classes of the facade give the same numbers as with torchrl's classes."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]
from tensordict.nn import (  # pyright: ignore[reportMissingTypeStubs]
    NormalParamExtractor,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.modules import (  # pyright: ignore[reportMissingTypeStubs]
    ProbabilisticActor,
    QValueModule,
    TanhNormal,
    ValueOperator,
)
from torchrl.objectives import ClipPPOLoss, QMixerLoss, SACLoss, SoftUpdate  # pyright: ignore[reportMissingTypeStubs]
from torchrl.objectives import multiagent as marl_losses  # pyright: ignore[reportMissingTypeStubs]

from tests.nn.facade_cases import OURS, TORCHRL, shared, stored

# warnings of torchrl and tensordict about their own defaults
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::UserWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensordict"),
]


def net(lib: Any, inputs: int, outputs: int, **options: Any) -> Any:
    return lib.MultiAgentMLP(inputs, outputs, 3, depth=1, num_cells=8, **options)


def actor(lib: Any, **options: Any) -> Any:
    module = nn.Sequential(net(lib, 6, 4, centralized=False, **options), NormalParamExtractor())
    keys: Any = [("agents", "loc"), ("agents", "scale")]
    return ProbabilisticActor(
        module=TensorDictModule(module, [("agents", "observation")], keys),
        in_keys=keys,
        out_keys=[("agents", "action")],
        distribution_class=TanhNormal,
        return_log_prob=True,
        log_prob_key=("agents", "log_prob"),
    )


def batch(policy: Any) -> Any:
    torch.manual_seed(7)

    def step() -> dict[str, Any]:
        zeros = torch.zeros(4, 5, 3, 1, dtype=torch.bool)
        return {"observation": torch.randn(4, 5, 3, 6), "reward": torch.randn(4, 5, 3, 1)} | {
            k: zeros.clone() for k in ("done", "terminated")
        }

    now, then = step(), step()
    agents = {"observation": now["observation"], "done": now["done"], "terminated": now["terminated"]}
    data = TensorDict({"agents": agents, "next": {"agents": then}}, batch_size=[4, 5])  # pyright: ignore
    with torch.no_grad():
        return policy(data).detach()


def ppo(loss_class: Any, lib: Any, td: bool, share: bool) -> Any:
    torch.manual_seed(0)
    policy = actor(lib, share_params=share, use_td_params=td)
    value = net(lib, 6, 1, centralized=True, share_params=share, use_td_params=td)
    critic = TensorDictModule(value, [("agents", "observation")], [("agents", "state_value")])
    loss = loss_class(actor_network=policy, critic_network=critic)
    loss.set_keys(
        reward=("agents", "reward"),
        action=("agents", "action"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
        sample_log_prob=("agents", "log_prob"),
        value=("agents", "state_value"),
    )
    loss.make_value_estimator(loss.default_value_estimator)
    return policy, loss


def train(loss: Any, data: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    values: list[float] = []
    for _ in range(steps):
        torch.manual_seed(3)
        out = loss(data.clone())
        total: Any = sum(v for k, v in out.items() if str(k).startswith("loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(float(total.detach()))
    return values


@stored
@shared
@pytest.mark.parametrize("name", ["ClipPPOLoss", "MAPPOLoss", "IPPOLoss"])
def test_policy_gradient_losses(name: str, td: bool, share: bool) -> None:
    loss_class = ClipPPOLoss if name == "ClipPPOLoss" else getattr(marl_losses, name)
    runs: list[list[float]] = []
    for lib, storage in ((TORCHRL, True), (OURS, td)):  # torchrl's other storage: test_swaps_of_a_loss_...
        policy, loss = ppo(loss_class, lib, storage, share)
        data = batch(policy)
        before = [p.detach().clone() for p in policy.parameters()]
        runs.append(train(loss, data))
        assert all(not torch.equal(p, q) for p, q in zip(policy.parameters(), before, strict=True))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)


@shared
def test_swaps_of_a_loss_reach_parameters_in_the_template(share: bool) -> None:
    """A loss swaps in detached or target parameters. torchrl still computes with the old ones, in the template."""
    runs = {
        (lib is OURS, td): train(loss, batch(policy))
        for lib in (TORCHRL, OURS)
        for td in (True, False)
        for policy, loss in [ppo(ClipPPOLoss, lib, td, share)]
    }
    assert runs[True, True] == runs[True, False]
    assert abs(runs[False, True][-1] - runs[False, False][-1]) > 1e-3


@stored
@shared
def test_sac_with_an_ensemble_of_critics_and_soft_updates(td: bool, share: bool) -> None:
    runs: list[list[float]] = []
    for lib, storage in ((TORCHRL, True), (OURS, td)):
        torch.manual_seed(0)
        policy = actor(lib, share_params=share, use_td_params=storage)
        value = ValueOperator(
            net(lib, 6 + 2, 1, centralized=False, share_params=share, use_td_params=storage),
            in_keys=[("agents", "observation"), ("agents", "action")],
            out_keys=[("agents", "state_action_value")],
        )
        loss = SACLoss(policy, value, num_qvalue_nets=2, action_spec=None, target_entropy=-2.0)
        loss.set_keys(
            action=("agents", "action"),
            state_action_value=("agents", "state_action_value"),
            log_prob=("agents", "log_prob"),
            reward=("agents", "reward"),
            done=("agents", "done"),
            terminated=("agents", "terminated"),
        )
        loss.make_value_estimator(gamma=0.9)
        update = SoftUpdate(loss, eps=0.5)
        # The loss initializes its copies of the critic at random: give both libraries the same.
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in loss.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        q = [p for k, p in loss.named_parameters() if k.startswith("qvalue_network_params")]
        assert all(p.shape[0] == 2 for p in q)
        runs.append(train(loss, batch(policy)))
        before = {k: t.clone() for k, t in loss.named_buffers() if k.startswith("target_qvalue")}
        update.step()
        after = dict(loss.named_buffers())
        assert before
        assert any(not torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)


@shared
def test_qmix(share: bool) -> None:
    runs: list[list[float]] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        q = TensorDictModule(
            net(lib, 6, 4, centralized=False, share_params=share),
            [("agents", "observation")],
            [("agents", "action_value")],
        )
        choice = QValueModule(
            action_value_key=("agents", "action_value"),
            out_keys=[("agents", "action"), ("agents", "action_value"), ("agents", "chosen_action_value")],
            spec=None,
            action_space="categorical",
        )
        mixer = TensorDictModule(
            lib.QMixer(state_shape=(5,), mixing_embed_dim=8, n_agents=3, device="cpu"),
            [("agents", "chosen_action_value"), "state"],
            ["chosen_action_value"],
        )
        policy = TensorDictSequential(cast(Any, q), cast(Any, choice))
        loss = QMixerLoss(policy, mixer, delay_value=True, action_space="categorical")
        loss.set_keys(
            action_value=("agents", "action_value"),
            local_value=("agents", "chosen_action_value"),
            global_value="chosen_action_value",
            action=("agents", "action"),
        )
        loss.make_value_estimator(gamma=0.9)
        torch.manual_seed(5)
        done = torch.zeros(4, 1, dtype=torch.bool)

        def step() -> dict[str, Any]:
            return {"agents": {"observation": torch.randn(4, 3, 6)}, "state": torch.randn(4, 5)}

        then = step() | {"reward": torch.randn(4, 1), "done": done, "terminated": done}
        with torch.no_grad():
            data = policy(TensorDict(step() | {"next": then}, batch_size=[4]))  # pyright: ignore
        runs.append(train(loss, data))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_loss_computes_the_same() -> None:
    policy, loss = ppo(ClipPPOLoss, OURS, True, False)
    data = batch(policy)
    again = copy.deepcopy(loss)
    torch.manual_seed(0)
    a = loss(data.clone())["loss_objective"]
    torch.manual_seed(0)
    torch.testing.assert_close(again(data.clone())["loss_objective"], a)
