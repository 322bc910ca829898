"""The benchmarks run: every row with tiny sizes and one round. Measured times are never tested."""

import importlib.util
import json
import sys
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

for needed in ("torchrl", "vmas", "matplotlib"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"the benchmarks need {needed}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "examples"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

timing: Any = import_module("benchmarks.timing")

COMPILING = ("large", "step compiled", "forward compiled", "population")
ROWS = (
    "forward",
    "facade",
    "shared",
    "unlowered",
    "backward",
    "step",
    "memory",
    "initialization",
    "facade construction",
    "gru",
    "convnet",
    "clusters",
    "clusters memory",
    "navigation",
)


@pytest.fixture(autouse=True)
def torchrl_warns():
    """Ignore torchrl's and vmas' deprecation warnings; restore the generator and the number of threads."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def run_main() -> Any:
    return import_module("benchmarks.run")


def test_every_row_is_tested():
    rows = {row.name for row in run_main().ROWS}
    assert rows == {*ROWS, *COMPILING, "import", "jax"}


def test_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    only = [word for row in ROWS for word in ("--only", row)]
    assert run_main().main(["--tiny", "--out", str(tmp_path), *only]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert {r["row"] for r in found["results"]} == set(ROWS)
    assert all(r["ratio"] > 0 and r["figures"][0] > 0 for r in found["results"])
    assert all(f"{r['row']}: {r['work']}" in printed for r in found["results"])
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert found["machine"]["threads"] == 1


def test_a_run_compared_with_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = run_main().main
    arguments = ["--tiny", "--only", "forward", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--against", str(tmp_path / "cpu.json")]) == 0
    assert "earlier" in capsys.readouterr().out


@pytest.fixture
def without_inductor(monkeypatch: pytest.MonkeyPatch):
    """Trace and differentiate, but generate no code, which takes many seconds per graph."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("row", COMPILING)
def test_rows_that_compile(tmp_path: Path, row: str):
    assert run_main().main(["--tiny", "--only", row, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "cpu.json").read_text())["results"]


def test_jax_is_left_out_if_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BENCH_JAX_PYTHON", str(tmp_path / "python"))
    assert run_main().main(["--tiny", "--only", "jax", "--out", str(tmp_path)]) == 0
    assert "jax: left out: no" in capsys.readouterr().out


def test_growth(tmp_path: Path):
    assert import_module("benchmarks.growth").main(["--tiny", "--out", str(tmp_path)]) == 0
    curves = json.loads((tmp_path / "growth.json").read_text())["curves"]
    assert set(curves) == {"agents", "width"}
    assert (tmp_path / "growth.png").exists()


@pytest.mark.usefixtures("without_inductor")
def test_training_step_example(capsys: pytest.CaptureFixture[str]):
    """The example compares the losses of its recipes itself."""
    options = {"agents": 2, "batch": 4, "seeds": 2, "rounds": 1}
    assert import_module("training_step").main([f"--{name}={value}" for name, value in options.items()]) == 0
    assert "2 seeds: the same losses over 5 steps" in capsys.readouterr().out


def test_adam_is_torchs():
    recipes: Any = import_module("training_step")
    leaf = torch.randn(3, 4, dtype=torch.float64)
    own, state = {"w": leaf.clone()}, recipes.adam_init({"w": leaf})
    theirs = leaf.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    for step in range(5):
        grad = torch.randn(3, 4, dtype=torch.float64) * 10.0**-step
        theirs.grad = grad.clone()
        optimizer.step()
        own, state = recipes.adam(own, {"w": grad}, state, 0.1)
        torch.testing.assert_close(own["w"], theirs.detach())


def test_outputs_are_compared_before_timing():
    ones, zeros = torch.ones(2), torch.zeros(2)
    contest = timing.Contest("c", {"a": lambda: ones, "b": lambda: zeros}, [timing.Claim("b", "a")])
    with pytest.raises(AssertionError, match="c: b differs from a"):
        timing.measure("row", contest, timing.Budget.tiny())


@pytest.mark.parametrize(
    ("kind", "bound", "ratio", "met"),
    [
        ("at least", 2.0, 2.5, True),
        ("at least", 3.0, 2.5, False),
        ("at most", 0.5, 0.4, True),
        ("at most", 0.3, 0.4, False),
    ],
)
def test_a_claim(kind: str, bound: float, ratio: float, met: bool):
    claim = timing.Claim("a", "b", bound, kind)
    assert claim.ratio(0.4, 1.0) == (2.5 if kind == "at least" else 0.4) == ratio
    assert claim.met(ratio) is met
