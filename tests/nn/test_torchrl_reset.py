"""``reset_parameters`` under torchrl's seeds, images without a batch, and attributes of the one-agent nets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.nn.facade_cases import OURS, TORCHRL, cnn, mlp, shared, stored, subclass

NORMS: dict[str, Any] = {"norm_class": nn.BatchNorm2d, "norm_kwargs": [{"num_features": 4}, {"num_features": 3}]}


def nested(lib: Any, *, share_params: Any, use_td_params: bool = True) -> Any:
    def build() -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Embedding(3, 4)), nn.GRU(4, 4), nn.Linear(4, 2))

    return subclass(lib, build)(share_params, use_td_params=use_td_params)


CASES: list[Any] = [
    (mlp, {}),
    (mlp, {"norm_class": nn.LayerNorm, "norm_kwargs": {"normalized_shape": 8}, "activation_class": nn.PReLU}),
    (mlp, {"single_bias_last_layer": True, "centralized": True}),
    (mlp, {"norm_class": nn.BatchNorm1d, "norm_kwargs": {"num_features": 8}}),
    (cnn, {}),
    (cnn, NORMS),
    (nested, {}),
]


@stored
@shared
@pytest.mark.parametrize(
    ("make", "options"), CASES, ids=["mlp", "norms", "joint", "batch_norm", "cnn", "cnn_norms", "nested"]
)
def test_a_reset_gives_torchrls_numbers(make: Any, options: dict[str, Any], td: bool, share: bool) -> None:
    after: list[dict[str, Tensor]] = []
    for lib in (TORCHRL, OURS):
        net = make(lib, share_params=share, use_td_params=td, **options)
        for buffer in net.buffers():
            buffer.data.add_(1)
        before = {k: t.clone() for k, t in net.state_dict().items() if not t.is_meta}
        torch.manual_seed(7)
        net.reset_parameters()
        after.append({k: t for k, t in net.state_dict().items() if k in before} | {"next sample": torch.rand(1)})
        assert any(not torch.equal(t, before[k]) for k, t in net.state_dict().items() if k in before)
    assert after[0].keys() == after[1].keys()
    assert [k for k in after[0] if not torch.equal(after[0][k], after[1][k])] == []


def test_a_shared_reset_gives_the_numbers_of_a_construction() -> None:
    net = mlp(OURS, share_params=True)
    built = {k: t.clone() for k, t in net.state_dict().items()}
    torch.manual_seed(0)  # the seed of mlp()
    net.reset_parameters()
    assert all(torch.equal(t, built[k]) for k, t in net.state_dict().items())


class Odd(nn.Module):
    """Its reset is orthogonal, and samples by numpy, which vmap does not map."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.zeros(6, 6))
        self.table = nn.Parameter(torch.zeros(6))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.square)
        with torch.no_grad():
            self.table.copy_(torch.from_numpy(np.random.default_rng().normal(size=6)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.square + self.table


class Truncated(nn.Linear):
    """A reset without a batching rule."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.data.normal_()


@stored
@pytest.mark.parametrize("share", [False, [0, 1, 0]], ids=["independent", "clusters"])
@pytest.mark.parametrize("build", [Odd, lambda: Truncated(6, 6), lambda: nn.GRUCell(6, 6)])
def test_agents_differ_after_a_reset_that_cannot_be_mapped(build: Any, share: Any, td: bool) -> None:
    net = subclass(OURS, build)(share, use_td_params=td)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    net.reset_parameters()
    for name, leaf in net.state_dict().items():
        assert not torch.equal(leaf, before[name])
        assert not torch.equal(leaf[0], leaf[1])
        if name.endswith("square"):
            torch.testing.assert_close(leaf @ leaf.mT, torch.eye(6).expand_as(leaf))


# --- images without a batch ---------------------------------------------------------------------------------

LAYERS: list[Any] = [
    {},
    {
        "norm_class": nn.GroupNorm,
        "norm_kwargs": [{"num_groups": 2, "num_channels": 4}, {"num_groups": 1} | {"num_channels": 3}],
    },
    {"aggregator_class": nn.Flatten, "aggregator_kwargs": {}},
    {"activation_class": nn.Softmax, "activation_kwargs": {"dim": 1}},
    {"aggregator_class": nn.AdaptiveAvgPool2d, "aggregator_kwargs": {"output_size": 1}, "squeeze_output": True},
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", LAYERS, ids=["plain", "group_norm", "flatten", "softmax", "pool"])
def test_images_without_a_batch_are_torchrls_shared_network(options: dict[str, Any], train: bool) -> None:
    x = torch.randn(3, 2, 9, 9)
    theirs, ours = (cnn(lib, share_params=True, **options).train(train) for lib in (TORCHRL, OURS))
    torch.testing.assert_close(ours(x), theirs(x))


@stored
def test_batch_norm_takes_images_without_a_batch_in_training(td: bool) -> None:
    x = torch.randn(3, 2, 17, 17)
    nets = [cnn(OURS, share_params=True, use_td_params=td, **NORMS) for _ in range(2)]
    torch.testing.assert_close(nets[0](x), nets[1](x[None])[0])
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_torchrl_normalises_over_agents_and_we_do_not() -> None:
    """The row "BatchNorm" of "Coming from torchrl": in a shared ConvNet of torchrl the agents are a batch axis."""
    x = torch.randn(5, 3, 2, 17, 17)
    theirs, ours = (cnn(lib, share_params=True, **NORMS) for lib in (TORCHRL, OURS))
    moved = x.clone()
    moved[:, 0] += 1
    assert not torch.allclose(theirs(x)[:, 1:], theirs(moved)[:, 1:])
    torch.testing.assert_close(ours(x)[:, 1:], ours(moved)[:, 1:])


# --- attributes of the one-agent nets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("MLP", {"in_features": 3, "out_features": 2, "depth": 1, "dropout": 0.5, "activation_class": nn.ReLU}),
        ("MLP", {"in_features": 3, "out_features": (2, 1), "num_cells": [4], "activation_kwargs": {}}),
        ("MLP", {"in_features": 3, "out_features": 2, "layer_kwargs": {"bias": False}, "activate_last_layer": True}),
        ("ConvNet", {"in_features": 3, "num_cells": [4], "norm_class": nn.Identity, "norm_kwargs": {}}),
        ("ConvNet", {"in_features": 3, "depth": 2, "num_cells": 4, "aggregator_class": None}),
    ],
)
def test_one_agent_nets_have_torchrls_attributes(kind: str, options: dict[str, Any]) -> None:
    theirs, ours = (getattr(lib, kind)(**options) for lib in (TORCHRL, OURS))
    public = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
    found = {k: getattr(ours, k, "missing") for k in public}
    for both in (public, found):  # each library has its own class
        both["aggregator_class"] = getattr(both.get("aggregator_class"), "__name__", None)
    assert found == public
