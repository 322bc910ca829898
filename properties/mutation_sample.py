"""Mutants of ``functional_marl/laws``, a random sample of each module's: the laws test others, and are tested here.

    .venv-mutation/bin/python properties/mutation_sample.py                         # all modules, 40 mutants each
    .venv-mutation/bin/python properties/mutation_sample.py _compare symmetry       # some modules
    SAMPLE=1000 .venv-mutation/bin/python properties/mutation_sample.py _compare    # every mutant of one

mutmut writes the mutants (see MUTATION.md). It leaves out decorated functions, which all laws are: here a decorator
becomes a call behind its function, ``name = law(11)(name)``, which means the same. One process collects the tests of
``tests/laws`` and forks for each mutant, which runs the tests that reach the function: those of the module's name
first, then the fastest, until one fails or ``BUDGET`` seconds of tests passed. Tests that took ``SLOW`` seconds are
left out. ``runs/mutation-laws/results.json`` has the verdicts, and survivors.txt the survivors as diffs.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "runs" / os.environ.get("RUN", "mutation-laws")
PACKAGE = "functional_marl.laws"
SAMPLE = int(os.environ.get("SAMPLE", "40"))
BUDGET = float(os.environ.get("BUDGET", "2.5"))
SLOW = float(os.environ.get("SLOW", "1.5"))
SEED = int(os.environ.get("SEED", "12"))
# Tests that come first for a module whose name they do not have.
FIRST = {
    "__main__": "/test_check_cli",
    "_infer": "/test_check_infer",
    "_held": "/test_restore",
    "_module_facts": "/test_module_laws",
    "_module_subject": "/test_module_laws",
    "_network_module": "/test_check_networks",
    "_network_view": "/test_check_networks",
}
# Decorators that are calls of a function: what they decorate can be mutated like any other.
_CALLS = ("law(", "property", "contextmanager", "torch.no_grad(", "torch.enable_grad(", "st.composite")
_CONFIGURATION = "[mutmut]\nsource_paths=functional_marl\n"
# Tests of processes of their own, which see no mutant, and of compilers, which do not trace what mutmut puts around
# functions.
_LEFT_OUT = ("test_pytest_plugin.py", "test_hypothesis_plugin.py")
_ARGUMENTS = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-k", "not compile"]


def undecorated(code: str) -> str:
    """The same module with each decorator as a call behind its function.

    >>> print(undecorated("@law(11)\\ndef f(s):\\n    return s\\n"), end="")
    def f(s):
        return s
    f = law(11)(f)
    """
    lines = code.splitlines()
    tree = ast.parse(code)
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    for node in sorted(functions, key=lambda node: -node.lineno):
        words = [ast.unparse(each) for each in node.decorator_list]
        if not all(word.startswith(_CALLS) for word in words):
            continue
        value = node.name
        for word in reversed(words):
            value = f"{word}({value})"
        assert node.end_lineno is not None
        lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {value}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def written(modules: Sequence[str]) -> dict[str, list[str]]:
    """Write mutants of these modules into the copy; the names of each module's."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # pyright: ignore

    found: dict[str, list[str]] = {}
    for module in modules:
        path = COPY / f"functional_marl/laws/{module}.py"
        mutated = mutate_file_contents(str(path), undecorated(path.read_text("utf-8")))
        path.write_text(mutated.code, encoding="utf-8")
        found[module] = [f"{PACKAGE}.{module}.{name}" for name in mutated.mutant_names]
    return found


@cache
def diff(mutant: str) -> str:
    """What a mutant changes."""
    path = COPY / f"{mutant.rpartition('.')[0].replace('.', '/')}.py"
    name = mutant.rpartition(".")[2]
    functions = {
        node.name: ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name in (name, name.rpartition("_")[0] + "_orig")
    }
    one, other = functions[name.rpartition("_")[0] + "_orig"], functions[name]
    changed = list(difflib.unified_diff(one.splitlines()[1:], other.splitlines()[1:], n=1, lineterm=""))
    return "\n".join([f"# {mutant}", *changed[2:]])


