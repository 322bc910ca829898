"""Attention and transformers by the plan, beside the tables of test_plan.py: masks, and settings without a rule."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import numbers
from tests.lowering.test_plan import N, assert_plan_is_loop


@pytest.mark.parametrize("mask", [numbers(N, 5, 4), numbers(N, 5, 4) > 1, numbers(N, 10, 5, 4)[:, :2] > 1])
def test_masks_of_attention(mask: Tensor) -> None:
    lone = mask.ndim == 3
    net = fm.network(lambda: nn.MultiheadAttention(8, 2, batch_first=True), N, agent_dim=0)
    inputs = [numbers(N, *([] if lone else [1]), steps, 8) for steps in (5, 4, 4)]
    assert_plan_is_loop(net, tuple(inputs), kwargs={"attn_mask": mask})


@pytest.mark.parametrize("pattern", ["in_proj*", "out_proj*"])
def test_projections_may_be_shared_differently(pattern: str) -> None:
    x = numbers(2, N, 5, 8)
    for build, inputs in (
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 6, batch_first=True), (x,)),
    ):
        net = fm.network(build, N, sharing={f"*{pattern}": "shared", "*": "independent"}, agent_dim=1)
        assert_plan_is_loop(net, inputs)


def test_attention_without_a_rule_is_left_to_the_module() -> None:
    x = numbers(N, 5, 8)
    for build, y, kwargs in (
        (lambda: nn.MultiheadAttention(8, 2), x, {"need_weights": False}),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), x, {}),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), x, {}),
        (lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=6), x[..., :6], {}),
    ):
        net = fm.network(build, N, agent_dim=0)
        params = fm.init_params(net, 0, dtype=torch.float64)
        outs = [fm.apply(net.replace(strategy=s), params, x, y, y, kwargs=kwargs)[0] for s in ("auto", "loop")]
        torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)
        with pytest.raises(fm.StructureError, match='strategy="plan"'):
            fm.apply(net.replace(strategy="plan"), params, x, y, y, kwargs=kwargs)


def transformer(**settings: Any) -> Any:
    return nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, **settings)


def patched_transformer(part: str) -> nn.Module:
    module = transformer()
    owner, name = (module.self_attn, "forward") if part == "attention" else (module, "_ff_block")
    before = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: before(*args, **kwargs))
    return module


def no_layers() -> nn.Module:
    encoder = nn.TransformerEncoder(transformer(), 1)
    encoder.layers = nn.ModuleList()
    encoder.scale = nn.Parameter(torch.ones(1))
    return encoder


def test_a_transformer_of_no_layers_has_no_plan() -> None:
    net = fm.network(no_layers, N, strategy="plan")
    with pytest.raises(fm.StructureError, match="nothing is computed"):
        fm.apply(net, fm.init_params(net, 0), numbers(2, N, 4))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: patched_transformer("attention"), r"self_attn \(MultiheadAttention\): hooks or methods of its own"),
        (lambda: patched_transformer("_ff_block"), "methods of its own"),
        (lambda: transformer(activation=F.silu), "no rule for activation=<function silu"),
    ],
)
def test_a_changed_transformer_has_no_plan(build: Any, why: str) -> None:
    net = fm.network(build, N)
    params, x = fm.init_params(net, 0), torch.randn(5, N, 4)
    assert fm.apply(net, params, x).shape == (5, N, 4)
    with pytest.raises(fm.StructureError, match=why):
        fm.apply(net.replace(strategy="plan"), params, x)
