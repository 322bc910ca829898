"""Change the code of one module, expression by expression, and see whether its tests fail: mutmut; ``make mutation``.

    .venv-mutation/bin/python properties/mutation.py random strategies.loop    # some modules
    .venv-mutation/bin/python properties/mutation.py groups                    # all modules of a package
    .venv-mutation/bin/python properties/mutation.py                           # all of MUTATED

The tests of a module follow from its name: ``functional_marl/_strategies/loop.py``, in short ``strategies.loop``, has
``tests/strategies/test_loop*.py``, and ``functional_marl/_init_params.py`` has ``tests/core/test_init_params*.py``.
``EVERY`` and ``MORE_TESTS`` add what tests several modules at once. MUTATION.md has the results.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIES = ROOT / "runs" / "mutation"
# Modules, and packages whose modules all take part if they have tests of their own.
MUTATED = [
    "sharing",
    "parameters",
    "init_params",
    "init_state",
    "random",
    "layout",
    "groups",
    "randomness.rng_state",
    "randomness.same_samples",
    "strategies",
]
# Further tests, from the folder tests/: of every module, of a package as a whole, of one module.
EVERY = ["core/test_wrong_calls.py", "core/test_check_arguments.py", "core/test_check_params.py", "core/test_errors.py"]
_VMAP, _PLAN = ["strategies/test_vmap*.py"], ["lowering/test_plan.py"]
MORE_TESTS: dict[str, list[str]] = {
    "strategies": ["core/test_apply*.py"],
    "groups": ["groups/test_apply_groups.py"],
    "randomness": ["core/test_apply_randomness.py"],
    "init_params": ["core/test_apply_state.py"],
    "randomness.rng_state": ["strategies/test_vmap_fast_path.py"],
    "strategies.auto": ["core/test_tabulate.py"],
    "strategies.vmap_batching_rules": _VMAP,
    "strategies.plan": _PLAN,
    "strategies.plan_fast_path": _PLAN,
    "strategies.vmap_call": _VMAP,
    "strategies.vmap_chunks": _VMAP,
    "strategies.vmap_map": _VMAP,
}
# Each mutant is a fork of a process that has collected the tests. pytest's search for lost exceptions would take most
# of a fork's time; the modules behind -p are imported before the fork. Tests that compile are left out: dynamo does
# not trace the wrapper that mutmut puts around each function.
CONFIGURATION = """\
[mutmut]
source_paths=functional_marl
only_mutate={source}
process_isolation=forkserver
timeout_constant=10
timeout_multiplier=5
pytest_add_cli_args=
  -p
  no:cacheprovider
  -p
  no:unraisableexception
  -p
  no:logging
  -p
  torch._dynamo
  -p
  tensordict
pytest_add_cli_args_test_selection=
  {tests}
  -k
  not compile and not need_no_torchrl
"""


def expanded(name: str) -> list[str]:
    """A module as it is, a package as its modules that have functions and tests of their own."""
    folders = [
        folder for folder in (ROOT / f"functional_marl/_{name}", ROOT / f"functional_marl/{name}") if folder.is_dir()
    ]
    files = [path for folder in folders for path in sorted(folder.glob("*.py")) if "def " in path.read_text("utf-8")]
    modules = [f"{name}.{path.stem}" for path in files]
    tested = [module for module in modules if own_tests(module) or module in MORE_TESTS]
    return tested if folders else [name]


def source_of(module: str) -> Path:
    """The file of a module that is named in short: ``strategies.loop``, ``sharing``, ``nn._critics``."""
    path = module.replace(".", "/")
    for name in (f"functional_marl/_{path}.py", f"functional_marl/{path}.py"):
        if (ROOT / name).is_file():
            return Path(name)
    raise SystemExit(f"{module}: expected functional_marl/_{path}.py or functional_marl/{path}.py")


def own_tests(module: str) -> list[Path]:
    """The test files that have the name of a module."""
    package, _, name = module.rpartition(".")
    return found([f"{package or 'core'}/test_{name.removeprefix('_')}*.py"])


def all_tests(module: str) -> list[Path]:
    """The tests of a module: those of its name, ``EVERY`` and ``MORE_TESTS``."""
    package = module.rpartition(".")[0]
    if not own_tests(module) and module not in MORE_TESTS:
        raise SystemExit(f"{module}: expected tests of its name in tests/{package or 'core'}")
    return sorted({*own_tests(module), *found([*EVERY, *MORE_TESTS.get(package, []), *MORE_TESTS.get(module, [])])})


def found(patterns: list[str]) -> list[Path]:
    """The files of these patterns in the folder tests/."""
    return [path.relative_to(ROOT) for pattern in patterns for path in (ROOT / "tests").glob(pattern)]


def mutate(module: str, processes: int) -> None:
    """Run the mutants of a module in a copy under ``runs/mutation``, and print those that no test rejects."""
    source, tests = source_of(module), all_tests(module)
    copy = COPIES / module
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in ("functional_marl", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    listed = "\n  ".join(map(str, tests))
    (copy / "setup.cfg").write_text(CONFIGURATION.format(source=source, tests=listed), encoding="utf-8")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for arguments in (["run", "--max-children", str(processes)], ["results"]):
        subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=copy, env=environment, check=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MUTATED:
        for one in expanded(chosen):
            mutate(one, int(os.environ.get("PROCESSES", "2")))
