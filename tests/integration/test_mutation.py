"""``make mutation`` finds a module's source and tests by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties import mutation_sample
from properties.mutation import EVERY, MORE_TESTS, MUTATED, ROOT, all_tests, expanded, found, source_of

PACKAGES = [name for name in MORE_TESTS if (ROOT / "functional_marl" / f"_{name}").is_dir()]


@pytest.mark.parametrize("name", MUTATED)
def test_each_module_has_a_source_and_tests(name: str) -> None:
    modules = expanded(name)
    assert modules
    for module in modules:
        assert (ROOT / source_of(module)).is_file()
        assert set(all_tests(module)) > {Path("tests", name) for name in EVERY}


def test_names_give_paths() -> None:
    assert source_of("strategies.loop") == Path("functional_marl/_strategies/loop.py")
    assert source_of("random") == Path("functional_marl/random.py")
    assert source_of("nn._critics") == Path("functional_marl/nn/_critics.py")
    assert Path("tests/strategies/test_loop.py") in all_tests("strategies.loop")
    assert Path("tests/core/test_random.py") in all_tests("random")
    assert "strategies.loop" in expanded("strategies")
    assert expanded("random") == ["random"]


def test_further_tests_are_there() -> None:
    patterns = [*EVERY, *(pattern for patterns in MORE_TESTS.values() for pattern in patterns)]
    assert [pattern for pattern in patterns if not found([pattern])] == []
    assert [name for name in MORE_TESTS if not expanded(name) or (name not in PACKAGES and not source_of(name))] == []


@pytest.mark.parametrize("module", ["nothing", "strategies.nothing"])
def test_an_unknown_module_is_refused(module: str) -> None:
    with pytest.raises(SystemExit, match=f"{module}: expected"):
        source_of(module)


def test_a_decorator_becomes_a_call_behind_its_function() -> None:
    code = """\
class A:
    @property
    def one(self):
        return 1

    @property
    @abstractmethod
    def two(self): ...

    @staticmethod
    def three():
        return 3

@outer
@law(11, A,
     first=True)
def f(s):
    return s

@law(12)
@torch.no_grad()
def g(s):
    def inner():
        return s
    return inner
x = 1
"""
    found = mutation_sample.undecorated(code)
    assert "    one = property(one)" in found.splitlines()
    assert "g = law(12)(torch.no_grad()(g))\nx = 1\n" in found
    # a decorator that is not known stays, and all that stand above one function with it
    kept = [line.strip() for line in found.splitlines() if line.strip().startswith("@")]
    assert kept == ["@property", "@abstractmethod", "@staticmethod", "@outer", "@law(11, A,"]


def test_a_sample_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_sample, "SAMPLE", 5)
    names = [f"x_{k}" for k in range(40)]
    one = mutation_sample.sampled(names)
    assert one == mutation_sample.sampled(names)
    assert len(set(one)) == 5
    assert one == sorted(one, key=names.index)
    assert mutation_sample.sampled(names[:4]) == names[:4]


def test_tests_that_come_first_are_there() -> None:
    laws = ROOT / "functional_marl" / "laws"
    assert [name for name in mutation_sample.FIRST if not (laws / f"{name}.py").is_file()] == []
    tests = [f"/{path.name}" for path in (ROOT / "tests" / "laws").glob("test_*.py")]
    assert all(any(test.startswith(first) for test in tests) for first in mutation_sample.FIRST.values())
    assert all(f"/{name}" in tests for name in mutation_sample._LEFT_OUT)
