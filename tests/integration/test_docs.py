"""The documentation runs: docstrings, pages, the tour. Its links lead somewhere, and files keep simple rules."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import functional_marl as fm

PACKAGE = Path(fm.__file__).parent
ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


# --- docstrings ------------------------------------------------------------------------------------------


def run_doctests(module: types.ModuleType) -> tuple[int, str]:
    """How many examples a module has, and the output of those that fail."""
    output: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=output.append)
    return runner.summarize(verbose=False).attempted, "".join(output)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    _, failures = run_doctests(importlib.import_module(name))
    assert not failures, failures


def test_a_wrong_docstring_example_fails() -> None:
    module = types.ModuleType("wrong", ">>> 1 + 1\n3\n")
    count, failures = run_doctests(module)
    assert count == 1
    assert "Expected:\n    3" in failures


def examples_of(thing: Any) -> int:
    """The examples in the docstring of a function, or of a class and its methods."""
    found = doctest.DocTestFinder(exclude_empty=True).find(thing, module=inspect.getmodule(thing))
    return sum(len(test.examples) for test in found)


def public() -> Iterator[tuple[str, Any]]:
    """The public functions and classes of the package, and of the two modules among its names."""
    for name in fm.__all__:
        thing = getattr(fm, name)
        if isinstance(thing, types.ModuleType):
            yield from ((f"{name}.{inner}", getattr(thing, inner)) for inner in thing.__all__)
        else:
            yield name, thing


def test_public_names_have_docstrings_and_examples() -> None:
    """Errors need no example: users do not call them."""
    bare: list[str] = []
    for name, thing in public():
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        error = inspect.isclass(thing) and issubclass(thing, Exception)
        if not inspect.getdoc(thing) or not (error or examples_of(thing)):
            bare.append(name)
    assert bare == []


# --- pages and the tour ----------------------------------------------------------------------------------


def tracked() -> list[Path]:
    """The files that git tracks; without git, all but the hidden ones."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(ROOT).parts)]


def run_blocks(path: Path) -> int:
    """Run the python blocks of a page in order, in one namespace; return how many there are."""
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    blocks = list(re.finditer(r"^( *)```python[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    for block in blocks:
        line = text.count("\n", 0, block.start(2))
        code = "\n" * line + re.sub(rf"^{block[1]}", "", block[2], flags=re.MULTILINE)
        exec(compile(code, str(path), "exec"), namespace)  # an error shows the page and the line
    return len(blocks)


PAGES = [path for path in tracked() if path.suffix == ".md"]
WITH_CODE = ["README.md", "docs/laws.md", "docs/torchrl.md", "docs/training.md"]
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@every_page
@pytest.mark.usefixtures("capsys")
def test_python_blocks_run(path: Path) -> None:
    assert run_blocks(path) > 0 or str(path.relative_to(ROOT)) not in WITH_CODE


def broken_links(path: Path) -> list[str]:
    """The relative links of a page, pictures too, that lead to no file."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL))
    files = [link.partition("#")[0] for link in links if not link.startswith(("https:", "#"))]
    return [file for file in files if not (path.parent / file).exists()]


@every_page
def test_links_lead_to_files(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) ![b](no.png) [c](https://example.org) [d](page.md#part)\n```\n[e](f.md)\n```\n")
    assert broken_links(page) == ["no.png"]


OUTSIDE = re.compile(r"\b(?:DESIGN|STYLE|FACADE|LAWS|TARGETS)\.md\b|design document|\u00a7")


def test_no_document_outside_the_tree_is_cited() -> None:
    files = [path for path in tracked() if path.suffix in (".py", ".md", ".toml", ".mk") and path != Path(__file__)]
    assert [str(path.relative_to(ROOT)) for path in files if OUTSIDE.search(path.read_text(encoding="utf-8"))] == []


def test_a_wrong_block_fails(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n1. In a list:\n\n   ```python\n   assert x == 1\n   ```\n")
    assert run_blocks(page) == 2
    page.write_text("# A page\n\n```python\nx = 1\n```\nand\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_blocks(page)
    assert caught.traceback[-1].lineno == 7  # counted from 0: the line of the page


def run_script(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert path.is_file(), f"{path.relative_to(ROOT)} is missing"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "error", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_tour_runs() -> None:
    done = run_script(ROOT / "examples" / "tour.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n--- ") > 5


def test_the_tour_shows_every_public_function() -> None:
    text = (ROOT / "examples" / "tour.py").read_text(encoding="utf-8")
    functions = [name for name, thing in public() if inspect.isfunction(thing) and "." not in name]
    assert [name for name in functions if not re.search(rf"\bfm\.{name}\b", text)] == []


# --- rules for files -------------------------------------------------------------------------------------


def test_no_utils_and_no_long_file() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert [p.name for p in files if p.stem in ("utils", "util", "helpers", "misc", "common")] == []
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|mnt|tmp)/\w")


def test_no_path_of_one_machine() -> None:
    faults: list[str] = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        faults += [f"{path.relative_to(ROOT)}:{k}" for k, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert faults == []


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("open('{}home/me/x')", True),
        ("cd {}work/main", True),
        ("https:{0}{0}example.org{0}home/page", False),
        ("a.home{}x", False),
    ],
)
def test_a_path_of_one_machine_would_be_noticed(line: str, caught: bool) -> None:
    assert bool(MACHINE.search(line.format("/"))) == caught
