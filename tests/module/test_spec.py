"""What a factory or a module may be: ties, parametrizations, lazy layers, odd attributes, pickling, purity."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from tests.builders import FLAT_SHARINGS, N, copied, double, looped, numbers, same

Build = Callable[[], nn.Module]
PARAMETRIZATIONS = nn.utils.parametrizations


class Writes(nn.Module):
    """A linear layer whose forward a test supplies."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.function = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class TiedWeights(nn.Module):
    """Encoder and decoder share one weight; the decoder stands first in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class TiedModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.steps = nn.ModuleList([norm, nn.Linear(4, 4, dtype=torch.float64), norm])

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Bare(nn.Module):
    """Parameters without any reset, in every container torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.several = nn.ParameterList([torch.randn(4, dtype=torch.float64) for _ in range(2)])
        self.named = nn.ParameterDict({"a[0]": torch.randn(4, dtype=torch.float64), "a0": torch.ones(4)})
        self.register_parameter("absent", None)
        self.frozen = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.several[0] * self.several[1] + self.named["a[0]"] * self.named["a0"] + self.frozen


@pytest.mark.parametrize("sharing", FLAT_SHARINGS.values(), ids=FLAT_SHARINGS)
@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize(
    "build",
    [
        double(TiedWeights),
        TiedModules,
        Bare,
        partial(nn.Linear, 4, 3, bias=False, dtype=torch.float64),
        double(lambda: PARAMETRIZATIONS.weight_norm(nn.Linear(4, 4))),
        double(lambda: PARAMETRIZATIONS.spectral_norm(nn.Linear(4, 4))),
        double(lambda: PARAMETRIZATIONS.orthogonal(nn.Linear(4, 4))),
        double(lambda: nn.utils.spectral_norm(nn.Linear(4, 4))),
        double(lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(), nn.Identity())),
    ],
    ids=["tied", "tied modules", "bare", "partial", "weight_norm", "spectral_norm", "orthogonal", "old", "empty"],
)
def test_every_kind_of_module_computes_as_its_agents_alone(build: Build, strategy: Any, sharing: Any) -> None:
    net = fm.network(build, N, sharing=sharing, strategy=strategy)
    params, state, x = fm.init_params(net, 0), fm.init_state(net, 0), numbers(5, N, 4)
    got = fm.apply(net, params, x, state=state)
    torch.testing.assert_close(got, looped(net, params, x, state=state), rtol=1e-12, atol=1e-12)


def test_a_tied_weight_is_one_leaf_under_its_first_name_and_stays_tied() -> None:
    net = fm.network(TiedWeights, N)
    params = fm.init_params(net, 0)
    assert list(params) == ["encode.weight", "encode.bias"]
    module = fm.agent_module(net, params, 1)
    assert module.get_parameter("decode.weight") is module.get_parameter("encode.weight")
    x = torch.ones(N, 4)
    for leaf in params.values():
        leaf.requires_grad_()
    fm.apply(net, params, x).sum().backward()
    module(x[1]).sum().backward()
    mine, alone = params["encode.weight"].grad, module.get_parameter("encode.weight").grad
    assert mine is not None
    assert alone is not None
    torch.testing.assert_close(mine[1], alone)
    assert list(fm.stack_agents([TiedWeights(), TiedWeights()])) == ["encode.weight", "encode.bias"]


def test_a_tied_module_is_one_set_of_leaves_and_its_buffers_change_once_a_use() -> None:
    net = fm.network(TiedModules, N, agent_dim=0)
    params = fm.init_params(net, 0)
    assert list(params) == ["steps.0.weight", "steps.0.bias", "steps.1.weight", "steps.1.bias"]
    x = numbers(N, 6, 4)
    _, state = fm.apply(net, params, x, train=True, mutable=True)
    assert state["steps.0.num_batches_tracked"].tolist() == [2] * N
    for i in range(N):
        module = fm.agent_module(net, params, i).train()
        module(x[i])
        torch.testing.assert_close(state["steps.0.running_mean"][i], module.get_buffer("steps.0.running_mean"))


# --- lazy layers ---------------------------------------------------------------------------------------


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))


