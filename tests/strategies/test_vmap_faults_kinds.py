"""vmap is watched once a kind of call: what makes another kind, and what is no fault."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm


class Branching(nn.Module):
    """Does what vmap computes wrongly only where a keyword is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, sound: Tensor | None = None, faulty: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return h * sound if sound is not None else torch.select_scatter(h, (h * faulty)[..., 0], -1, 0)


def test_another_keyword_is_another_kind_of_call() -> None:
    net = fm.network(Branching, 3)
    x = torch.linspace(-1, 1, 60).view(5, 3, 4)
    params = fm.init_params(net, 0)
    fm.apply(net, params, x, kwargs={"sound": x})

    def slope(net: fm.Network) -> dict[str, Tensor]:
        return torch.func.grad(lambda p: fm.apply(net, p, x, kwargs={"faulty": x}).square().sum())(params)

    with pytest.warns(fm.StrategyWarning, match="select_scatter"):
        found = slope(net)
    torch.testing.assert_close(found, slope(net.replace(strategy="loop")))


class Categorical(nn.Module):
    """A distributional head: the mean of a categorical over fixed returns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 11)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x).softmax(-1) * torch.linspace(-1, 1, 11)).sum(-1, keepdim=True)


def test_an_operation_without_mapped_tensors_is_no_fault() -> None:
    net = fm.network(Categorical, 3)
    x = torch.linspace(-1, 1, 60).view(5, 3, 4)
    params = fm.init_params(net, 0)
    torch.testing.assert_close(fm.apply(net, params, x), fm.apply(net.replace(strategy="loop"), params, x))
    assert "vmap (no plan" in fm.tabulate(net)
