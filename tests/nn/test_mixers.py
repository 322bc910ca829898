"""Mixers, the critic over groups, and group maps: on both libraries, then what is ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

import functional_marl as fm
from tests.nn.facade_cases import OURS, TORCHRL, both


@both
@pytest.mark.parametrize("batch", [(), (5,), (5, 2)])
def test_vdn_is_the_sum(lib: Any, batch: tuple[int, ...]) -> None:
    values = torch.randn(*batch, 3, 1)
    assert torch.equal(lib.VDNMixer(n_agents=3, device="cpu")(values), values.sum(-2))


@pytest.mark.parametrize("batch", [(), (5,), (5, 2), (0,)])
@pytest.mark.parametrize("state_shape", [(4,), (2, 3)])
def test_qmix_has_the_same_numbers(batch: tuple[int, ...], state_shape: tuple[int, ...]) -> None:
    mixers: list[Any] = []
    for lib in (TORCHRL, OURS):
        torch.manual_seed(0)
        mixers.append(lib.QMixer(state_shape=state_shape, mixing_embed_dim=8, n_agents=3, device="cpu"))
    theirs, ours = mixers
    assert str(theirs) == str(ours)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    values, state = torch.randn(*batch, 3, 1), torch.randn(*batch, *state_shape)
    torch.testing.assert_close(ours(values, state), theirs(values, state))


def test_qmix_is_monotonic_in_each_agents_value() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        mixer = OURS.QMixer(state_shape=(4,), mixing_embed_dim=8, n_agents=3, device="cpu")
        for p in mixer.parameters():
            nn.init.normal_(p)
        values, state = torch.randn(30, 3, 1).requires_grad_(), torch.randn(30, 4)
        (grad,) = torch.autograd.grad(mixer(values, state).sum(), values)
        assert bool((grad >= 0).all())


@both
def test_mixers_name_what_was_given(lib: Any) -> None:
    vdn = lib.VDNMixer(n_agents=3, device="cpu")
    qmix = lib.QMixer(state_shape=(4,), mixing_embed_dim=8, n_agents=3, device="cpu")
    values, state = torch.zeros(5, 3, 1), torch.zeros(5, 4)
    with pytest.raises(ValueError, match="doesn't need state"):
        vdn(values, state)
    with pytest.raises(ValueError, match="needs state"):
        qmix(values)
    with pytest.raises(ValueError, match=r"\(3, 1\).*\[5, 2, 1\]"):
        vdn(torch.zeros(5, 2, 1))
    with pytest.raises(ValueError, match=r"\(3, 1\).*\[5, 3\]"):
        qmix(values[..., 0], state)
    with pytest.raises(ValueError, match=r"4.*\[5, 3\]"):
        qmix(values, state[:, 1:])


def test_a_mixer_of_ones_own() -> None:
    class Wrong(fm.nn.Mixer):
        def mix(self, chosen_action_value: Tensor, state: Any) -> Tensor:
            return chosen_action_value

    with pytest.raises(ValueError, match=r"expected an output of shape \[5, 1\], got \[5, 3, 1\]"):
        Wrong(n_agents=3, needs_state=False, state_shape=(), device=None)(torch.zeros(5, 3, 1))
    with pytest.raises(NotImplementedError, match="mix"):
        fm.nn.Mixer(n_agents=3, needs_state=False, state_shape=(), device=None)(torch.zeros(5, 3, 1))


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
def test_cross_group_critic_has_the_same_numbers(share: bool, batch: tuple[int, ...]) -> None:
    theirs, ours = critic(TORCHRL, share_params=share), critic(OURS, share_params=share)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    a, b = theirs(observed(*batch)), ours(observed(*batch))
    for group, n in (("soldiers", 3), ("medics", 2)):
        assert b[group, "value"].shape == (*batch, n, 1)
        torch.testing.assert_close(a[group, "value"], b[group, "value"])


@both
def test_cross_group_critic_detaches(lib: Any) -> None:
    net = critic(lib, detach_groups=["medics"])
    data = observed(5)
    for group in ("soldiers", "medics"):
        data[group, "obs"].requires_grad_()
    net(data)["soldiers", "value"].sum().backward()
    assert data["medics", "obs"].grad is None
    assert data["soldiers", "obs"].grad is not None
    with pytest.raises(ValueError, match="medics"):
        net.module(torch.zeros(5, 3, 4), torch.zeros(5, 2, 6))


def test_cross_group_critic_refuses_unknown_groups() -> None:
    with pytest.raises(ValueError, match="cooks"):
        critic(OURS, detach_groups=["cooks"])
    with pytest.raises(ValueError, match="soldiers"):
        critic(OURS).module(torch.zeros(5, 3, 4))


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


def test_premade_group_maps_are_torchrls() -> None:
    assert [(k.name, k.value) for k in OURS.MarlGroupMapType] == [(k.name, k.value) for k in TORCHRL.MarlGroupMapType]
    for ours, theirs in zip(OURS.MarlGroupMapType, TORCHRL.MarlGroupMapType, strict=True):
        assert ours.get_group_map(["a", "b"]) == theirs.get_group_map(["a", "b"])
