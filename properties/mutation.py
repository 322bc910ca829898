"""Change the code of one module, expression by expression, and see whether its tests fail: mutmut; ``make mutation``.

    .venv-mutation/bin/python properties/mutation.py sharing strategies.loop    # some modules
    .venv-mutation/bin/python properties/mutation.py                            # all of MODULES

The tests of a module follow from its name: ``functional_marl/_strategies/loop.py``, in short ``strategies.loop``, has
``tests/strategies/test_loop*.py``, and ``functional_marl/_parameters.py`` has ``tests/core/test_parameters*.py``.
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
MODULES = [
    "sharing",
    "parameters",
    "init_params",
    "random",
    "layout.inputs",
    "groups.group_data",
    "groups.group_map",
    "randomness.rng_state",
    "strategies.loop",
    "strategies.vmap",
    "strategies.vmap_fast_path",
    "strategies.plan",
    "strategies.batching_rules",
]
# Further tests, from the folder tests/: of every module, of a package as a whole, of one module.
EVERY = ["core/test_wrong_calls.py", "core/test_arguments.py", "core/test_messages.py"]
MORE_TESTS = {
    "strategies": ["core/test_apply*.py"],
    "randomness": ["core/test_apply_randomness.py"],
    "init_params": ["core/test_parameters.py", "core/test_apply_state.py"],
    "randomness.rng_state": ["strategies/test_vmap_fast_path.py"],
    "strategies.plan": ["lowering/test_plan.py"],
    "strategies.batching_rules": ["strategies/test_vmap*.py"],
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


def source_of(module: str) -> Path:
    """The file of a module that is named in short: ``strategies.loop``, ``sharing``, ``nn._critics``."""
    path = module.replace(".", "/")
    for name in (f"functional_marl/_{path}.py", f"functional_marl/{path}.py"):
        if (ROOT / name).is_file():
            return Path(name)
    raise SystemExit(f"{module}: expected functional_marl/_{path}.py or functional_marl/{path}.py")


def matching_tests(module: str) -> list[Path]:
    """The test files of a module, by its name, ``EVERY`` and ``MORE_TESTS``."""
    package, _, name = module.rpartition(".")
    own = f"{package or 'core'}/test_{name.removeprefix('_')}*.py"
    if not [*(ROOT / "tests").glob(own)] and module not in MORE_TESTS:
        raise SystemExit(f"{module}: expected tests in tests/{own}")
    patterns = [own, *EVERY, *MORE_TESTS.get(package, []), *MORE_TESTS.get(module, [])]
    return sorted({path.relative_to(ROOT) for pattern in patterns for path in (ROOT / "tests").glob(pattern)})


def mutate(module: str, processes: int) -> None:
    """Run the mutants of a module in a copy under ``runs/mutation``, and print those that no test rejects."""
    source, tests = source_of(module), matching_tests(module)
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
    for chosen in sys.argv[1:] or MODULES:
        mutate(chosen, int(os.environ.get("PROCESSES", "2")))
