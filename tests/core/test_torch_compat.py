"""Private torch: one module names it, and its public paths give the same numbers as the private ones."""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import functional_marl as fm
from functional_marl import _torch_compat
from functional_marl._randomness.forbid_random_ops import ForbidRandomOps
from tests.builders import N, numbers

PACKAGE = Path(fm.__file__).parent
ROOT = PACKAGE.parent

# --- one module names private torch --------------------------------------------------------------------

# The tables of nn.Module, which many programs read.
TABLES = {
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
}
# Modules of torch that may change without notice, though their names have no underscore.
UNSTABLE = ("torch.fx.experimental", "torch.distributed", "torch.ao")
CODE = {"__code__", "__globals__"}
TENSORDICT = {"_param_td"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(package: Path) -> list[str]:
    """Where a module of the package uses a private name that the package does not define."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    own = {name for path, tree in trees.items() if path.name != "_torch_compat.py" for name in defined(tree)}
    found: list[str] = []
    for path, tree in trees.items():
        if path == package / "_torch_compat.py":
            continue
        for node in ast.walk(tree):
            for name in foreign(node, own):
                if path == package / "_module" / "code_reading.py" and name.endswith((".__code__", ".__globals__")):
                    continue  # it reads the code of users' functions
                found.append(f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)} {name}")
    return found


def defined(tree: ast.AST) -> Iterator[str]:
    """Names of the functions, classes, variables and attributes of ``self`` that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def foreign(node: ast.AST, own: set[str]) -> Iterator[str]:
    """Names of torch's private parts in this node; also in strings, for ``getattr`` and the like."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        base = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        for target in (f"{base}.{alias.name}".strip(".") for alias in node.names):
            if target.split(".")[0] == "torch" and (
                target.startswith(UNSTABLE) or any(map(is_private, target.split(".")))
            ):
                yield target
    elif isinstance(node, ast.Attribute):
        whole = ast.unparse(node)
        torch_s = whole.startswith(("torch.", "nn.", "F.")) and not whole.startswith("torch.ops.aten.")
        unknown = is_private(node.attr) and node.attr not in own | TABLES | TENSORDICT
        if (
            node.attr in CODE
            or (unknown and not whole.startswith("torch.ops.aten."))
            or (torch_s and is_private(node.attr))
        ):
            yield whole
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
        if node.value.startswith(("_dynamo_", "_functorch")) or node.value in ("_C", "_dynamo", *CODE):
            yield repr(node.value)
    elif isinstance(node, ast.FunctionDef) and node.name == "_should_skip_dynamo":
        yield node.name


def test_one_module_names_private_torch() -> None:
    assert private_names(PACKAGE) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._functorch import vmap",
        "from torch.utils import _python_dispatch",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "from torch.fx.experimental.proxy_tensor import get_proxy_mode",
        "from torch.nn.modules.batchnorm import _NormBase",
        "x = torch._C._functorch",
        "x = nn.modules.batchnorm._NormBase",
        "x = torch._weight_norm",
        "x = F.linear.__code__",
        "x = tensor._version",
        "operation._schema.name",
        "function._dynamo_marked_constant = True",
        "x = getattr(torch, '_C')",
        "class Mode:\n    def _should_skip_dynamo(cls):\n        return False",
    ],
)
def test_the_check_finds_private_names(line: str, tmp_path: Path) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    (package / "_torch_compat.py").write_text(line)
    (package / "fine.py").write_text("self._own = 1\nx = torch.ops.aten._safe_softmax\ny = other._own\nz = m._buffers")
    assert private_names(package) == []
    (package / "faulty.py").write_text(line)
    assert len(private_names(package)) >= 1


# --- private and public paths --------------------------------------------------------------------------


PUBLIC: dict[str, Any] = {
    "primitives": None,
    "warn_of_fallback": lambda on: None,
    "is_batched": _torch_compat._has_no_storage,
    "push_mode": None,
    "pop_mode": None,
    "top_mode": _torch_compat._no_mode,
    "dynamo_callback": _torch_compat._no_mode,
}


@contextlib.contextmanager
def public_paths() -> Generator[None]:
    """Inside, the whole process uses the public paths, as with a torch without the private names."""
    private = {name: getattr(_torch_compat, name) for name in PUBLIC}
    for name, value in PUBLIC.items():
        setattr(_torch_compat, name, value)
    try:
        yield
    finally:
        for name, value in private.items():
            setattr(_torch_compat, name, value)


@pytest.fixture(params=["private", "public"])
def paths(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test twice: with the private names, and with the public paths."""
    if request.param == "private":
        yield request.param
        return
    with public_paths(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # see warn_of_fallback
        yield request.param


class Odd(nn.Module):
    """No plan lowers it, and it has dropout. vmap has batching rules for all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.double)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.double))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + x.mean()
        return self.drop(torch.sin(self.linear(x)))


def gru() -> nn.Module:
    return nn.GRUCell(4, 4, dtype=torch.double)


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True, dtype=torch.double)


def normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, dtype=torch.double))


@pytest.mark.parametrize("build", [Odd, gru, attention, normed])
@pytest.mark.parametrize("sharing", ["independent", "shared", [0, 1, 0]], ids=str)
def test_values_and_gradients_are_those_of_the_loop(build: Callable[[], nn.Module], sharing: Any, paths: str) -> None:
    net = fm.network(build, N, sharing=sharing, strategy="vmap")
    loop = net.replace(strategy="loop")
    params, state, x = fm.init_params(net, 0), fm.init_state(net), numbers(5, N, 4)
    names = list(params)
    for leaf in params.values():
        leaf.requires_grad_()

    def run(which: fm.Network, **how: Any) -> tuple[Tensor, tuple[Any, ...]]:
        y = fm.apply(which, params, x, state=state or None, **how)
        y = y[0] if how.get("mutable") else y
        return y, torch.autograd.grad(y.sin().sum(), [params[name] for name in names], allow_unused=True)

    for how in ({}, {"key": 1, "train": True, **({"mutable": True} if state else {})}):
        for _ in range(2):
            torch.testing.assert_close(run(net, **how), run(loop, **how), rtol=1e-10, atol=1e-10)


def test_the_fast_path_of_vmap_needs_the_private_names(paths: str) -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2)), N, strategy="vmap")
    params, x = fm.init_params(net, 0), torch.randn(5, N, 4)
    first = fm.apply(net, params, x)
    assert (net.evaluators[False].fast_path(params, x) is not None) == (paths == "private")
    assert torch.equal(fm.apply(net, params, x), first)


def test_init_params_samples_from_the_key(paths: str) -> None:
    net = fm.network(lambda: nn.Linear(4, 2), N)
    before = torch.get_rng_state()
    a, b = fm.init_params(net, 3), fm.init_params(net, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert _torch_compat.dispatch_modes() == 0


def test_a_key_inside_of_vmap_raises(paths: str) -> None:
    net = fm.network(lambda: nn.Linear(4, 2), N)
    with pytest.raises(fm.StructureError, match="cannot run inside vmap"):
        torch.func.vmap(lambda key: fm.init_params(net, key))(fm.split(fm.key(0), 2))


def test_modes_are_entered_suspended_and_left(paths: str) -> None:
    with ForbidRandomOps("test") as guard:
        assert _torch_compat.dispatch_modes() == 1
        with _torch_compat.suspended(guard):
            assert _torch_compat.dispatch_modes() == (0 if paths == "private" else 1)
        with pytest.raises(KeyError), _torch_compat.suspended(guard):
            raise KeyError
        with pytest.raises(fm.RandomnessError):
            torch.rand(2)
        with ForbidRandomOps("inner"), _torch_compat.suspended(guard):
            assert _torch_compat.dispatch_modes() == 2
    assert _torch_compat.dispatch_modes() == 0


def test_tracers_are_detected(paths: str) -> None:
    traced: list[bool] = []

    def run(x: Tensor) -> Tensor:
        traced.append(_torch_compat.in_proxy_tracer())
        return x * 2

    make_fx(run)(torch.ones(2))
    run(torch.ones(2))
    assert traced == [True, False]


def test_a_compiled_call_gives_the_eager_result(paths: str) -> None:
    torch.compiler.reset()
    net = fm.network(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), N, strategy="vmap")
    params, x = fm.init_params(net, 0), torch.randn(5, N, 4)
    run: Callable[..., Tensor] = lambda params, x: fm.apply(net, params, x, key=1, train=True)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(params, x), run(params, x))


def test_wrapped_tensors_are_recognised(paths: str) -> None:
    seen: list[tuple[bool, bool, int]] = []

    def look(x: Tensor) -> Tensor:
        y = x.clone()
        y.add_(1)
        inner = _torch_compat.unwrapped(y)
        seen.append((_torch_compat.is_batched(y), inner is y, _torch_compat.write_count(inner)))
        assert _torch_compat.in_transform()
        with _torch_compat.outside_transforms():
            assert not _torch_compat.in_transform()
        return y

    torch.func.vmap(look)(torch.ones(2, 3))
    assert seen == [(True, False, 1)]
    assert not _torch_compat.is_batched(torch.ones(2))
    assert not _torch_compat.in_transform()


def test_the_private_paths_are_restored() -> None:
    before = dict(vars(_torch_compat))
    assert _torch_compat.primitives is not None
    with pytest.raises(KeyError), public_paths():
        raise KeyError(_torch_compat.primitives)
    assert dict(vars(_torch_compat)) == before
    with public_paths():
        assert _torch_compat.primitives is None


def test_on_the_public_path_the_warning_shows() -> None:
    net = fm.network(lambda: nn.EmbeddingBag(5, 3), N, strategy="vmap")
    params, x = fm.init_params(net, 0), torch.zeros(4, N, 2, dtype=torch.long)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fm.apply(net, params, x)
        assert not caught
        with public_paths():
            fm.apply(net, params, x)
    assert any("batching rule" in str(one.message) for one in caught)
