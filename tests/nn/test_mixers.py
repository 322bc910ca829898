"""Mixers: torchrl's numbers and errors, then errors of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
def test_qmix_has_torchrls_numbers(batch: tuple[int, ...], state_shape: tuple[int, ...]) -> None:
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
def test_mixers_name_the_wrong_input(lib: Any) -> None:
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


def test_a_wrong_subclass_of_mixer() -> None:
    class Wrong(fm.nn.Mixer):
        def mix(self, chosen_action_value: Tensor, state: Any) -> Tensor:
            return chosen_action_value

    with pytest.raises(ValueError, match=r"expected an output of shape \[5, 1\], got \[5, 3, 1\]"):
        Wrong(n_agents=3, needs_state=False, state_shape=(), device=None)(torch.zeros(5, 3, 1))
    with pytest.raises(NotImplementedError, match="mix"):
        fm.nn.Mixer(n_agents=3, needs_state=False, state_shape=(), device=None)(torch.zeros(5, 3, 1))
