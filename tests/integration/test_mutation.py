"""``make mutation`` finds a module's source and tests by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties.mutation import EVERY, MORE_TESTS, MUTATED, ROOT, all_tests, expanded, found, source_of


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


@pytest.mark.parametrize("module", ["nothing", "strategies.nothing"])
def test_an_unknown_module_is_refused(module: str) -> None:
    with pytest.raises(SystemExit, match=f"{module}: expected"):
        source_of(module)