class Mutation:
    """A pytest plugin: collect, see what reaches what, then run the mutants instead of the tests."""

    def __init__(self, mutants: Mapping[str, Sequence[str]]) -> None:
        self.mutants = mutants
        self.results: dict[str, str] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running the tests once."""
        started = time.time()
        reached, times = _known_reach(session.items)
        print(f"{len(session.items)} tests in {time.time() - started:.0f} s", flush=True)
        items = {item.nodeid: item for item in session.items if times.get(item.nodeid, SLOW) < SLOW}
        for module, names in self.mutants.items():
            started, chosen = time.time(), sampled(names)
            for name in chosen:
                tests = _ordered(module, reached.get(name.rpartition("__mutmut_")[0], []), times, items)
                self.results[name] = _verdict(name, tests, times) if tests else "no tests"
            counts = {word: sum(self.results[name] == word for name in chosen) for word in set(self.results.values())}
            print(f"{module}: {len(names)} mutants, {len(chosen)} sampled, {counts}, {time.time() - started:.0f} s")
            self.save()
        return True

    def save(self) -> None:
        """Write the results so far."""
        sizes = {module: len(names) for module, names in self.mutants.items()}
        (COPY / "results.json").write_text(json.dumps({"sizes": sizes, "results": self.results}, indent=1))
        survivors = [diff(name) for name, word in self.results.items() if word in ("survived", "no tests")]
        (COPY / "survivors.txt").write_text("\n\n".join(survivors) + "\n", encoding="utf-8")
        sys.stdout.flush()


def sampled(names: Sequence[str]) -> list[str]:
    """A random sample under a fixed seed, or all; ``ONLY`` names a file with the mutants to run again."""
    if "ONLY" in os.environ:
        wanted = set(Path(os.environ["ONLY"]).read_text("utf-8").split())
        return [name for name in names if name in wanted]
    chosen = list(names) if len(names) <= SAMPLE else random.Random(SEED).sample(list(names), SAMPLE)
    return sorted(chosen, key=names.index)


def _ordered(
    module: str, reaching: Sequence[str], times: Mapping[str, float], items: Mapping[str, pytest.Item]
) -> list[pytest.Item]:
    """The tests of the module's name first, then the fastest, for ``BUDGET`` seconds."""
    own, topic = FIRST.get(module, f"/test_{module.removeprefix('_')}"), f"[{module}-"
    tests = sorted(
        (name for name in reaching if name in items),
        key=lambda name: (own not in name and topic not in name, times[name]),
    )
    total, chosen = 0.0, list[pytest.Item]()
    for name in tests:
        total += times[name]
        if total > BUDGET:
            break
        chosen.append(items[name])
    return chosen


def _reach(items: Sequence[pytest.Item]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """For each function the tests that reach it, and how long each test takes."""
    from mutmut.mutation.trampoline import set_mutant_under_test  # pyright: ignore
    from mutmut.state import state  # pyright: ignore

    set_mutant_under_test("stats")
    reached: dict[str, list[str]] = {}
    times: dict[str, float] = {}
    for item, following in zip(items, [*items, None][1:], strict=True):
        started = time.process_time()
        failed = _fails(item, following)
        times[item.nodeid] = 1e9 if failed else time.process_time() - started
        if failed:
            print(f"left out, fails without a mutant: {item.nodeid}", flush=True)
        for function in state()._stats:
            reached.setdefault(function, []).append(item.nodeid)
        state()._stats.clear()
    return reached, times


def _known_reach(items: Sequence[pytest.Item]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """:func:`_reach`, with what the file ``REACH`` remembers of tests that ran before."""
    memory = Path(os.environ.get("REACH", COPY / "reach.json"))
    reached, times = json.loads(memory.read_text("utf-8")) if memory.is_file() else ({}, {})
    more, longer = _in_child(lambda: _reach([item for item in items if item.nodeid not in times]))
    for function, tests in more.items():
        reached.setdefault(function, []).extend(tests)
    times |= longer
    memory.write_text(json.dumps([reached, times]), encoding="utf-8")
    return reached, times


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
    from _pytest.runner import runtestprotocol

    return any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


def _in_child(work: Callable[[], Any]) -> Any:
    """The result of a function that runs in a fork."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with os.fdopen(write, "w") as file:
            json.dump(work(), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        found = json.load(file)
    os.waitpid(pid, 0)
    return found


def _verdict(mutant: str, tests: Sequence[pytest.Item], times: Mapping[str, float]) -> str:
    """What becomes of a mutant in a fork: killed, survived or timeout."""
    limit = int(10 + 5 * sum(times[test.nodeid] for test in tests))
    pid = os.fork()
    if not pid:
        from mutmut.mutation.trampoline import set_mutant_under_test  # pyright: ignore

        signal.alarm(limit)
        set_mutant_under_test(mutant)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            for test, following in zip(tests, [*tests[1:], None], strict=True):
                if _fails(test, following):
                    os._exit(1)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "survived", -signal.SIGALRM: "timeout"}.get(code, "killed")


def main(modules: Sequence[str]) -> None:
    """Copy, mutate, run."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in ("functional_marl", "functional_marl_plugins", "tests", "properties"):
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", COPY)
    (COPY / "setup.cfg").write_text(_CONFIGURATION, encoding="utf-8")
    os.chdir(COPY)
    sys.path[:] = [
        str(COPY),
        *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "properties")),
    ]
    laws = COPY / "functional_marl/laws"
    every = sorted(path.stem for path in laws.glob("*.py") if "def " in path.read_text("utf-8"))
    mutants = written(modules or every)
    files = [str(path) for path in sorted(Path("tests/laws").glob("test_*.py")) if path.name not in _LEFT_OUT]
    os.environ["MUTANT_UNDER_TEST"] = ""
    pytest.main([*_ARGUMENTS, *files], plugins=[Mutation(mutants)])


if __name__ == "__main__":
    main(sys.argv[1:])
