"""Multi-head attention under a key: torch's values and gradients without dropped weights, torch's masks with them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._randomness.keyed_attention import MULTIHEAD_ARGUMENTS, multihead_attention
from functional_marl._randomness.keyed_dropout import run_keyed
from tests.builders import N, generators_untouched, numbers

LENGTH, SOURCE, BATCH, WIDTH, HEADS = 4, 5, 3, 6, 2
NEVER = 1e-9  # a probability so small that its keyed masks drop nothing

MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "kdim and vdim": {"kdim": 3, "vdim": 7},
    "kdim without bias": {"kdim": 3, "bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "all": {"kdim": 3, "vdim": 7, "add_bias_kv": True, "add_zero_attn": True},
}


def module_of(name: str, p: float, batch_first: bool = False) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(WIDTH, HEADS, p, dtype=torch.float64, batch_first=batch_first, **MODULES[name])
    for k, leaf in enumerate(module.parameters()):
        leaf.data = numbers(*leaf.shape, seed=k)
    return module


def inputs(name: str, batched: bool, batch_first: bool) -> list[Tensor]:
    widths = WIDTH, MODULES[name].get("kdim", WIDTH), MODULES[name].get("vdim", WIDTH)
    given = [numbers(BATCH, n, w, seed=9 + w + n) for n, w in zip((LENGTH, SOURCE, SOURCE), widths, strict=True)]
    given = [x if batch_first else x.transpose(0, 1) for x in given]
    return given if batched else [x[0] if batch_first else x[:, 0] for x in given]


def masks(batched: bool) -> list[dict[str, Any]]:
    few = numbers(LENGTH, SOURCE, seed=1) > 0.8
    whole = numbers((BATCH if batched else 1) * HEADS, LENGTH, SOURCE, seed=2)
    hidden = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    hidden[0, 1:3] = hidden[1, 4] = True
    hidden = hidden if batched else hidden[0]
    return [
        {},
        {"attn_mask": few},
        {"attn_mask": whole},
        {"attn_mask": whole > 0.9, "key_padding_mask": hidden},
        {"attn_mask": whole[0], "key_padding_mask": hidden.double()},
        {"key_padding_mask": hidden},
    ]


def with_gradients(module: nn.Module, given: list[Tensor], run: Any) -> list[Tensor | None]:
    """Outputs, and the gradients of all parameters and inputs."""
    given = [x.clone().requires_grad_() for x in given]
    out, weights = run(*given)
    total = (out * numbers(*out.shape)).sum() + (0.0 if weights is None else (weights * numbers(*weights.shape)).sum())
    leaves = [*module.parameters(), *given]
    return [out, weights, *torch.autograd.grad(total, leaves, allow_unused=True)]


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "length first"])
@pytest.mark.parametrize("name", MODULES)
def test_without_dropped_weights_values_and_gradients_are_torchs(name: str, batch_first: bool, batched: bool) -> None:
    keyed, plain = module_of(name, NEVER, batch_first), module_of(name, 0.0, batch_first)
    cases = product(masks(batched), [(True, True), (True, False), (False, True)])
    for given, (need_weights, average) in cases:
        options = {**given, "need_weights": need_weights, "average_attn_weights": average}
        x = inputs(name, batched, batch_first)
        with generators_untouched():
            got = with_gradients(keyed, x, lambda *x: run_keyed(lambda: keyed(*x, **options), fm.key(0), 0, False))  # noqa: B023
        expected = with_gradients(plain, x, lambda *x: plain(*x, **options))  # noqa: B023
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batched", [True, False])
def test_self_attention_in_one_projection(batched: bool) -> None:
    keyed, plain = module_of("plain", NEVER), module_of("plain", 0.0)
    (x, *_) = inputs("plain", batched, False)
    got = with_gradients(keyed, [x], lambda x: run_keyed(lambda: keyed(x, x, x), fm.key(0), 0, False))
    torch.testing.assert_close(got, with_gradients(plain, [x], lambda x: plain(x, x, x)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_dropped_weights_are_masked_in_the_same_place_as_in_torch(
    name: str, need_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = module_of(name, 0.25), inputs(name, True, False)
    extra = ("add_bias_kv" in MODULES[name]) + ("add_zero_attn" in MODULES[name])
    keep = numbers(BATCH, HEADS, LENGTH, SOURCE + extra) > -0.5

    def drop(weights: Tensor, *_: Any, **__: Any) -> Tensor:
        return weights * keep.view(weights.shape)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, *_: Any) -> Tensor:
        return drop(torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)) @ v

    given: dict[str, Any] = {}

    def record(
        *args: Any, **named: Any
    ) -> Any:  # the arguments that the module passes to torch's function are passed to ours
        given.update(dict(zip(MULTIHEAD_ARGUMENTS, args, strict=False)), **named)
        return args[0], None

    with monkeypatch.context() as patched:
        patched.setattr(F, "multi_head_attention_forward", record)
        module(*x, need_weights=need_weights)
    got = multihead_attention(drop, given)
    with monkeypatch.context() as patched:
        patched.setattr(F, "dropout", drop)
        patched.setattr(F, "scaled_dot_product_attention", attend)
        expected = module(*x, need_weights=need_weights)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def functional(p: float, add_zero_attn: bool = False, **named: Any) -> Any:
    """Torch's function with the parameters of a plain module, under a key."""
    module, (query, key, value) = module_of("plain", 0.0), inputs("plain", True, False)
    call = lambda: F.multi_head_attention_forward(
        query,
        key,
        value,
        WIDTH,
        HEADS,
        module.in_proj_weight,
        module.in_proj_bias,
        None,
        None,
        add_zero_attn,
        p,
        module.out_proj.weight,
        module.out_proj.bias,
        **named,
    )
    return run_keyed(call, fm.key(0), 0, False)