def test_lazy_layers_get_their_shapes_from_the_example() -> None:
    net = fm.network(lazy, N, example=torch.zeros(1, 4), agent_dim=0)
    assert net.param_shapes["0.weight"] == (N, 5, 4)
    params = fm.init_params(net, 0)
    assert all(bool(leaf.isfinite().all()) for leaf in params.values())
    assert not torch.equal(params["0.weight"][0], params["0.weight"][1])
    assert float(fm.init_state(net)["1.num_batches_tracked"].sum()) == 0
    assert fm.apply(net, params, torch.zeros(N, 6, 4)).shape == (N, 6, 2)


def test_a_lazy_module_that_was_given_stays_lazy() -> None:
    module = nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(2))
    net = fm.network(module, N, example=(torch.zeros(1, 4),))
    assert isinstance(module[0], nn.LazyLinear)
    assert isinstance(next(module.parameters()), nn.UninitializedParameter)
    assert net.param_shapes["1.weight"] == (N, 2, 5)
    with pytest.raises(fm.StructureError, match=r"cannot be copied .* lazy buffers can only come from a fac"):
        fm.network(lazy(), N, example=torch.zeros(1, 4))


def test_lazy_layers_without_shapes_are_named() -> None:
    with pytest.raises(fm.StructureError, match=r"lazy leaves \['0.weight'.* have no shapes yet; give example="):
        fm.network(lazy, N)
    unused = lambda: Writes(lambda self, x: self.linear(x), other=nn.LazyLinear(2))
    with pytest.raises(fm.StructureError, match=r"lazy leaves \['other.weight', 'other.bias'\] got no shapes"):
        fm.network(unused, N, example=torch.zeros(4, dtype=torch.float64))


# --- a module instance ---------------------------------------------------------------------------------


def test_a_module_is_copied_never_touched_and_redrawn() -> None:
    linear, norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    norm.register_buffer("extra", torch.tensor([7.0]))
    module = nn.Sequential(linear, norm, nn.Dropout(0.5))
    module.requires_grad_(False).eval()
    before = copied(module.state_dict())
    net = fm.network(module, N)
    params, state = fm.init_params(net, 0), fm.init_state(net)
    fm.apply(net, params, torch.ones(2, N, 4), train=True, mutable=True, key=0)
    assert same(module.state_dict(), before)
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(part.training for part in module.modules())
    assert not torch.equal(params["0.weight"][0], linear.weight)
    assert state["1.extra"].tolist() == [[7.0]] * N
    with torch.no_grad():
        linear.weight.zero_()
    assert same(fm.init_params(net, 0), params)


def test_a_module_whose_reset_leaves_a_leaf_is_refused_and_the_leaf_named() -> None:
    net: Callable[[], Any] = lambda: fm.network(Bare(), N)
    with pytest.raises(fm.StructureError, match=r"no reset_parameters.. fills \['scale', 'several.0'.*give a factory"):
        net()
    kept = nn.Linear(2, 2)
    kept.register_parameter("frozen", nn.Parameter(torch.tensor([3, 4]), requires_grad=False))
    given = fm.network(kept, N)
    assert fm.init_params(given, 0)["frozen"].tolist() == [[3, 4]] * N


def test_a_module_may_be_given_where_only_parameters_from_elsewhere_are_used() -> None:
    module = nn.Linear(4, 2)
    net = fm.network(module, N, sharing="shared")
    params = fm.stack_agents(module, n_agents=N, sharing="shared")
    x = torch.ones(2, N, 4)
    torch.testing.assert_close(fm.apply(net, params, x), module(x).detach())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, "a function that returns an nn.Module, or a module, got int"),
        (None, "got NoneType"),
        (lambda: torch.relu, "a function that returns an nn.Module, got <built-in"),
        (lambda: nn.Linear, "a function that returns an nn.Module, got <class"),
        (lambda: Writes(Writes.forward, lock=threading.Lock()), "Writes holds what cannot be copied .*_thread.lock"),
        (Writes(Writes.forward, lock=threading.Lock()), "Writes holds what cannot be copied .*_thread.lock"),
        (lambda: Writes(Writes.forward, noise=torch.randn(3)), r"plain tensor attributes \['noise'\] are random"),
        (
            lambda: nn.Sequential(Writes(Writes.forward, noise=torch.randn(3))),
            r"plain tensor attributes \['0.noise'\] are random",
        ),
    ],
    ids=["int", "none", "function", "class", "lock", "lock in a module", "noise", "noise inside"],
)
def test_what_cannot_be_a_network_is_refused(build: Any, message: str) -> None:
    with pytest.raises(fm.StructureError, match=message):
        fm.network(build, N)


