"""Imports go down through the layers of ``tools/imports.py``, and optional packages stay optional.

Each check is shown to fail on a small package.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import functional_marl as fm
from tools.imports import ORDER, PACKAGE, imports_of, inner_imports, modules_of, top

# Which module may import which other package; "lazily" is inside a function, or for the type checker.
ONLY = {
    "optree": ["_pytrees"],
    "tensordict": ["_tensordict lazily", "_pytrees lazily", "nn", "laws.strategies"],
    "hypothesis": ["laws.strategies"],
    "torchrl": ["nn lazily"],
    "numpy": [],
}


def upward(package: Path, order: list[str]) -> list[str]:
    """The imports that do not go down, and the modules that have no layer."""
    faults = [
        f"{name} has no layer: add it to LAYERS in tools/imports.py"
        for name in modules_of(package)
        if top(name) not in order
    ]
    for found in inner_imports(package):
        a, b = top(found.importer), top(found.target)
        if a not in order:
            continue
        if b not in order or order.index(b) > order.index(a) or (a == b == "" and found.importer != found.target):
            faults.append(f"{found.importer or package.name}:{found.line} imports {found.target or package.name}")
    return faults


def cycles(package: Path) -> list[str]:
    """Cycles among modules, also inside a package."""
    below: dict[str, set[str]] = {name: set() for name in modules_of(package)}
    for found in inner_imports(package):
        below[found.importer].add(found.target)
    cycles: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycles.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(below.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in below:
        visit(name, [])
    return cycles


def forbidden(package: Path, only: dict[str, list[str]]) -> list[str]:
    """Imports of other packages where they are not allowed."""
    faults: list[str] = []
    for found in imports_of(package):
        allowed = only.get(found.target.split(".")[0])
        if allowed is None:
            continue
        names = {found.importer, top(found.importer)}
        if not any(name in allowed or (found.lazy and f"{name} lazily" in allowed) for name in names):
            faults.append(f"{found.importer}:{found.line} imports {found.target}")
    return faults


def test_imports_go_down() -> None:
    assert upward(PACKAGE, ORDER) == []


def test_no_cycles() -> None:
    assert cycles(PACKAGE) == []


def test_every_module_of_the_layers_is_there() -> None:
    modules = {top(name) for name in modules_of(PACKAGE)}
    assert [name for name in ORDER if name not in modules] == []


def test_optional_packages_have_few_importers() -> None:
    assert forbidden(PACKAGE, ONLY) == []


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package of four modules whose imports all go down."""
    files = {
        "__init__": "from toy.b import y as y",
        "a": "import torch\nx = 1",
        "b": "from toy.a import x\nfrom toy.c import one\ny = x",
        "c/__init__": "from toy.c.one import z as z",
        "c/one": "from toy import a\nz = a.x",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "toy"


def test_the_checks_would_notice(toy: Path) -> None:
    order, only = ["a", "c", "b", ""], {"optree": ["a"], "tensordict": ["a lazily"]}

    def faults(name: str, text: str) -> tuple[int, int, int]:
        path = toy / f"{name}.py"
        kept = path.read_text() if path.exists() else None
        path.write_text(text)
        counts = len(upward(toy, order)), len(cycles(toy)), len(forbidden(toy, only))
        if kept is None:
            path.unlink()
        else:
            path.write_text(kept)
        return counts

    assert (upward(toy, order), cycles(toy), forbidden(toy, only)) == ([], [], [])
    assert faults("a", "from toy.b import y") == (1, 1, 0)
    assert faults("a", "from toy import b") == (1, 1, 0)
    assert faults("a", "import toy.c.one as one") == (1, 1, 0)
    assert faults("a", "from toy import y") == (1, 1, 0)
    assert faults("a", "def f():\n    from toy.b import y") == (1, 1, 0)
    assert faults("c/one", "from toy.c import w") == (0, 1, 0)
    assert faults("new", "x = 1") == (1, 0, 0)
    assert faults("b", "import optree") == (0, 0, 1)
    assert faults("a", "import optree.utils") == (0, 0, 0)
    assert faults("a", "from tensordict import TensorDict") == (0, 0, 1)
    assert faults("a", "def f():\n    import tensordict") == (0, 0, 0)
    assert faults("b", "def f():\n    import tensordict") == (0, 0, 1)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_init_files_are_lists_of_names(path: Path) -> None:
    """``from m import X as X`` for each, and all of them in a sorted ``__all__``: CONSTANTS, Classes, functions."""
    names: list[str] = []
    exported: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    assert exported == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_public_names_are_there() -> None:
    assert all(hasattr(fm, name) for name in fm.__all__)
    assert len(fm.__all__) <= 36  # about thirty: a new one needs a law, a test and an example


# --- what importing and calling the package loads --------------------------------------------------------

OPTIONAL = [
    "torchrl",
    "hypothesis",
    "tensordict",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "scipy",
    "pandas",
    "matplotlib",
    "safetensors",
    "vmas",
    "pettingzoo",
    "pytest",
]
CALLS = """
net = functional_marl.network(torch.nn.Linear(4, 2), 3, sharing=[0, 1, 0])
params = functional_marl.init_params(net, 0)
functional_marl.apply(net, params, torch.zeros(5, 3, 4), key=1, train=True)
functional_marl.apply(net.replace(strategy="vmap"), params, torch.zeros(5, 3, 4), key=1, train=True)
"""


def loaded_by(code: str) -> list[str]:
    """The optional packages, and the packages beyond torch and optree, that some code loads."""
    script = f"""
import sys, torch
before = set(sys.modules)
{code}
tops = {{m.split(".")[0] for m in set(sys.modules) - before}} - set(sys.stdlib_module_names)
tops -= {{"functional_marl", "optree", "torch"}}
print(sorted(tops | {{m for m in {OPTIONAL!r} if m in sys.modules}}))
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_import_loads_no_optional_package() -> None:
    assert loaded_by(f"import functional_marl\n{CALLS}") == []


def test_the_laws_need_no_hypothesis() -> None:
    assert loaded_by("import functional_marl.laws") == []


def test_the_check_would_notice() -> None:
    found = loaded_by("import functional_marl, tensordict, torch._dynamo")
    assert {"tensordict", "torch._dynamo"} <= set(found)


def test_the_facade_loads_at_its_first_use() -> None:
    assert fm.nn.__name__ == "functional_marl.nn"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fm.nothing  # pyright: ignore[reportAttributeAccessIssue]
