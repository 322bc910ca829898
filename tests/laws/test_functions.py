"""Pure functions of numpy and JAX arrays as modules: the same numbers, the same gradients."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from functional_marl.laws._functions import FunctionModule, function_module
from functional_marl.laws._subject import CheckError

RNG = np.random.default_rng(0)
DENSE = {
    "dense": {"kernel": RNG.normal(size=(6, 5)), "bias": RNG.normal(size=5)},
    "out": [RNG.normal(size=(5, 2)), 3],
}
X = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mlp(params: Any, x: Any) -> Any:
    """One agent's network, in numpy."""
    hidden = np.maximum(x @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
    return hidden @ params["out"][0]


class Frozen(Mapping[str, Any]):
    """A mapping that is no dict, as flax's FrozenDict."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __iter__(self) -> Any:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Layer(NamedTuple):
    w: Any
    b: Any = None


def named(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in module.named_parameters()}


# --- numpy ------------------------------------------------------------------------------------------------


def test_a_function_of_numpy() -> None:
    module = function_module(mlp, DENSE)
    assert module.kind == "numpy"
    assert module.float64
    assert named(module) == {"dense.kernel": [6, 5], "dense.bias": [5], "out.0": [5, 2]}
    y = module(X)
    for _ in range(2):
        assert torch.equal(module(X), y)
        assert not y.requires_grad
        np.testing.assert_array_equal(y.numpy(), mlp(DENSE, X.numpy()))
    with torch.no_grad():
        assert torch.equal(module(X), y)


def test_it_computes_with_its_own_parameters() -> None:
    module = function_module(mlp, DENSE)
    kernel = module.get_parameter("out.0")
    with torch.no_grad():
        kernel.mul_(2)
    np.testing.assert_allclose(module(X).numpy(), 2 * mlp(DENSE, X.numpy()))
    other = functional_call(module, {"out.0": torch.zeros_like(kernel)}, (X,))
    assert not other.any()


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (np.ones(2), ["params"]),
        ([np.ones(2), (np.ones(2),)], ["0", "1.0"]),
        (Layer(np.ones(2)), ["w"]),
        (Frozen({"a": {"b": np.ones(2)}}), ["a.b"]),
        ({"linear/~/w": np.ones(2)}, ["linear/~/w"]),
        ({"a.b": np.ones(2), "a": {"c": np.ones(2), "b": np.ones(2)}}, ["a.b", "a.c", "a.b_"]),
        ({"train": {"float": np.ones(2)}, "type": np.ones(2)}, ["train_.float_", "type_"]),
        ({"": np.ones(2)}, ["_"]),
        ({0: np.float32(2)}, ["0"]),
    ],
)
def test_names(params: Any, names: list[str]) -> None:
    module = function_module(lambda p, x: (seen.append(p), x)[1], params)
    seen: list[Any] = []
    module(X)
    assert sorted(named(module)) == sorted(names)
    assert type(seen[0]) is type(params) or isinstance(params, np.ndarray)
    for _, leaf in module.named_parameters():
        functional_call(module, {name: torch.zeros_like(leaf) for name in names}, (X,))


def test_leaves_that_have_no_derivative() -> None:
    def routed(p: Any, x: Any) -> Any:
        assert p["name"] == "net"
        assert p["act"] is np.tanh
        assert p["none"] is None
        assert p["depth"] == 3
        return p["act"](x @ p["w"][p["route"]]) * p["on"]

    w = RNG.normal(size=(2, 6, 2))
    params = {
        "w": w,
        "route": np.array([0, 1, 1]),
        "on": np.array(True),
        "key": np.array([1, 2], np.uint32),
        "name": "net",
        "act": np.tanh,
        "none": None,
        "depth": 3,
    }
    module = function_module(routed, params)
    assert list(named(module)) == ["w"]
    assert {name: leaf.dtype for name, leaf in module.named_buffers()} == {
        "route": torch.int64,
        "on": torch.bool,
        "key": torch.uint32,
    }
    expected = np.stack([np.tanh(X[:, i].numpy() @ w[slot]) for i, slot in enumerate([0, 1, 1])])
    np.testing.assert_allclose(module(X.transpose(0, 1)).numpy(), expected)


def test_trees_of_inputs_and_outputs() -> None:
    def function(p: Any, obs: Any, scale: Any, *, shift: Any) -> Any:
        assert isinstance(obs["x"], np.ndarray)
        return {"y": obs["x"] * scale + shift, "parts": (obs["x"].sum(), 3, None, "text")}

    y = function_module(function, {})({"x": X}, 2.0, shift=torch.ones(6))
    assert torch.equal(y["y"], X * 2 + 1)
    torch.testing.assert_close(y["parts"][0], X.sum())
    assert torch.equal(y["parts"][1], torch.tensor(3))
    assert y["parts"][2:] == (None, "text")


def test_nothing_of_the_callers_is_shared() -> None:
    w = np.ones((6, 6))
    module = function_module(lambda p, x: (x, p["w"]), {"w": w})
    with torch.no_grad():
        module.get_parameter("w").zero_()
    assert w.all()
    x = X.clone()
    y, found = module(x)
    y.zero_()
    found.add_(1)
    assert torch.equal(x, X)
    assert not module.get_parameter("w").any()


def test_dtypes() -> None:
    module = function_module(lambda p, x: x, {})
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64):
        assert module(torch.zeros(2, dtype=dtype)).dtype is dtype
    assert module(torch.zeros(2, dtype=torch.bfloat16)).dtype is torch.float32  # numpy has none
    assert module(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_apart(copied: Any) -> None:
    module = function_module(mlp, DENSE)
    other: FunctionModule = copied(module)
    with torch.no_grad():
        module.get_parameter("out.0").zero_()
    np.testing.assert_array_equal(other(X).numpy(), mlp(DENSE, X.numpy()))


def test_what_is_no_array() -> None:
    with pytest.raises(CheckError, match=r"\['y'\]: expected an array of numbers, got object"):
        function_module(lambda p, x: {"y": object()}, {})(X)
    with pytest.raises(CheckError, match="output: expected an array of numbers, got <U1"):
        function_module(lambda p, x: np.array(["a"]), {})(X)
    with pytest.raises(CheckError, match="function: expected a function"):
        function_module(DENSE, DENSE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckError, match="kind: expected 'jax', 'numpy' or None, got 'tf'"):
        function_module(mlp, DENSE, kind="tf")  # pyright: ignore[reportArgumentType]


def test_jax_is_not_imported_for_numpy() -> None:
    code = (
        "import sys, torch, numpy as np; from functional_marl.laws._functions import function_module\n"
        "function_module(lambda p, x: x @ p['w'], {'w': np.ones((2, 3), np.float32)})(torch.ones(4, 2))\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(CheckError, match=r"kind='jax': JAX cannot be imported .*kind='numpy'"):
        function_module(mlp, DENSE, kind="jax")


# --- JAX --------------------------------------------------------------------------------------------------


@pytest.fixture(name="jax")
def _jax() -> Any:
    return pytest.importorskip("jax", reason="functions of JAX need JAX, which is no dependency of the project")


def dense(p: Any, x: Any) -> Any:
    return (x @ p["kernel"] + p["bias"]).clip(0) @ p["out"]


def dense_params(jax: Any, *slots: int) -> Any:
    shapes = {"kernel": (6, 5), "bias": (5,), "out": (5, 2)}
    keys = jax.random.split(jax.random.PRNGKey(0), len(shapes))
    return {
        name: jax.random.normal(key, (*slots, *shape)) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def shared(jax: Any) -> Any:
    """One network for all agents: x [B, n, F]."""
    return jax.vmap(dense, in_axes=(None, 1), out_axes=1)


def independent(jax: Any) -> Any:
    """A network of each agent: leaves [n, ...]."""
    return jax.vmap(dense, in_axes=(0, 1), out_axes=1)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(("build", "slots"), [(shared, ()), (independent, (3,))])
def test_gradients_are_jaxs(jax: Any, build: Any, slots: tuple[int, ...], jitted: bool) -> None:
    params = dense_params(jax, *slots)
    function = jax.jit(build(jax)) if jitted else build(jax)
    module, x = function_module(function, params), X.float().requires_grad_()
    assert module.kind == "jax"
    assert sorted(named(module)) == ["bias", "kernel", "out"]
    y = module(x)
    assert y.shape == (4, 3, 2)
    assert y.requires_grad
    for i in range(3):  # the loop over agents
        own = {name: leaf[i] if slots else leaf for name, leaf in params.items()}
        np.testing.assert_allclose(y[:, i].detach().numpy(), dense(own, X[:, i].float().numpy()), atol=1e-5)
    (y**2).sum().backward()

    def loss(p: Any, inputs: Any) -> Any:
        return (function(p, inputs) ** 2).sum()

    of_params, of_inputs = jax.grad(loss, (0, 1))(params, X.float().numpy())
    for name, leaf in module.named_parameters():
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), of_params[name], rtol=1e-4, atol=1e-5)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), of_inputs, rtol=1e-4, atol=1e-5)


def test_no_grad_and_repeated_calls(jax: Any) -> None:
    module = function_module(shared(jax), dense_params(jax))
    with torch.no_grad():
        first = module(X)
    assert not first.requires_grad
    assert torch.equal(first, module(X).detach())


def test_an_agents_loss_reaches_its_slot_alone(jax: Any) -> None:
    module = function_module(independent(jax), dense_params(jax, 3))
    module(X.float())[:, 1].sum().backward()
    for leaf in module.parameters():
        assert leaf.grad is not None
        assert [bool(part.any()) for part in leaf.grad] == [False, True, False]


def test_wider_dtypes_are_narrowed_and_gradients_widened(jax: Any) -> None:
    assert not jax.config.jax_enable_x64
    module = function_module(shared(jax), dense_params(jax)).double()
    x = X.clone().requires_grad_()
    y = module(x)
    assert y.dtype is torch.float32
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.float64
    assert all(leaf.grad is not None and leaf.grad.dtype is torch.float64 for leaf in module.parameters())
    assert not jax.config.jax_enable_x64
    assert not module.float64


def test_higher_derivatives(jax: Any) -> None:
    module = function_module(lambda p, x: p["a"] * x**3, {"a": jax.numpy.float32(2)})
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), module.get_parameter("a"))
    assert first.tolist() == [6, 24]
    assert second.tolist() == [12, 24]
    assert third.item() == 6 * 3


def test_torch_func(jax: Any) -> None:
    module = function_module(shared(jax), dense_params(jax))
    params = {name: leaf.detach() for name, leaf in module.named_parameters()}
    x = X.float()

    def loss(leaves: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return (functional_call(module, leaves, (inputs,)) ** 2).sum()

    found = torch.func.grad(loss)(params, x)
    (module(x) ** 2).sum().backward()
    for name, leaf in module.named_parameters():
        torch.testing.assert_close(found[name], leaf.grad)
    jacobian = torch.func.jacrev(lambda inputs: module(inputs))(x)
    assert isinstance(jacobian, Tensor)
    for i in range(3):
        for j in range(3):
            assert bool(jacobian[:, i, :, :, j].any()) == (i == j)
    rows = torch.func.vmap(lambda inputs: module(inputs[None])[0])(x)
    torch.testing.assert_close(rows, module(x))


def test_complex_gradients(jax: Any) -> None:
    def function(xp: Any, w: Any, x: Any) -> Any:
        return xp.abs(w * w * x) ** 2 + (w * x).real + 2 * (w * x).imag

    w = torch.tensor(1.5 - 2j, dtype=torch.complex64, requires_grad=True)
    x = torch.tensor([2.0, -1.0])
    function(torch, w, x).sum().backward()
    module = function_module(lambda p, v: function(jax.numpy, p, v), jax.numpy.asarray(w.detach().numpy()))
    module(x).sum().backward()
    torch.testing.assert_close(module.get_parameter("params").grad, w.grad)


def test_integers_and_keys(jax: Any) -> None:
    def function(p: Any, x: Any, index: Any) -> Any:
        noise = jax.random.normal(p["key"], x.shape) + jax.random.normal(p["raw"], x.shape)
        return {"y": x * p["w"][index] + noise, "index": index + 1, "flag": x > 0}, 2, None

    params = {"key": jax.random.key(1), "raw": jax.random.PRNGKey(2), "w": jax.numpy.arange(3.0), "s": None}
    module, x = function_module(function, params), X[..., 0].float().requires_grad_()
    assert list(named(module)) == ["w"]
    assert {name: leaf.tolist() for name, leaf in module.named_buffers()} == {"raw": [0, 2]}
    index = torch.tensor([0, 2, 1])
    (y, two, none) = module(x, index)
    expected = function(params, X[..., 0].float().numpy(), np.array([0, 2, 1]))[0]
    np.testing.assert_allclose(y["y"].detach().numpy(), expected["y"], atol=1e-6)
    assert y["index"].tolist() == [1, 3, 2]
    assert torch.equal(y["flag"], X[..., 0] > 0)
    assert two.item() == 2
    assert none is None
    assert y["y"].requires_grad
    assert not y["index"].requires_grad
    y["y"].sum().backward()
    torch.testing.assert_close(module.get_parameter("w").grad, X[..., 0].float().sum(0)[torch.tensor([0, 2, 1])])


def test_outputs_are_nobodys_memory(jax: Any) -> None:
    constant = jax.numpy.ones(3)
    module = function_module(lambda p, x: (x, p["w"], constant), {"w": jax.numpy.ones(3)})
    x = torch.ones(64)
    for leaf in module(x):
        leaf.detach().zero_()
    assert x.all()
    assert module.get_parameter("w").all()
    assert constant.all()


@pytest.mark.parametrize(
    "x",
    [X.float()[1:], X.float().transpose(0, 1), X.float()[:1].expand(5, 3, 6), X.float()[:0], X.float()[..., ::2]],
)
def test_inputs_of_any_layout(jax: Any, x: Tensor) -> None:
    assert torch.equal(function_module(lambda p, v: v * 2, {}, kind="jax")(x), x * 2)


def test_the_kind(jax: Any) -> None:
    w, x = np.ones((6, 2), np.float32), X.float()
    found = function_module(lambda p, v: v @ p["w"], {"w": w})
    assert not found(x).requires_grad
    assert found.kind == "numpy"
    found = function_module(lambda p, v: jax.numpy.tanh(v @ p["w"]), {"w": w})
    assert found(x).requires_grad  # an array of JAX came back
    assert found.kind == "jax"
    said = function_module(lambda p, v: jax.numpy.tanh(v @ p["w"]), {"w": w}, kind="numpy")
    torch.testing.assert_close(said(x), found(x).detach())
    assert said.kind == "numpy"
    assert function_module(lambda p, v: v @ p["w"], {"w": w}, kind="jax")(x).requires_grad


def test_copies_of_jitted_functions(jax: Any) -> None:
    module = function_module(jax.jit(shared(jax)), dense_params(jax))
    other = copy.deepcopy(module)
    before = module(X.float()).detach()
    with torch.no_grad():
        module.get_parameter("out").zero_()
    assert torch.equal(other(X.float()), before)


def test_what_is_no_array_of_jax(jax: Any) -> None:
    with pytest.raises(CheckError, match="output: expected arrays, got object; return arrays or numbers"):
        function_module(lambda p, x: object(), {}, kind="jax")(X.float())
