"""Initial parameters and buffers: one slot after the other, each from the key and its number alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._init_state import default_state
from tests.builders import SHARINGS, N, generators_untouched, mlp, numbers, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def normed() -> nn.Module:
    """Leaves of several dtypes, and buffers: 0.* is a linear layer, 1.* a BatchNorm."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module.register_parameter("count", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    return module


@pytest.fixture(params=SHARINGS.values(), ids=list(SHARINGS))
def sharing(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_initial_params_are_plain_contiguous_tensors_in_the_order_of_the_module(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    with generators_untouched():
        params = fm.init_params(net, 0)
    assert type(params) is dict
    assert list(params) == NAMES
    for name, leaf in params.items():
        assert type(leaf) is Tensor
        assert leaf.shape == (net.sharing[name].n_slots, *dict(mlp().named_parameters())[name].shape)
        assert leaf.is_contiguous()
        assert leaf.is_leaf
        assert not leaf.requires_grad
        assert leaf.dtype == torch.float64
    storages = [leaf.untyped_storage().data_ptr() for leaf in params.values()]
    assert len(set(storages)) == len(storages)


def test_a_slot_depends_on_the_key_and_on_itself_alone(sharing: Any) -> None:
    many = fm.init_params(fm.network(mlp, 7), 3)
    some = fm.init_params(fm.network(mlp, N, sharing=sharing), 3)
    assert all(torch.equal(some[name], many[name][: len(some[name])]) for name in NAMES)
    other = fm.init_params(fm.network(mlp, 7), 4)
    assert not any(torch.equal(many[name], other[name]) for name in NAMES)
    rows = {tuple(row.flatten().tolist()) for row in (*many["0.weight"], *other["0.weight"])}
    assert len(rows) == 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_slots_of_one_leaf_change_no_number_of_the_others(dtype: torch.dtype) -> None:
    build = lambda: nn.Sequential(nn.Linear(4, 5, dtype=dtype), nn.Tanh(), nn.Linear(5, 2, dtype=dtype))
    many = fm.init_params(fm.network(build, 7), 3)
    for spec in ({"0.*": "shared", "*": "independent"}, {"2.*": "shared", "*": "independent"}):
        some = fm.init_params(fm.network(build, 7, sharing=spec), 3)
        assert same(some, {name: many[name][: len(some[name])] for name in NAMES})


def test_a_batch_of_keys_equals_one_key_after_the_other(sharing: Any) -> None:
    net = fm.network(normed, N, sharing=sharing if not isinstance(sharing, dict) else [0, 0, 1])
    keys = fm.split(fm.key(0), 6)
    for draw in (fm.init_params, fm.init_state):
        each = [draw(net, key) for key in keys]
        got = draw(net, keys.view(2, 3, 2))
        assert list(got) == list(each[0])
        for name, leaf in got.items():
            assert torch.equal(leaf.flatten(0, 1), torch.stack([one[name] for one in each]))
            assert leaf.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_casts_floating_leaves_and_device_places_all(dtype: torch.dtype) -> None:
    net = fm.network(normed, N)
    plain, cast = fm.init_params(net, 0), fm.init_params(net, 0, dtype=dtype, device="cpu")
    assert same(cast, {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain.items()})
    for state in (fm.init_state(net, dtype=dtype), fm.init_state(net, 0, dtype=dtype, device=torch.device("cpu"))):
        assert same(state, {k: v.to(dtype) if v.is_floating_point() else v for k, v in fm.init_state(net).items()})


@pytest.mark.parametrize("agents", [1, N])  # one module is built; several are initialized by replay
@pytest.mark.parametrize("draw", [fm.init_params, fm.init_state])
def test_leaves_are_on_the_given_device_or_on_that_of_the_factory(draw: Any, agents: int) -> None:
    elsewhere = lambda: nn.BatchNorm1d(4, device="meta")
    for build, device, expected in ((normed, None, "cpu"), (normed, "meta", "meta"), (elsewhere, None, "meta")):
        leaves = draw(fm.network(build, agents), 0, device=device)
        assert {leaf.device.type for leaf in leaves.values()} == {expected}


def test_unused_slots_are_initialized_too() -> None:
    spare = fm.init_params(fm.network(mlp, 2, sharing=fm.Sharing([3, 1], 5)), 0)
    assert same(spare, fm.init_params(fm.network(mlp, 5), 0))


def test_initial_buffers_are_those_of_the_module(sharing: Any) -> None:
    net = fm.network(normed, N, sharing=sharing if not isinstance(sharing, dict) else [1, 0, 1])
    state = fm.init_state(net)
    for name, buffer in normed().named_buffers():
        assert state[name].dtype == buffer.dtype
        assert all(torch.equal(row, buffer) for row in state[name])
        assert state[name].is_contiguous()
    state["1.running_mean"] += 1
    assert float(fm.init_state(net)["1.running_mean"].sum()) == 0
    assert fm.init_state(fm.network(mlp, N)) == {}


def test_the_default_state_has_the_device_and_dtype_of_the_params() -> None:
    net = fm.network(normed, N)
    params = fm.init_params(net, 0, dtype=torch.bfloat16, device="meta")
    state = default_state(net, params)
    assert {name: leaf.dtype for name, leaf in state.items()} == {
        "1.running_mean": torch.bfloat16,
        "1.running_var": torch.bfloat16,
        "1.num_batches_tracked": torch.int64,
    }
    assert {leaf.device.type for leaf in state.values()} == {"meta"}
    assert same(default_state(net, {"count": torch.tensor([[1, 2]] * N)}), fm.init_state(net))  # no float among them


class Noisy(nn.Module):
    """A buffer of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(4))


def test_a_random_buffer_needs_a_key() -> None:
    net = fm.network(Noisy, N)
    message = r"^state: the factory samples the buffers \['noise'\]; give fm.init_state\(net, key\), or state= w"
    with pytest.raises(fm.StructureError, match=message):
        fm.init_state(net)
    rows = fm.init_state(net, 0)["noise"]
    assert len({tuple(row.tolist()) for row in rows}) == N


def test_modules_without_leaves_have_empty_params() -> None:
    net = fm.network(nn.ReLU, N)
    assert fm.init_params(net, 0) == {}
    x = numbers(2, N, 4)
    assert torch.equal(fm.apply(net, {}, x), x.relu())


def _changing(first: nn.Module, then: nn.Module) -> Callable[[], nn.Module]:
    made: list[nn.Module] = [first]
    return lambda: made.pop() if made else then


@pytest.mark.parametrize(
    ("then", "message"),
    [(nn.Linear(5, 2), r"'weight' was \[2, 4\] at first, now \[2, 5\]"), (nn.ReLU(), "now no such leaf")],
)
def test_a_factory_that_builds_another_module_later_raises(then: nn.Module, message: str) -> None:
    net = fm.network(_changing(nn.Linear(4, 2), then), 1)
    with pytest.raises(fm.StructureError, match=message):
        fm.init_params(net, 0)


def test_wrong_keys_raise() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=r"at least one key, got an empty batch of shape \[0, 2\]"):
        fm.init_params(net, torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(fm.StructureError, match=r"shape \[\*P, 2\], got torch.int64 \[3\]"):
        fm.init_params(net, torch.arange(3))


def test_init_params_inside_vmap_raises_and_names_batches_of_keys() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=r"give the batch of keys itself: fm.init_params\(net, fm.split"):
        torch.func.vmap(lambda key: fm.init_params(net, key))(fm.split(0, 6))
    assert all(len(leaf) == 6 for leaf in fm.init_params(net, fm.split(0, 6)).values())
