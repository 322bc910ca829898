"""The smaller examples in a short form: their files, their options, Ctrl-C, and the reward traces of both libraries."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.program_runs import BLUE, PALE, VERMILION, assert_picture, interrupt, read_metrics

# Requirements of the examples; the library does not need them.
for requirement in ("vmas", "mpe2", "tqdm"):
    pytest.importorskip(requirement)
image: Any = pytest.importorskip("matplotlib.image")
with warnings.catch_warnings():
    # torchrl subclasses a class that it deprecates
    warnings.filterwarnings("ignore", "Creating .* which inherits from WeightUpdaterBase", DeprecationWarning)
    pytest.importorskip("torchrl.collectors")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the examples' files import each other like scripts

mappo: Any = import_module("torchrl_mappo")
tag: Any = import_module("pettingzoo_groups")
qmix: Any = import_module("qmix")

# All random numbers of an iteration, and 15 updates; small enough that rounding cannot change an action.
SMALL = {"iterations": 3, "envs": 6, "steps": 20, "epochs": 5, "minibatch": 40, "width": 32}
SMALL_TAG = tag.Settings(iterations=2, envs=2, steps=5, epochs=2, minibatch=4, width=8)
SMALL_QMIX = qmix.Settings(iterations=3, envs=6, steps=10, updates=5, minibatch=32, memory=200, width=16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


# The same trace as torchrl's


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("share", mappo.SHARES)
def test_mappo_gives_torchrls_rewards(share: str, double: bool) -> None:
    settings = mappo.Settings(**SMALL, double=double)
    traces = {
        library: [metrics["reward"] for metrics in mappo.train(library, share, settings, 0)]
        for library in mappo.LIBRARIES
    }
    ours, theirs = traces["functional_marl"], traces["torchrl"]
    assert len(ours) == 3
    assert ours == pytest.approx(theirs, abs=1e-10 if double else 5e-5)
    # The comparison depends on the networks: another learning rate gives other rewards.
    other = mappo.Settings(**SMALL, double=double, learning_rate=6e-4)
    second = next(islice(mappo.train("torchrl", share, other, 0), 1, None))["reward"]
    assert abs(second - theirs[1]) > 1e-3


def test_qmix_gives_torchrls_rewards_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = list(qmix.train(SMALL_QMIX, 0))
    torchrl: Any = import_module("torchrl.modules")
    monkeypatch.setattr(qmix, "MultiAgentMLP", torchrl.MultiAgentMLP)
    monkeypatch.setattr(qmix, "QMixer", torchrl.QMixer)
    theirs = list(qmix.train(SMALL_QMIX, 0))
    assert len(ours) == 3
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=5e-5)


# The files of a run


def test_files_of_mappo(tmp_path: Path) -> None:
    settings = mappo.Settings(**{**SMALL, "iterations": 2})
    assert mappo.run(mappo.LIBRARIES, "shared", settings, 0, tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "metrics.csv"}
    rows = read_metrics(tmp_path)
    assert [(row["library"], row["share"], row["iteration"], row["frames"]) for row in rows] == [
        (library, "shared", str(i), str(120 * i)) for library in ("torchrl", "functional_marl") for i in (1, 2)
    ]
    assert all(float(row[name]) == float(row[name]) for row in rows for name in list(row)[2:])
    assert_picture(tmp_path / "curves.png", PALE)
    assert_picture(tmp_path / "curves.png", VERMILION)


def test_files_of_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tag.run(SMALL_TAG, 0, tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "metrics.csv"}
    rows = read_metrics(tmp_path)
    assert [(row["iteration"], row["frames"]) for row in rows] == [("1", "10"), ("2", "20")]
    assert all(float(value) == float(value) for row in rows for value in row.values())
    assert_picture(tmp_path / "curves.png", BLUE)
    assert capsys.readouterr().out.count("predators, ") == 4


def test_files_of_qmix(tmp_path: Path) -> None:
    assert qmix.run(SMALL_QMIX, 0, tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "metrics.csv"}
    rows = read_metrics(tmp_path)
    assert [(row["iteration"], row["frames"]) for row in rows] == [(str(i), str(60 * i)) for i in (1, 2, 3)]
    assert all(float(value) == float(value) for row in rows for value in row.values())
    assert_picture(tmp_path / "curves.png", BLUE)


# The two groups


def test_predators_share_and_prey_do_not() -> None:
    settings = tag.Settings(envs=8, width=8, entropy_bonus=0.0)
    envs = tag.make_envs(settings)
    groups = tag.fm.group_map(envs[0].possible_agents, tag.fm.by_prefix)
    assert groups == {"adversary": ["adversary_0", "adversary_1", "adversary_2"], "agent": ["agent_0", "agent_1"]}
    nets = tag.make_nets(envs[0], groups, 8)
    params = tag.init_groups(nets, tag.fm.key(0))
    assert {group: len(tree["0.weight"]) for group, tree in params.items()} == {"adversary": 1, "agent": 2}

    played = tag.rollout(envs, groups, nets, params, torch.Generator().manual_seed(0))
    predators, prey = played["adversary"], played["agent"]
    assert (predators.obs.shape, prey.obs.shape) == ((25, 8, 3, 20), (25, 8, 2, 18))  # [T, B, n, F]
    assert (predators.values.shape, prey.values.shape) == ((26, 8, 3), (26, 8, 2))  # [T + 1, B, n]
    assert predators.rewards.any()
    assert torch.equal(predators.rewards, predators.rewards[..., :1].expand(25, 8, 3))  # a touch rewards all of them

    batch = tag.make_batch(prey, settings)
    tree = {name: leaf.requires_grad_() for name, leaf in params["agent"].items()}
    output = tag.fm.apply(nets["agent"], tree, batch.obs)
    batch = batch._replace(
        advantages=batch.advantages * torch.tensor([1.0, 0.0]), returns=tag.split(output)[1].detach()
    )
    (grad,) = torch.autograd.grad(tag.ppo_loss(output, batch, settings), tree["0.weight"])
    assert grad[0].abs().sum() > 0
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))


def test_advantages_are_the_loop_over_each_agent() -> None:
    g = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(t, 3, 2, generator=g, dtype=torch.float64) for t in (7, 8))
    blank = torch.zeros(7, 3, 2, dtype=torch.float64)
    settings = tag.Settings(gamma=0.9, lam=0.8, reward_scale=0.5)
    batch = tag.make_batch(tag.Rollout(blank, blank, blank, values, rewards), settings)
    returns = batch.returns.unflatten(0, (7, 3))
    for t in range(7):
        error = 0.5 * rewards[t:] + 0.9 * values[t + 1 :] - values[t:-1]  # [7 - t, B, n]
        weight = (0.9 * 0.8) ** torch.arange(7 - t, dtype=torch.float64)
        torch.testing.assert_close(returns[t], values[t] + (weight[:, None, None] * error).sum(0))


def test_same_seed_same_curve_of_the_groups(tmp_path: Path) -> None:
    rows: list[list[dict[str, str]]] = []
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        torch.rand(7)  # the state of the global generator has no effect
        tag.run(SMALL_TAG, seed, tmp_path / name)
        rows.append(read_metrics(tmp_path / name))
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


# Options and Ctrl-C


@pytest.mark.parametrize("example", [mappo, tag, qmix], ids=["mappo", "groups", "qmix"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "0"], "--iterations: expected 1 or more, got 0"),
        (["--iterations", "some"], "--iterations: expected 1 or more, got some"),
        (["--seed", "-1"], "--seed: expected 0 to"),
        (["--out", "{file}"], "--out: cannot write to"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options_are_usage_errors(
    example: Any, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_usage_error(example.main, options, message, tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "mine"], "invalid choice: 'mine'"),
        (["--library", "rllib"], "invalid choice: 'rllib'"),
        (["--epochs", "0"], "--epochs: expected 1 or more, got 0"),
    ],
)
def test_wrong_options_of_mappo_are_usage_errors(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_usage_error(mappo.main, options, message, tmp_path, capsys)


def assert_usage_error(
    main: Callable[[list[str]], int],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        main([option.format(file=tmp_path / "file") for option in options] + out)
    assert exit_.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("usage: ")
    assert message in output
    assert not (tmp_path / "out").exists()


def interrupted_after(train: Callable[..., Iterator[Any]], count: int) -> Callable[..., Iterator[Any]]:
    def stopping(*args: Any) -> Iterator[Any]:
        yield from islice(train(*args), count)
        raise KeyboardInterrupt

    return stopping


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", ["mappo", "groups", "qmix"])
def test_an_interrupted_run_keeps_what_it_has(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = {"mappo": mappo, "groups": tag, "qmix": qmix}[name]
    monkeypatch.setattr(example, "train", interrupted_after(example.train, count))
    if name == "mappo":
        code = mappo.run(mappo.LIBRARIES, "independent", mappo.Settings(**SMALL), 0, tmp_path)
    else:
        code = example.run({"groups": SMALL_TAG, "qmix": SMALL_QMIX}[name], 0, tmp_path)
    assert code == 130
    assert len(read_metrics(tmp_path)) == count
    assert image.imread(tmp_path / "curves.png").shape[2] == 4


def test_ctrl_c_leaves_readable_files(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore:Creating :DeprecationWarning"]  # torchrl's, see above
    command += [str(EXAMPLES / "torchrl_mappo.py"), "--library", "functional_marl", "--epochs", "1"]
    command += ["--iterations", "1000", "--out", str(tmp_path)]
    interrupt(command, tmp_path, 120)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "metrics.csv"}
    assert {row["library"] for row in read_metrics(tmp_path)} == {"functional_marl"}
    assert_picture(tmp_path / "curves.png", VERMILION)
