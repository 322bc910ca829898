"""The rooms of the house: imports go down, optional packages stay optional. Each check is shown to fail."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import functional_marl as fm

PACKAGE = Path(fm.__file__).parent

# A room imports from those before it. The package itself, its public names, is the last but for the two
# that stand on top of it; nothing imports it.
ROOMS = [
    "_torch_compat",
    "_errors",
    "_arguments",
    "random",
    "_name_patterns",
    "_sharing",
    "_pytrees",
    "_clean_context",
    "_slots",
    "_randomness",
    "nets",
    "_module",
    "_layout",
    "_lowering",
    "_network_settings",
    "_strategies",
    "_network",
    "_tensordict",
    "_checks",
    "_init_params",
    "_init_state",
    "_parameters",
    "_apply",
    "_tabulate",
    "_groups",
    "nn",
    "laws",
    "",
]
# Who may import what from outside; "lazily" is inside a function, or for the type checker.
ONLY = {
    "optree": ["_pytrees"],
    "tensordict": ["_tensordict lazily", "_pytrees lazily", "nn", "laws.strategies"],
    "hypothesis": ["laws.strategies"],
    "torchrl": ["nn lazily"],
    "numpy": [],
}


class Import(NamedTuple):
    importer: str  # dotted, without the package's name: "evaluate.loop", "" for the package
    target: str  # in full: "functional_marl.sharing", "torch.func"
    lazy: bool
    line: int


def modules_of(package: Path) -> dict[str, Path]:
    """``{"evaluate.loop": path}``; a package goes by its own name, the outermost by ""."""
    paths = {path.relative_to(package).with_suffix("").parts: path for path in sorted(package.rglob("*.py"))}
    return {".".join(p for p in parts if p != "__init__"): path for parts, path in paths.items()}


def imports_of(package: Path) -> list[Import]:
    """Every import statement, wherever it stands, by the module that it reaches."""
    paths = modules_of(package)
    own = {f"{package.name}.{name}".rstrip(".") for name in paths}
    found: list[Import] = []
    for importer, path in paths.items():
        for node, lazy in statements(ast.parse(path.read_text(encoding="utf-8")), False):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
                base = node.module or ""
                inner = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in own]
                targets = inner if len(inner) == len(node.names) else [base, *inner]
            found += [Import(importer, target, lazy, node.lineno) for target in targets]
    return found


def statements(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, lazy
    for child in ast.iter_child_nodes(node):
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from statements(child, lazy or inner or typing)


def room(module: str) -> str:
    return module.split(".")[0]


def upward(package: Path, rooms: list[str]) -> list[str]:
    """The arrows that do not go down, and the modules that stand in no room."""
    faults = [
        f"{name} stands in no room: say where in ROOMS" for name in modules_of(package) if room(name) not in rooms
    ]
    for arrow in imports_of(package):
        inside = arrow.target == package.name or arrow.target.startswith(f"{package.name}.")
        if not inside or room(arrow.importer) not in rooms:
            continue
        target = arrow.target.removeprefix(package.name).removeprefix(".")
        a, b = room(arrow.importer), room(target)
        if b not in rooms or rooms.index(b) > rooms.index(a) or (a == b == "" and arrow.importer != target):
            faults.append(f"{arrow.importer or package.name}:{arrow.line} imports {arrow.target}")
    return faults


def loops(package: Path) -> list[str]:
    """Cycles among modules, also inside a room."""
    below: dict[str, set[str]] = {name: set() for name in modules_of(package)}
    for arrow in imports_of(package):
        if arrow.target == package.name or arrow.target.startswith(f"{package.name}."):
            below[arrow.importer].add(arrow.target.removeprefix(package.name).removeprefix("."))
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(below.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in below:
        visit(name, [])
    return found


def strangers(package: Path, only: dict[str, list[str]]) -> list[str]:
    """Imports of packages from outside where they are not allowed."""
    faults: list[str] = []
    for arrow in imports_of(package):
        allowed = only.get(arrow.target.split(".")[0])
        if allowed is None:
            continue
        names = {arrow.importer, room(arrow.importer)}
        if not any(name in allowed or (arrow.lazy and f"{name} lazily" in allowed) for name in names):
            faults.append(f"{arrow.importer}:{arrow.line} imports {arrow.target}")
    return faults


def test_imports_go_down() -> None:
    assert upward(PACKAGE, ROOMS) == []


def test_no_loops() -> None:
    assert loops(PACKAGE) == []


def test_every_room_is_there() -> None:
    rooms = {room(name) for name in modules_of(PACKAGE)}
    assert [name for name in ROOMS if name not in rooms] == []


def test_optional_packages_have_few_importers() -> None:
    assert strangers(PACKAGE, ONLY) == []


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package of four modules in good order."""
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
    rooms, only = ["a", "c", "b", ""], {"optree": ["a"], "tensordict": ["a lazily"]}

    def faults(name: str, text: str) -> tuple[int, int, int]:
        path = toy / f"{name}.py"
        kept = path.read_text() if path.exists() else None
        path.write_text(text)
        counts = len(upward(toy, rooms)), len(loops(toy)), len(strangers(toy, only))
        if kept is None:
            path.unlink()
        else:
            path.write_text(kept)
        return counts

    assert (upward(toy, rooms), loops(toy), strangers(toy, only)) == ([], [], [])
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


def test_the_proof_would_notice() -> None:
    found = loaded_by("import functional_marl, tensordict, torch._dynamo")
    assert {"tensordict", "torch._dynamo"} <= set(found)


def test_the_facade_loads_when_asked_for() -> None:
    assert fm.nn.__name__ == "functional_marl.nn"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fm.nothing  # pyright: ignore[reportAttributeAccessIssue]
