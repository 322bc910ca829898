"""Parameters as values: fresh under a key, one agent's, stacked from agents, shared anew, in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import functional_marl as fm
from functional_marl._init_state import default_state
from tests.builders import SHARINGS, N, Tensors, copied, generators_untouched, mlp, numbers, own, same

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def normed() -> nn.Module:
    """Leaves of several dtypes, and buffers: 0.* is a linear layer, 1.* a BatchNorm."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module.register_parameter("count", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    return module


@pytest.fixture(params=SHARINGS.values(), ids=list(SHARINGS))
def sharing(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- fresh ---------------------------------------------------------------------------------------------


def test_fresh_params_are_plain_contiguous_tensors_in_the_modules_order(sharing: Any) -> None:
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
def test_a_leaf_of_fewer_slots_moves_no_draw_of_the_others(dtype: torch.dtype) -> None:
    build = lambda: nn.Sequential(nn.Linear(4, 5, dtype=dtype), nn.Tanh(), nn.Linear(5, 2, dtype=dtype))
    many = fm.init_params(fm.network(build, 7), 3)
    for spec in ({"0.*": "shared", "*": "independent"}, {"2.*": "shared", "*": "independent"}):
        some = fm.init_params(fm.network(build, 7, sharing=spec), 3)
        assert same(some, {name: many[name][: len(some[name])] for name in NAMES})


def test_a_batch_of_keys_is_one_key_after_the_other(sharing: Any) -> None:
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
def test_dtype_is_that_of_floating_leaves_and_device_is_taken(dtype: torch.dtype) -> None:
    net = fm.network(normed, N)
    plain, cast = fm.init_params(net, 0), fm.init_params(net, 0, dtype=dtype, device="cpu")
    assert same(cast, {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain.items()})
    for state in (fm.init_state(net, dtype=dtype), fm.init_state(net, 0, dtype=dtype, device=torch.device("cpu"))):
        assert same(state, {k: v.to(dtype) if v.is_floating_point() else v for k, v in fm.init_state(net).items()})


@pytest.mark.parametrize("agents", [1, N])  # one module is built, several are drawn in a faster way
@pytest.mark.parametrize("draw", [fm.init_params, fm.init_state])
def test_leaves_are_where_they_are_asked_to_be_and_else_where_the_factory_puts_them(draw: Any, agents: int) -> None:
    elsewhere = lambda: nn.BatchNorm1d(4, device="meta")
    for build, device, expected in ((normed, None, "cpu"), (normed, "meta", "meta"), (elsewhere, None, "meta")):
        leaves = draw(fm.network(build, agents), 0, device=device)
        assert {leaf.device.type for leaf in leaves.values()} == {expected}


def test_unused_slots_are_drawn_too() -> None:
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


def test_a_state_left_out_goes_where_the_params_are_in_their_dtype() -> None:
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
    """A buffer drawn at random."""

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
def test_a_factory_that_changes_its_mind_is_refused(then: nn.Module, message: str) -> None:
    net = fm.network(_changing(nn.Linear(4, 2), then), 1)
    with pytest.raises(fm.StructureError, match=message):
        fm.init_params(net, 0)


def test_keys_that_are_none_are_refused() -> None:
    net = fm.network(mlp, N)
    with pytest.raises(fm.StructureError, match=r"at least one key, got an empty batch of shape \[0, 2\]"):
        fm.init_params(net, torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(fm.StructureError, match=r"shape \[\*P, 2\], got torch.int64 \[3\]"):
        fm.init_params(net, torch.arange(3))


# --- one agent -----------------------------------------------------------------------------------------


def test_one_agents_leaves_are_rows_of_its_slots(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    trees = fm.unstack_agents(net, params)
    assert len(trees) == N
    for i in range(N):
        expected = own(net, params, i)
        for got in (fm.agent_params(net, params, i), fm.agent_params(net, params, i - N), trees[i]):
            assert same(got, expected)
            assert all(got[k].untyped_storage().data_ptr() == params[k].untyped_storage().data_ptr() for k in params)


def test_gradients_go_through_one_agents_leaves() -> None:
    net = fm.network(mlp, N, sharing=[0, 0, 1])
    params = {k: v.requires_grad_() for k, v in fm.init_params(net, 0).items()}
    functional_call(mlp(), fm.agent_params(net, params, 2), (numbers(5, 4),)).sum().backward()
    for leaf in params.values():
        assert leaf.grad is not None
        assert not bool(leaf.grad[0].any())
        assert bool(leaf.grad[1].any())


def test_one_agents_module_is_an_ordinary_one_with_copies(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, 4)
    before = copied(params)
    for i in range(N):
        module = fm.agent_module(net, params, i)
        assert type(module) is nn.Sequential
        assert not module.training
        assert same({k: v.detach() for k, v in module.named_parameters()}, own(net, params, i))
        assert all(type(p) is nn.Parameter and p.requires_grad and p.is_leaf for p in module.parameters())
        assert torch.equal(module(x), functional_call(mlp(), own(net, params, i), (x,)))
        torch.optim.SGD(module.parameters(), 0.1).zero_grad()
        module(x).sum().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
        fresh = mlp()
        fresh.load_state_dict(module.state_dict())
    assert same(params, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_agents_module_has_its_buffers_in_the_dtype_of_its_params(dtype: torch.dtype) -> None:
    net = fm.network(normed, N, sharing=[0, 0, 1])
    params, x = fm.init_params(net, 0, dtype=dtype), numbers(5, 4).to(dtype)
    assert fm.agent_module(net, params, 0)(x).dtype == dtype
    state = fm.init_state(net, dtype=dtype)
    state["1.running_mean"][1] += 3
    module = fm.agent_module(net, params, 2, state)
    assert dict(module.named_buffers())["1.running_mean"].tolist() == [3.0] * 4
    assert dict(module.named_parameters())["count"].tolist() == [1, 2]
    with torch.no_grad():
        module.get_buffer("1.running_mean").zero_()
    assert state["1.running_mean"][1].tolist() == [3.0] * 4


def test_one_agents_module_of_a_centralized_network_takes_the_joint_input() -> None:
    net = fm.network(lambda: nn.Linear(N * 4, 2, dtype=torch.float64), N, centralized=True)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    joint = torch.cat([x[:, i] for i in range(N)], -1)
    expected = torch.stack([fm.agent_module(net, params, i)(joint) for i in range(N)], 1)
    torch.testing.assert_close(fm.apply(net, params, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [fm.agent_params, fm.agent_module])
def test_agents_that_are_none_and_trees_that_do_not_fit_are_refused(function: Any) -> None:
    net = fm.network(mlp, N)
    params = fm.init_params(net, 0)
    for agent in (N, -N - 1):
        with pytest.raises(fm.StructureError, match=f"agent: expected an index below 3, got {agent}"):
            function(net, params, agent)
    with pytest.raises(fm.StructureError, match=r"params\['0.weight'\]: expected \[3, 5, 4\], got \[2, 5, 4\]"):
        function(net, {k: v[:2] for k, v in params.items()}, 0)
    with pytest.raises(fm.StructureError, match=r"expected a dict of dotted names to tensors .* got list"):
        function(net, [params], 0)


def test_all_that_is_wrong_with_params_is_named_at_once() -> None:
    net = fm.network(mlp, N)
    params: dict[str, Any] = {**fm.init_params(net, 0), "3.weight": torch.zeros(3)}
    params["0.bias"] = params["0.bias"][0]
    params["2.bias"] = [0.0]
    del params["2.weight"]
    with pytest.raises(fm.StructureError) as caught:
        fm.unstack_agents(net, params)
    lines = str(caught.value).splitlines()
    assert lines[:4] == [
        "params['2.weight']: missing, expected [3, 2, 5]",
        f"params['3.weight']: not a leaf of this network; its leaves are {NAMES}",
        "params['0.bias']: expected [3, 5], got [5]",
        "params['2.bias']: expected a tensor [3, 2], got list",
    ]
    assert "use fm.init_params, fm.stack_agents (from one-agent trees) or fm.reshare" in lines[4]


# --- parts ---------------------------------------------------------------------------------------------


def test_parts_hold_the_same_tensors_and_combine_again() -> None:
    params = fm.init_params(fm.network(mlp, N), 0)
    parts = fm.partition(params, {"0.*": "frozen", "*.bias": "slow", "*": "trained"})
    assert {label: list(part) for label, part in parts.items()} == {
        "frozen": ["0.weight", "0.bias"],
        "slow": ["2.bias"],
        "trained": ["2.weight"],
    }
    whole = fm.combine(*parts.values())
    assert whole.keys() == params.keys()
    assert all(whole[name] is params[name] for name in params)
    assert fm.combine() == {}


def test_parts_train_apart() -> None:
    net = fm.network(mlp, N)
    parts = fm.partition(fm.init_params(net, 0), {"0.*": "frozen", "*": "trained"})
    x = numbers(5, N, 4)
    loss: Callable[[Tensors], Tensor] = lambda t: fm.apply(net, fm.combine(parts["frozen"], t), x).pow(2).sum()
    grads = torch.func.grad(loss)(parts["trained"])
    assert list(grads) == ["2.weight", "2.bias"]
    assert all(bool(g.any()) for g in grads.values())


def test_parts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(fm.StructureError, match=r"no pattern of \['0.\*'\] matches \['2.w'\]; end with '\*'"):
        fm.partition({"0.w": 1, "2.w": 2}, {"0.*": "a"})
    with pytest.raises(fm.StructureError, match=r"\['a', 'b'\] stand in more than one part"):
        fm.combine({"a": 1, "b": 2, "c": 3}, {"b": 1, "a": 2})


# --- tensordicts ---------------------------------------------------------------------------------------


def test_params_go_to_nested_tensordicts_and_back(sharing: Any) -> None:
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


def test_what_is_no_tensordict_is_refused() -> None:
    with pytest.raises(fm.StructureError, match="td: expected a TensorDict, got dict"):
        fm.from_tensordict({"a": 1})
    with pytest.raises(fm.StructureError, match=r"expected a dict of dotted names to tensors .* got Linear"):
        fm.to_tensordict(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    assert fm.from_tensordict(fm.to_tensordict({})) == {}
