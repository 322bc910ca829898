"""``CrossGroupCritic``: torchrl's numbers, gradients and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]

from tests.nn.facade_cases import OURS, TORCHRL, both


def critic(lib: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    spec = lib.CrossCriticGroupSpec
    groups = {
        "soldiers": spec(obs_dim=4, n_agents=3, obs_key=("soldiers", "obs"), value_key=("soldiers", "value")),
        "medics": spec(obs_dim=5, n_agents=2, obs_key=("medics", "obs"), value_key=("medics", "value")),
    }
    return lib.CrossGroupCritic(groups, d_model=8, trunk_depth=1, trunk_cells=16, **options)


def observed(*batch: int) -> Any:
    torch.manual_seed(1)
    data = {"soldiers": {"obs": torch.randn(*batch, 3, 4)}, "medics": {"obs": torch.randn(*batch, 2, 5)}}
    return TensorDict(data, batch_size=batch)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch", [(), (5,), (5, 2)])
def test_cross_group_critic_has_torchrls_numbers(share: bool, batch: tuple[int, ...]) -> None:
    theirs, ours = critic(TORCHRL, share_params=share), critic(OURS, share_params=share)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    a, b = theirs(observed(*batch)), ours(observed(*batch))
    for group, n in (("soldiers", 3), ("medics", 2)):
        assert b[group, "value"].shape == (*batch, n, 1)
        torch.testing.assert_close(a[group, "value"], b[group, "value"])


@both
def test_detached_groups_get_no_gradient(lib: Any) -> None:
    net = critic(lib, detach_groups=["medics"])
    data = observed(5)
    for group in ("soldiers", "medics"):
        data[group, "obs"].requires_grad_()
    net(data)["soldiers", "value"].sum().backward()
    assert data["medics", "obs"].grad is None
    assert data["soldiers", "obs"].grad is not None
    with pytest.raises(ValueError, match="medics"):
        net.module(torch.zeros(5, 3, 4), torch.zeros(5, 2, 6))


def test_unknown_groups_and_wrong_inputs_raise() -> None:
    with pytest.raises(ValueError, match="cooks"):
        critic(OURS, detach_groups=["cooks"])
    with pytest.raises(ValueError, match="soldiers"):
        critic(OURS).module(torch.zeros(5, 3, 4))
