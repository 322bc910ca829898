"""Params to TensorDicts and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import SHARINGS, N, copied, mlp, numbers, own, same


@pytest.fixture(params=SHARINGS.values(), ids=list(SHARINGS))
def sharing(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_params_convert_to_nested_tensordicts_and_back(sharing: Any) -> None:
    from tensordict import TensorDict, TensorDictParams

    net = fm.network(mlp, N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    td = fm.to_tensordict(params)
    assert td["0", "weight"] is params["0.weight"]
    sizes = {leaf.shape[0] for leaf in params.values()}
    assert td.batch_size == (torch.Size(sizes) if len(sizes) == 1 else torch.Size([]))
    back = fm.from_tensordict(td)
    assert back.keys() == params.keys()
    assert all(back[name] is params[name] for name in params)
    as_module: Any = TensorDictParams(fm.to_tensordict(copied(params)), no_convert=True)
    for given in (td, as_module, TensorDict(params)):
        assert torch.equal(fm.apply(net, given, x), fm.apply(net, params, x))
        assert same(fm.agent_params(net, given, 1), own(net, params, 1))


def test_other_types_raise() -> None:
    with pytest.raises(fm.StructureError, match="td: expected a TensorDict, got dict"):
        fm.from_tensordict({"a": 1})
    with pytest.raises(fm.StructureError, match=r"expected a dict of dotted names to tensors .* got Linear"):
        fm.to_tensordict(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    assert fm.from_tensordict(fm.to_tensordict({})) == {}
