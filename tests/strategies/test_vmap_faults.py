"""What vmap computes differently from the loop is detected: "auto" uses the loop, and "vmap" raises with the reason."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import functional_marl as fm
from functional_marl._strategies import vmap_faults as faults
from tests.builders import N, numbers

Function = Callable[[Any, Tensor], Any]


class Does(nn.Module):
    """A linear layer, and a function of the module and the input."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), nn.Parameter(torch.randn(6, 4))
        self.function = function
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def half_gradient(m: Any, x: Tensor) -> Tensor:
    """MuZero's: between the steps of its dynamics a gradient counts half."""
    h = m.linear(x)
    if h.requires_grad:
        h.register_hook(lambda grad: grad / 2)
    return m.linear(h)


def places(x: Tensor) -> Tensor:
    return x.abs().mul(100).long() % 6


FAULTS: dict[str, tuple[Function, str]] = {
    "half gradient": (half_gradient, "requires_grad"),
    "is_leaf": (lambda m, x: m.linear(x) * (1.0 if x.is_leaf else 2.0), "is_leaf"),
    "grad_fn": (
        lambda m, x: m.linear(h := torch.tanh(m.table[0] * x)) * (1.0 if h.grad_fn is None else 2.0),
        "grad_fn",
    ),
    "padding": (lambda m, x: F.embedding(places(x), m.table, padding_idx=2), "embedding with padding_idx"),
    "frequency": (lambda m, x: F.embedding(places(x), m.table, scale_grad_by_freq=True), "embedding with padding_idx"),
    "select_scatter": (lambda m, x: m.linear(x).select_scatter(x[0], 0, 1), "select_scatter"),
    "index_fill": (lambda m, x: m.table.index_fill(0, places(x[:, 0]), x[0, 0]), "index_fill"),
    "roll": (lambda m, x: m.linear(x) * x.sum().roll(1), "roll of a tensor without dimensions"),
    "aten": (lambda m, x: m.linear(x) * torch.ops.aten.roll.default(x.sum(), [1]), "roll of a tensor"),
    "cumprod_": (lambda m, x: m.linear(x).cumprod_(0), "cumprod_ wrongly: raises in backward"),
    "hypot_": (lambda m, x: m.linear(x).hypot_(x), "hypot_"),
    "pow_": (lambda m, x: m.linear(x).abs().add(1).pow_(x), "pow_"),
    "**=": (lambda m, x: m.linear(x).abs().add(1).__ipow__(x), "pow_"),
    "index_reduce_": (lambda m, x: m.linear(x).index_reduce_(0, places(x[:2, 0]) % 3, x[:2], "prod"), "index_reduce_"),
}


def gradients(net: fm.Network, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    x = x.clone().requires_grad_()
    y = fm.apply(net, leaves, x)
    slopes = torch.autograd.grad(y.square().sum(), [x, *leaves.values()], allow_unused=True, materialize_grads=True)
    return y, *slopes


pytestmark = [
    pytest.mark.filterwarnings("ignore:index_reduce:UserWarning"),  # torch: it is in beta
    pytest.mark.filterwarnings("error::functional_marl.StrategyWarning"),
]


@pytest.mark.parametrize("sharing", ["independent", "shared", [1, 0, 1]], ids=str)
@pytest.mark.parametrize("name", FAULTS)
def test_auto_takes_the_loop_where_vmap_is_wrong(name: str, sharing: Any) -> None:
    function, _ = FAULTS[name]
    net = fm.network(lambda: Does(function), N, sharing=sharing)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = gradients(net.replace(strategy="loop"), params, x)
    with _loop_or_vmap():
        for _ in range(3):
            torch.testing.assert_close(gradients(net, params, x), expected, rtol=1e-10, atol=1e-10)


@contextlib.contextmanager
def _loop_or_vmap() -> Generator[None]:
    with warnings.catch_warnings():  # where nothing is wrong for a sharing, no warning is right
        warnings.simplefilter("ignore", fm.StrategyWarning)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_auto_says_once_why_it_takes_the_loop(name: str) -> None:
    function, what = FAULTS[name]
    net = fm.network(lambda: Does(function), N, sharing={"table": "shared", "*": "independent"})
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with pytest.warns(fm.StrategyWarning, match=what) as found:
        fm.apply(net, params, x)
    assert [w.filename for w in found if w.category is fm.StrategyWarning] == [__file__]
    for _ in range(2):  # a second warning would be an error
        fm.apply(net, params, x)
        fm.apply(net, params, x[:4])
    assert what in fm.tabulate(net)


@pytest.mark.parametrize("name", FAULTS)
def test_vmap_raises_and_names_what_it_met(name: str) -> None:
    function, what = FAULTS[name]
    net = fm.network(
        lambda: Does(lambda m, x: function(m, x + torch.rand_like(x))),
        N,
        sharing={"table": "shared", "*": "independent"},
        strategy="vmap",
    )
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    before = torch.get_rng_state()
    for _ in range(3):
        with pytest.raises(fm.StructureError, match=rf'strategy="vmap": .*{what.split()[0]}.*; use "auto"'):
            fm.apply(net, params, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fault_that_the_module_catches_is_a_fault() -> None:
    def tries(m: Any, x: Tensor) -> Tensor:
        h = m.linear(x)
        with contextlib.suppress(RuntimeError):
            h.register_hook(lambda grad: grad / 2)
        return h

    net = fm.network(lambda: Does(tries), N, strategy="vmap")
    with pytest.raises(fm.StructureError, match="register_hook"):
        fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4))


