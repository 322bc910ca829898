"""The public surface: the names at the top and the modules nets, random, nn and laws; all other modules are private."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import functional_marl as fm

MODULES = [info.name for info in pkgutil.walk_packages(fm.__path__, "functional_marl.")]


def public_modules(names: list[str]) -> list[str]:
    """The modules without an underscored part in their path, relative to the package."""
    relative = [name.removeprefix("functional_marl.") for name in names]
    return [name for name in relative if not any(part.startswith("_") for part in name.split("."))]


def hidden_modules(names: list[str]) -> list[str]:
    """The modules that ``import a.b as m`` does not give: their package has another object under the same name."""
    parents = {name: name.rpartition(".") for name in names}
    found = {name: getattr(sys.modules[package], last) for name, (package, _, last) in parents.items()}
    return [name for name, object_ in found.items() if object_ is not sys.modules[name]]


def test_public_modules_are_nets_random_nn_and_laws() -> None:
    public = public_modules(MODULES)
    assert {name.split(".")[0] for name in public} == {"laws", "nets", "nn", "random"}
    assert [name for name in public if name.split(".")[0] != "laws"] == ["nets", "nn", "random"]


def test_no_module_is_hidden_by_a_function_of_its_name() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    assert hidden_modules(names) == []


def test_apply_and_network_are_functions_and_no_modules() -> None:
    for name in ("apply", "network", "group_map", "init_params"):
        assert isinstance(getattr(fm, name), types.FunctionType)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"functional_marl.{name}")


def test_laws_and_nn_need_no_import_of_their_own() -> None:
    assert fm.laws.check is not None
    assert fm.nn.MultiAgentMLP is not None


def test_keys_are_shown_under_one_name() -> None:
    """Keys come from ``fm.key``, ``fm.split`` and ``fm.fold_in``, not from ``fm.random``, which samples."""
    root = Path(fm.__file__).parents[1]
    pages = [root / "README.md", *(path for folder in ("docs", "examples") for path in root.glob(f"{folder}/*"))]
    pages += [*root.glob("functional_marl/**/*.py"), *root.glob("tests/**/*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in pages if path.suffix in (".md", ".py")}
    other = re.compile(r"(?<!jax\.)\brandom\.(key|split|fold_in)\(")
    assert [str(path.relative_to(root)) for path, text in texts.items() if other.search(text)] == []
    assert other.search("fm.random." + "split(key)")
    assert (fm.key, fm.split, fm.fold_in) == (fm.random.key, fm.random.split, fm.random.fold_in)


def test_these_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "functional_toy"
    package.mkdir()
    (package / "__init__.py").write_text("from functional_toy.apply import apply as apply\n")
    (package / "apply.py").write_text("def apply(): ...\n")
    (package / "_other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    toy = importlib.import_module("functional_toy")
    names = [info.name for info in pkgutil.walk_packages(toy.__path__, "functional_toy.")]
    for name in names:
        importlib.import_module(name)
    assert hidden_modules(names) == ["functional_toy.apply"]
    assert public_modules(["functional_marl._other", "functional_marl.apply", "functional_marl.nn._base"]) == ["apply"]
