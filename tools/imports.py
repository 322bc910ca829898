"""The imports of the package, as its sources have them: its layers, and which module imports which.

``tests/integration/test_imports.py`` checks them; ``tools/architecture.py`` makes the picture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "functional_marl"

# The layers from bottom to top. A top-level module or package imports from those before it, in this order, and from
# nothing else. The last, "", is the package itself with its public names; nothing imports it.
LAYERS: dict[str, list[str]] = {
    "foundations": ["_torch_compat", "_errors", "_check_arguments", "random", "_pytrees", "_clean_context"],
    "who owns which slot": ["_name_patterns", "_sharing", "_gather_slots"],
    "one agent's module": ["_randomness", "nets", "_module"],
    "how it is evaluated": ["_layout", "_lowering", "_network_settings", "_strategies"],
    "the network": ["_network", "_tensordict", "_check_params", "_init_params", "_init_state", "_parameters"],
    "calls": ["_apply", "_tabulate", "_groups"],
    "built on it": ["nn", "laws", ""],
}
ORDER = [name for names in LAYERS.values() for name in names]


class Import(NamedTuple):
    """One import of one module."""

    importer: str  # dotted, without the package's name: "_strategies.loop", "" for the package
    target: str  # in full: "functional_marl._sharing", "torch.func"
    lazy: bool  # inside a function, or for the type checker only
    line: int


def modules_of(package: Path) -> dict[str, Path]:
    """``{"_strategies.loop": path}``; a package goes by its own name, the outermost by ""."""
    paths = {path.relative_to(package).with_suffix("").parts: path for path in sorted(package.rglob("*.py"))}
    return {".".join(p for p in parts if p != "__init__"): path for parts, path in paths.items()}


def imports_of(package: Path) -> list[Import]:
    """Every import statement, wherever it stands, by the module that it reaches."""
    paths = modules_of(package)
    own = {f"{package.name}.{name}".rstrip(".") for name in paths}
    found: list[Import] = []
    for importer, path in paths.items():
        for node, lazy in _statements(ast.parse(path.read_text(encoding="utf-8")), False):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
                base = node.module or ""
                inner = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in own]
                targets = inner if len(inner) == len(node.names) else [base, *inner]
            found += [Import(importer, target, lazy, node.lineno) for target in targets]
    return found


def inner_imports(package: Path) -> list[Import]:
    """The imports of the package's own modules, with targets as importers are named: "_sharing"."""
    return [
        found._replace(target=found.target.removeprefix(package.name).removeprefix("."))
        for found in imports_of(package)
        if found.target == package.name or found.target.startswith(f"{package.name}.")
    ]


def top(module: str) -> str:
    """The top-level module or package that a module belongs to: "_strategies" of "_strategies.loop"."""
    return module.split(".")[0]


def _statements(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, lazy
    for child in ast.iter_child_nodes(node):
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _statements(child, lazy or inner or typing)