@pytest.mark.parametrize("add_zero_attn", [False, True])
def test_static_keys_and_values(add_zero_attn: bool) -> None:
    own: dict[str, Any] = {
        "static_k": numbers(BATCH * HEADS, 7, WIDTH // HEADS, seed=1),
        "static_v": numbers(BATCH * HEADS, 7, WIDTH // HEADS, seed=2),
        "key_padding_mask": torch.zeros(BATCH, 7, dtype=torch.bool),
    }
    got = functional(NEVER, add_zero_attn, **own)
    torch.testing.assert_close(got, functional(0.0, add_zero_attn, **own), rtol=1e-11, atol=1e-11)


def test_masks_of_integers_raise_as_in_torch() -> None:
    mask = torch.zeros(LENGTH, SOURCE, dtype=torch.int64)
    with pytest.raises(AssertionError):
        functional(0.0, attn_mask=mask)
    with pytest.raises(fm.StructureError, match=r"attn_mask: expected bools or floats .*, got torch.int64"):
        functional(0.5, attn_mask=mask)


def test_rows_without_an_allowed_key_are_torchs() -> None:
    keyed, plain = module_of("plain", NEVER), module_of("plain", 0.0)
    x = inputs("plain", True, False)
    hidden = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    hidden[1] = True
    for need_weights in (True, False):
        options: dict[str, Any] = {"need_weights": need_weights, "key_padding_mask": hidden}
        got = run_keyed(lambda: keyed(*x, **options), fm.key(0), 0, False)  # noqa: B023
        torch.testing.assert_close(got, plain(*x, **options), rtol=1e-11, atol=1e-11, equal_nan=True)
        assert bool(got[0].isnan().any()) == need_weights


@pytest.mark.parametrize(
    "given",
    [
        {"attn_mask": torch.zeros(1, SOURCE)},
        {"attn_mask": torch.zeros(HEADS, LENGTH, SOURCE)},
        {"key_padding_mask": torch.zeros(SOURCE, BATCH, dtype=torch.bool)},
        {"key_padding_mask": torch.zeros(SOURCE, dtype=torch.bool)},
    ],
    ids=["one row", "without a batch", "turned", "unbatched"],
)
def test_masks_that_torch_refuses_raise(given: dict[str, Any]) -> None:
    x = inputs("plain", True, False)
    with pytest.raises((RuntimeError, AssertionError)):
        module_of("plain", 0.0)(*x, **given)
    module = module_of("plain", 0.5)
    name = next(iter(given))
    with pytest.raises(fm.StructureError, match=rf"{name}: expected bools or floats of shape .*, got torch"):
        run_keyed(lambda: module(*x, **given), fm.key(0), 0, False)


def test_the_causal_hint_needs_a_mask_as_in_torch() -> None:
    x = inputs("plain", True, False)
    module = module_of("plain", 0.5)
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        run_keyed(lambda: module(*x, is_causal=True), fm.key(0), 0, False)
    keyed, plain = module_of("plain", NEVER), module_of("plain", 0.0)
    mask = torch.ones(LENGTH, SOURCE, dtype=torch.bool).triu(1)
    for need_weights in (True, False):
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        got = run_keyed(lambda: keyed(*x, **options), fm.key(0), 0, False)  # noqa: B023
        torch.testing.assert_close(got, plain(*x, **options), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["plain", "bias_kv", "zero", "no bias"])
def test_all_strategies_agree(name: str) -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(
                WIDTH, HEADS, 0.25, dtype=torch.float64, batch_first=True, **MODULES[name]
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    net = fm.network(SelfAttention, N, agent_dim=0)
    params, x = fm.init_params(net, 0), numbers(N, BATCH, LENGTH, WIDTH)
    expected = [
        run_keyed(lambda: fm.agent_module(net, params, i).train()(x[i]), fm.key(3), i, False)  # noqa: B023
        for i in range(N)
    ]
    for strategy in ("auto", "loop", "vmap"):
        with generators_untouched():
            y = fm.apply(net.replace(strategy=strategy), params, x, key=3, train=True)
        torch.testing.assert_close(y, torch.stack(expected).detach(), rtol=1e-11, atol=1e-11)
