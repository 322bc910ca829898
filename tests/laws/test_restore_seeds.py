"""Seeds of all global generators, and attention with derivatives in one thread."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from functional_marl.laws import LAWS, Critics, Facade
from functional_marl.laws._restore import differentiable_attention, seeded
from functional_marl.laws._zoo_subject import zoo_subject


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()]


@pytest.mark.parametrize("others", [None, 5])
def test_seeded_gives_the_same_draws_and_puts_all_generators_back(others: int | None) -> None:
    random.gauss(0, 1)  # each keeps the second number of a pair
    np.random.normal()
    torch.manual_seed(int(torch.randint(100, ())))
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    numpy: Any = np.random
    bits = numpy.get_bit_generator()
    found: list[list[float]] = []
    for seed in (3, 3, 2**40):
        with seeded(seed, others):
            found.append(draws())
            with seeded(seed, others):  # inside another
                assert draws() == found[-1]
            draws()
    with pytest.raises(ZeroDivisionError), seeded(3):
        print(draws()[0] / 0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))
    assert numpy.get_bit_generator() is bits
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert (found[0][1:] == found[2][1:]) == (others is not None)
    second = 3 if others is None else others
    torch.manual_seed(3)
    random.seed(second)
    np.random.seed(second)
    assert draws() == found[0]


# --- attention -------------------------------------------------------------------------------------------


class Mapped(nn.Module):
    """Attention with stacked parameters, one row an agent: ``[n, B, T, 8] -> [n, B, T, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.MultiheadAttention(8, 2, batch_first=True).eval()]
        self.names = [name.replace(".", "_") for name, _ in self.hidden[0].named_parameters()]
        for name, (_, leaf) in zip(self.names, self.hidden[0].named_parameters(), strict=True):
            self.register_parameter(name, nn.Parameter(torch.stack([leaf.detach(), leaf.detach() + 1])))

    def forward(self, x: Tensor) -> Tensor:
        net = self.hidden[0]
        params = {k: getattr(self, n) for n, (k, _) in zip(self.names, net.named_parameters(), strict=True)}
        return torch.vmap(lambda p, z: torch.func.functional_call(net, p, (z, z, z))[0])(params, x)


def test_mapped_attention_has_derivatives_in_evaluation() -> None:
    module, x = Mapped().eval(), torch.randn(2, 3, 4, 8, requires_grad=True)
    leaves = [x, *module.parameters()]
    with differentiable_attention(module):
        found = torch.autograd.grad(module(x).square().sum(), leaves)
    module.hidden[0].train()
    wanted = torch.autograd.grad(module(x).square().sum(), leaves)
    torch.testing.assert_close(found, wanted)


def test_mapped_attention_has_none_without_it() -> None:
    """If this fails, torch has mended it, and the context manager can go."""
    module, x = Mapped().eval(), torch.randn(2, 3, 4, 8)
    with pytest.warns(UserWarning, match="batching rule for aten::_native_multi_head_attention"):
        y = module(x)
    with pytest.raises(RuntimeError, match="_native_multi_head_attention is not implemented"):
        y.sum().backward()


def test_attention_with_inputs_that_require_gradients_needs_no_switch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, requires_grad=True)
    assert layer(x).grad_fn is not None
    assert float(torch.autograd.grad(layer(x).square().sum(), x)[0].abs().sum()) > 0


def test_attention_is_found_and_only_then_a_mode_is_on() -> None:
    def modes() -> int:
        return torch._C._len_torch_function_stack()

    for module, count in ((nn.Linear(2, 2), 0), (nn.Sequential(nn.MultiheadAttention(4, 2)), 1), (Mapped(), 1)):
        with differentiable_attention(module):
            assert modes() == count
        assert modes() == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_laws_seed_by_what_restores_the_generators_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(seed: int) -> None:  # it seeds devices, too, and fork_rng(devices=[]) restores none of them
        raise AssertionError(f"torch.manual_seed({seed})")

    monkeypatch.setattr(torch, "manual_seed", refused)
    case = zoo_subject("dropout", n_agents=2)
    for name in ("initialization_is_the_modules_own", "randomness_has_one_meaning", "generators_are_untouched"):
        LAWS[name](case)
    LAWS["facade_is_functional"](Facade("mlp", 2))
    LAWS["detached_groups_get_no_gradient"](Critics(((2, 3), (1, 4)), detached=(1,)))
