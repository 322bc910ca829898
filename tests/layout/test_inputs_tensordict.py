"""TensorDicts as inputs and outputs: each agent sees its part, with the batch size without the agent axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import TensorDictModule  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import N, looped, numbers

B = 4


class OnTensorDict(nn.Module):
    """Calls a function of a linear layer and the TensorDict."""

    def __init__(self, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, dtype=torch.float64)
        self.function = function

    def forward(self, td: Any) -> Any:
        return self.function(self.linear, td)


def linear() -> nn.Module:
    return nn.Linear(2, 2, dtype=torch.float64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("batch", "seen"), [([B, N], [B]), ([B], []), ([], [])], ids=["with agents", "without", "no batch"]
)
def test_an_agent_sees_a_tensordict_without_the_agent_axis(batch: Any, seen: Any, strategy: Any) -> None:
    shapes: list[Any] = []

    def function(layer: nn.Module, td: Any) -> Any:
        shapes.append((type(td), td.batch_size, td["obs"].shape, td["nested", "flag"].shape))
        return layer(td["obs"]) * td["nested", "flag"]

    td = TensorDict({"obs": numbers(B, N, 2), "nested": {"flag": numbers(B, N, 1, seed=1)}}, batch)
    net = fm.network(lambda: OnTensorDict(function), N, strategy=strategy)
    params = fm.init_params(net, 0)
    got = fm.apply(net, params, td)
    assert set(shapes) == {(TensorDict, torch.Size(seen), (B, 2), (B, 1))}
    plain = fm.network(linear, N)
    weights = {name.removeprefix("linear."): leaf for name, leaf in params.items()}
    close(got, looped(plain, weights, td["obs"]) * td["nested", "flag"])


def test_a_tensordict_module_computes_for_every_agent(strategy: Any) -> None:
    build = lambda: TensorDictModule(linear(), in_keys=["obs"], out_keys=["action"])
    net = fm.network(build, N, strategy=strategy)
    params = fm.init_params(net, 0)
    assert list(params) == ["module.weight", "module.bias"]
    td = TensorDict({"obs": numbers(B, N, 2), "text": "as it is"}, [B, N])
    got = fm.apply(net, params, td)
    assert type(got) is TensorDict
    assert got.batch_size == (B, N)
    assert sorted(got.keys()) == ["action", "obs", "text"]
    assert got["text"] == "as it is"
    assert sorted(td.keys()) == ["obs", "text"]
    plain = fm.network(linear, N)
    weights = {name.removeprefix("module."): leaf for name, leaf in params.items()}
    close(got["action"], looped(plain, weights, td["obs"]))
    assert torch.equal(got["obs"], td["obs"])


@pytest.mark.parametrize("out", [None, 0, 1, -2])
def test_tensordict_outputs_have_the_agents_among_their_batch_dims(out: Any, strategy: Any) -> None:
    def function(layer: nn.Module, td: Any) -> Any:
        return TensorDict({"y": layer(td["obs"]), "z": {"sum": td["obs"].sum(-1, True)}}, td.batch_size)

    net = fm.network(lambda: OnTensorDict(function), N, strategy=strategy, out_agent_dim=out)
    td = TensorDict({"obs": numbers(B, N, 2)}, [B, N])
    got = fm.apply(net, fm.init_params(net, 0), td)
    dim = 1 if out is None else out
    assert got.batch_size == ((N, B) if out == 0 else (B, N))
    assert got["z"].batch_size == got.batch_size
    assert torch.equal(got["z", "sum"], torch.stack([td["obs"][:, i].sum(-1, True) for i in range(N)], dim))


def test_lazy_stacks_and_text_are_inputs_too(strategy: Any) -> None:
    each = [TensorDict({"obs": numbers(B, 2, seed=i)}, [B]) for i in range(N)]
    stacked: Any = LazyStackedTensorDict.lazy_stack(each, 1)
    net = fm.network(lambda: OnTensorDict(lambda layer, td: layer(td["obs"])), N, strategy=strategy)
    params = fm.init_params(net, 0)
    dense = TensorDict({"obs": torch.stack([td["obs"] for td in each], 1), "name": "text"}, [B, N])
    assert torch.equal(fm.apply(net, params, stacked), fm.apply(net, params, dense))


def test_dicts_and_tensordicts_mix_in_one_call(strategy: Any) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, td: Any, extra: dict[str, Tensor]) -> Any:
            return {"td": td, "y": self.linear(td["obs"]) + extra["bias"]}

    net = fm.network(Both, N, strategy=strategy, agent_dim=(1, None))
    params = fm.init_params(net, 0)
    td, bias = TensorDict({"obs": numbers(B, N, 2)}, [B, N]), numbers(B, 2, seed=3)
    got = fm.apply(net, params, td, {"bias": bias})
    assert got["td"].batch_size == (B, N)
    weights = {name.removeprefix("linear."): leaf for name, leaf in params.items()}
    close(got["y"], looped(fm.network(linear, N), weights, td["obs"]) + bias[:, None])


def test_a_centralized_network_takes_a_tensordict(strategy: Any) -> None:
    net = fm.network(
        lambda: OnTensorDict(lambda layer, td: layer(td["obs"][..., :2]) + len(td.batch_size)),
        N,
        strategy=strategy,
        centralized=True,
    )
    params, x = fm.init_params(net, 0), numbers(B, N, 2)
    got = fm.apply(net, params, TensorDict({"obs": x}, [B, N]))
    weight, bias = params["linear.weight"], params["linear.bias"]
    first = x.reshape(B, -1)[:, :2]
    close(got, torch.stack([first @ weight[i].T + bias[i] + 1 for i in range(N)], 1))