def test_a_tensor_computed_from_parameters_in_the_constructor_is_refused() -> None:
    def build() -> nn.Module:
        module = Writes(lambda self, x: x @ self.doubled)
        module.doubled = module.linear.weight * 2  # pyright: ignore
        return module

    with pytest.raises(fm.StructureError, match=r"plain tensor attributes \['doubled'\].*compute them in forward"):
        fm.network(build, N)


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit itself is on its way out
        scripted = torch.jit.script(nn.Linear(4, 2))
    with pytest.raises(fm.StructureError, match="TorchScript"):
        fm.network(lambda: scripted, N)


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.BatchNorm1d])
def test_a_factory_that_returns_one_module_for_ever_is_refused(kind: Any, sharing: Any) -> None:
    module = kind(4, 4) if kind is nn.Linear else kind(4)

    def once() -> Any:
        net = fm.network(lambda: module, N, sharing=sharing)
        fm.init_params(net, 0)

    with pytest.raises(fm.StructureError, match=r"returned the same module twice.*or pass the module itself"):
        once()


# --- plain attributes and buffers ----------------------------------------------------------------------


def _twice(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def test_constant_tensors_hooks_and_odd_attributes_are_kept() -> None:
    def build() -> nn.Module:
        module = Writes(lambda self, x: self.linear(x) * self.constant + len(self.words), constant=torch.arange(4.0))
        module.words = ["a", {"b": (1, None)}]  # pyright: ignore
        module.linear.register_forward_hook(_twice)
        return module.double()

    net = fm.network(build, N)
    params, x = fm.init_params(net, 0), numbers(2, N, 4)
    expected = looped(net, params, x)
    torch.testing.assert_close(fm.apply(net, params, x), expected, rtol=1e-12, atol=1e-12)
    weight, bias = params["linear.weight"], params["linear.bias"]
    by_hand = torch.stack([(x[:, i] @ weight[i].T + bias[i]) * 2 * torch.arange(4.0) + 2 for i in range(N)], 1)
    torch.testing.assert_close(expected, by_hand, rtol=1e-12, atol=1e-12)


class Noisy(nn.Module):
    """A random buffer that is not saved, a constant one, and a tied one."""

    noise: Tensor
    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(4, dtype=torch.float64), persistent=False)
        self.register_buffer("again", self.noise)
        self.register_buffer("nan", torch.tensor([float("nan")]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.noise + self.again


def test_random_buffers_need_a_key_and_constant_ones_do_not() -> None:
    net = fm.network(Noisy, N, sharing=[0, 0, 1])
    message = r"samples the buffers \['noise'\]; give fm.init_state\(net, key\), or state="
    x = numbers(2, N, 4)
    calls: list[Callable[[], Any]] = [
        lambda: fm.init_state(net),
        lambda: fm.apply(net, {}, x),
        lambda: fm.agent_module(net, {}, 0),
    ]
    for call in calls:
        with pytest.raises(fm.StructureError, match=message):
            call()
    state = fm.init_state(net, 5)
    assert list(state) == ["noise", "nan"]
    assert not torch.equal(state["noise"][0], state["noise"][1])
    assert same(state, fm.init_state(net, fm.key(5)))
    expected = torch.stack([x[:, i] * state["noise"][s] + state["noise"][s] for i, s in enumerate([0, 0, 1])], 1)
    assert torch.equal(fm.apply(net, {}, x, state=state), expected)


def test_plain_tensors_stay_outside_of_a_transform_in_which_the_first_call_runs() -> None:
    """Each thread copies the module at its first call, and torch wraps what is made inside of ``torch.func.grad``."""
    build = partial(Writes, lambda m, x: m.linear(x) * m.mask, mask=torch.tensor([1.0, 0, 2, 1]))
    net = fm.network(build, N, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    torch.func.grad(lambda given: fm.apply(net, given, x).sum())(params)
    for train in (False, True):
        mask: Any = net.module_spec.stateless.module(train).module.mask
        assert not torch._C._functorch.is_functorch_wrapped_tensor(mask)  # pyright: ignore