def test_a_fault_of_one_shape_is_seen_at_any_call() -> None:
    """The fast path watches each kind of input once too."""
    net = fm.network(lambda: Does(lambda m, x: half_gradient(m, x) if len(x) == 2 else m.linear(x)), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    for _ in range(2):
        fm.apply(net, params, x)
    assert net.evaluators[False].fast_path(params, x) is not None
    assert net.evaluators[False].fast_path(params, x[:2]) is None
    expected = gradients(net.replace(strategy="loop"), params, x[:2])
    with pytest.warns(fm.StrategyWarning, match="requires_grad"):
        found = gradients(net, params, x[:2])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_gradient_inside_a_forward_is_mapped() -> None:
    """torch.func.grad asks autograd on its own behalf, and vmap goes through it."""
    energy = lambda m, x: torch.func.grad(lambda x: m.linear(x).tanh().sum())(x)
    net = fm.network(lambda: Does(energy), N, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = gradients(net.replace(strategy="loop"), params, x)
    for _ in range(2):
        torch.testing.assert_close(gradients(net, params, x), expected, rtol=1e-10, atol=1e-10)


HARMLESS: dict[str, Function] = {
    "embedding": lambda m, x: F.embedding(places(x), m.table),
    "roll": lambda m, x: m.linear(x).roll(1, 0),
    "clamp": lambda m, x: m.linear(x).clamp(-1, 1),
    "bounds": lambda m, x: m.linear(x).clamp(m.table[0], m.table[1].abs() + 2),
    "cumprod": lambda m, x: m.linear(x).cumprod(0),
    "pow": lambda m, x: m.linear(x) ** 2,
    "write": lambda m, x: m.linear(x).mul_(2).add_(1),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, m.table, m.linear(m.table)),
    "norm": lambda m, x: F.layer_norm(m.linear(x), (4,)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_vmap_computes_rightly_stays_on_vmap(name: str) -> None:
    net = fm.network(lambda: Does(HARMLESS[name]), N, sharing={"table": "shared", "*": "independent"}, strategy="vmap")
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = gradients(net.replace(strategy="loop"), params, x)
    for _ in range(2):
        torch.testing.assert_close(gradients(net, params, x), expected, rtol=1e-10, atol=1e-10)


# --- hooks ---------------------------------------------------------------------------------------------


def hooked(kind: str) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    getattr(module[1], kind)(lambda m, *grads: (grads[-1][0] / 2,))
    return module


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_a_part_run(kind: str) -> None:
    net = fm.network(lambda: hooked(kind), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    x.requires_grad_()
    expected = [torch.autograd.grad(hooked_output(kind, params, x, i).square().sum(), x)[0] for i in range(N)]
    with pytest.warns(fm.StrategyWarning, match=r"leaves out the backward hooks of Tanh \('1'\)"):
        y = fm.apply(net, params, x)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(slope, torch.stack(expected).sum(0), rtol=1e-10, atol=1e-10)
    with pytest.raises(fm.StructureError, match="backward hooks of Tanh"):
        fm.apply(net.replace(strategy="vmap"), params, x)


def hooked_output(kind: str, params: dict[str, Tensor], x: Tensor, agent: int) -> Tensor:
    module = hooked(kind)
    module.load_state_dict({k: v[agent] for k, v in params.items()})
    return module(x[:, agent])


def test_a_hook_of_all_modules_runs() -> None:
    net = fm.network(lambda: Does(lambda m, x: torch.tanh(m.linear(x))), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4).requires_grad_()
    for _ in range(2):
        fm.apply(net, params, x)  # by vmap
    seen: list[str] = []
    handle = nn.modules.module.register_module_full_backward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        with pytest.warns(fm.StrategyWarning, match="global backward hooks"):
            fm.apply(net, params, x).sum().backward()
        with pytest.raises(fm.StructureError, match="global backward hooks"):
            fm.apply(net.replace(strategy="vmap"), params, x)
    finally:
        handle.remove()
    assert seen.count("Linear") == N
    assert net.evaluators[False].fast_path(params, x) is not None


# --- tracers -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["half gradient", "padding", "cumprod_", "aten"])
def test_a_compiled_call_that_is_the_first_takes_the_loop(name: str) -> None:
    """A trace cannot fall back to another strategy, so vmap is tried before it."""
    net = fm.network(lambda: Does(FAULTS[name][0]), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    expected = gradients(net.replace(strategy="loop"), params, x)
    compiled = torch.compile(lambda p, x: fm.apply(net, p, x), fullgraph=True, backend="aot_eager")
    before = torch.get_rng_state()
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    x.requires_grad_()
    with pytest.warns(fm.StrategyWarning, match=FAULTS[name][1]):
        y = compiled(leaves, x)
    slopes = torch.autograd.grad(y.square().sum(), [x, *leaves.values()], allow_unused=True, materialize_grads=True)
    torch.testing.assert_close((y, *slopes), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_call_under_vmap_names_what_it_met() -> None:
    net = fm.network(lambda: Does(FAULTS["cumprod_"][0]), N, strategy="vmap")
    compiled = torch.compile(lambda p, x: fm.apply(net, p, x), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"computes cumprod_ wrongly.*use \\?\"auto\\?\""):
        compiled(fm.init_params(net, 0), numbers(5, N, 4))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_trees_and_constants_are_tried_ahead_of_a_graph(dynamic: bool) -> None:
    class Sums(nn.Module):
        def forward(self, x: dict[str, Tensor], scale: float, flag: bool) -> Tensor:
            return (x["a"] + x["b"][0]).cumprod_(0) * scale if flag else x["a"] * scale

    net = fm.network(Sums, N)
    compiled = torch.compile(
        lambda x, flag: fm.apply(net, {}, x, 2.5, flag), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    x: dict[str, Any] = {"a": numbers(5, N, 4), "b": (numbers(5, N, 4),)}
    torch.testing.assert_close(compiled(x, False), fm.apply(net.replace(strategy="loop"), {}, x, 2.5, False))
    if dynamic:  # nothing is found out ahead, but by an eager call
        with pytest.warns(fm.StrategyWarning, match="cumprod_"):
            fm.apply(net, {}, x, 2.5, True)
        y = compiled(x, True)
    else:
        with pytest.warns(fm.StrategyWarning, match="cumprod_"):
            y = compiled(x, True)
    torch.testing.assert_close(y, fm.apply(net.replace(strategy="loop"), {}, x, 2.5, True))


def test_a_proxy_trace_takes_the_loop() -> None:
    net = fm.network(lambda: Does(FAULTS["padding"][0]), N)
    params, x = fm.init_params(net, 0), numbers(5, N, 4)
    with pytest.warns(fm.StrategyWarning, match="embedding"):
        traced = make_fx(lambda p, x: fm.apply(net, p, x))(params, x)
    torch.testing.assert_close(traced(params, x), fm.apply(net.replace(strategy="loop"), params, x))


# --- the table -----------------------------------------------------------------------------------------


def test_the_table_of_a_version_is_the_newest_that_is_not_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vmap_fault_tables"
    folder.mkdir()
    for version in ("2.9", "2.13", "2.20"):
        (folder / f"{version}.tsv").write_text(f"# torch {version}\nroll\tnumber\t{version}\n")
    monkeypatch.setattr(faults, "__file__", str(tmp_path / "faults.py"))
    for version, taken in (
        ("2.9.1", "2.9"),
        ("2.12.0+cpu", "2.9"),
        ("2.15.0", "2.13"),
        ("3.0", "2.20"),
        ("2.8.0", "2.9"),
    ):
        monkeypatch.setattr(torch, "__version__", version)
        faults.table.cache_clear()
        assert faults.table() == {"roll": (("number", taken),)}
    faults.table.cache_clear()


def test_the_table_is_sorted_and_well_formed() -> None:
    for path in (Path(faults.__file__).parent / "vmap_fault_tables").glob("*.tsv"):
        comment, *lines = path.read_text().splitlines()
        assert comment.startswith(f"# torch {path.stem}")
        assert lines == sorted(set(lines))
        assert all(len(line.split("\t")) == 3 for line in lines)
        assert path.stem == ".".join(map(str, faults._version(path.stem)))


def test_situations() -> None:
    x, i = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    found: list[set[str]] = []

    def one(x: Tensor) -> Tensor:
        level = torch._C._functorch.maybe_current_level()  # pyright: ignore
        for args, kwargs in (
            ((x, x[0].long()), {}),
            ((x, i[0]), {}),
            ((i, x), {}),
            (([i, x], 0), {}),
            ((x, None), {"k": 0, "no": None}),
            ((), {}),
        ):
            found.append(set(faults.situations(args, kwargs, level)))
        torch.vmap(lambda y: found.append(set(faults.situations((i, x, y), {}, level))) or y)(i)
        return x

    torch.vmap(one)(x)
    assert found == [
        {"always", "number", "mixed"},
        {"always", "mixed"},
        {"always", "whole", "integers", "mixed"},
        {"always", "whole", "integers", "mixed", "positional"},
        {"always", "k"},
        {"always"},
        {"always", "whole", "integers", "mixed"},
    ]
    assert faults.holds("number+mixed", found[0])
    assert not faults.holds("number+whole", found[0])
    assert faults.holds("no,k", found[4])
    assert not faults.holds("no,other", found[4])


def test_a_fault_pickles() -> None:
    fault = faults.VmapFault("it is wrong")
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault) == "it is wrong"
