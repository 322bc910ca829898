"""The main demo in a short form: its files, its determinism, its options, and how it ends on Ctrl-C."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tests.integration.program_runs import BLUE, assert_picture, interrupt, read_metrics

# Requirements of the demo, from the extra "train"; the library does not need them.
pytest.importorskip("vmas")
pytest.importorskip("matplotlib.image")
safetensors: Any = pytest.importorskip("safetensors")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the demo's files import each other like scripts

navigation: Any = import_module("navigation")
SHARINGS: tuple[str, ...] = import_module("navigation_options").SHARINGS
SMALL = navigation.Settings(iterations=2, envs=4, steps=6, epochs=2, minibatch=10)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curves(out: Path) -> list[dict[str, str]]:
    """Everything in the metrics except the time."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(out)]


def read_params(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata(), {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118


# The files of a run


def test_files_of_a_run(tmp_path: Path):
    assert navigation.run(SHARINGS, SMALL, 0, tmp_path) == 0
    names = {"curves.png", "metrics.csv"}
    names |= {f"{kind}" for name in SHARINGS for kind in (f"rollout_{name}.png", f"parameters_{name}.safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = read_metrics(tmp_path)
    assert [(row["sharing"], row["iteration"], row["frames"]) for row in rows] == [
        (name, str(i), str(24 * i)) for name in SHARINGS for i in (1, 2)
    ]
    assert all(float(value) == float(value) for row in rows for name, value in row.items() if name != "sharing")
    for path in tmp_path.glob("*.png"):
        assert_picture(path, BLUE)
    for name, slots, inputs in (("shared", 1, 8), ("shared-ids", 1, 10), ("independent", 2, 8)):
        metadata, shapes = read_params(tmp_path / f"parameters_{name}.safetensors")
        assert metadata == {"sharing": name}
        assert shapes["policy/0.weight"] == (slots, 128, inputs)
        assert shapes["critic/4.bias"] == (slots, 1)
        assert {shape[0] for shape in shapes.values()} == {slots}


def test_a_second_run_replaces_files_of_the_same_names_and_no_others(tmp_path: Path):
    (tmp_path / "parameters_mine.safetensors").write_text("mine")
    navigation.run(["shared"], SMALL, 0, tmp_path)
    before = (tmp_path / "parameters_shared.safetensors").read_bytes()
    navigation.run(["independent"], SMALL, 0, tmp_path)
    left = {f"{kind}_{name}.{end}" for kind, end in (("rollout", "png"), ("parameters", "safetensors"))
            for name in ("shared", "independent")}  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == left | {
        "curves.png",
        "metrics.csv",
        "parameters_mine.safetensors",
    }
    assert (tmp_path / "parameters_mine.safetensors").read_text() == "mine"
    assert (tmp_path / "parameters_shared.safetensors").read_bytes() == before
    assert [row["sharing"] for row in read_metrics(tmp_path)] == ["independent"] * 2


def test_clusters(tmp_path: Path):
    options = ["--agents", "3", "--sharing", "0,0,1", "--iterations", "1", "--out", str(tmp_path)]
    assert navigation.main(options) == 0
    metadata, shapes = read_params(tmp_path / "parameters_0-0-1.safetensors")
    assert metadata == {"sharing": "0,0,1"}
    assert {shape[0] for shape in shapes.values()} == {2}
    assert [row["sharing"] for row in read_metrics(tmp_path)] == ["0,0,1"]
    assert_picture(tmp_path / "rollout_0-0-1.png", BLUE)


# Same seed, same curve


def test_same_seed_same_curve_after_any_other_training(tmp_path: Path):
    both, alone, other = tmp_path / "both", tmp_path / "alone", tmp_path / "other"
    for out, sharings, seed in (
        (both, ["shared", "independent"], 3),
        (alone, ["independent"], 3),
        (other, ["shared"], 4),
    ):
        out.mkdir()
        torch.rand(7)  # the state of the global generator has no effect
        navigation.run(sharings, SMALL, seed, out)
    assert curves(both)[2:] == curves(alone)
    assert curves(both)[0]["reward"] != curves(other)[0]["reward"]
    name = "parameters_independent.safetensors"
    assert (both / name).read_bytes() == (alone / name).read_bytes()


def test_a_run_leaves_the_global_generator_alone(tmp_path: Path):
    before = torch.get_rng_state()
    navigation.run(["shared-ids"], SMALL, 0, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# Options and Ctrl-C


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--agents", "0"], "--agents: expected 1 to 10, got 0"),
        (["--agents", "11"], "--agents: expected 1 to 10, got 11"),
        (["--agents", "two"], "invalid int value: 'two'"),
        (["--iterations", "0"], "--iterations: expected 1 or more, got 0"),
        (["--seed", "-1"], "--seed: expected 0 to"),
        (["--sharing", "mine"], "expected one of shared, shared-ids, independent, or one slot per agent"),
        (["--sharing", "0,0,1"], "expected 2 slots below 2, got '0,0,1'"),
        (["--sharing", "0,2"], "expected 2 slots below 2, got '0,2'"),
        (["--sharing", "shared", "--sharing", "0,"], "got '0,'"),
        (["--out", "{file}"], "--out: cannot write to"),
        (["--out", "{file}/below"], "--out: cannot write to"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        navigation.main([option.format(file=tmp_path / "file") for option in options] + out)
    assert exit_.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("usage: ")
    assert message in output
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_readable_files(tmp_path: Path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "navigation.py")]
    command += ["--iterations", "1000", "--sharing", "independent", "--out", str(tmp_path)]
    interrupt(command, tmp_path, 60)
    names = {"curves.png", "metrics.csv", "parameters_independent.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert len(read_metrics(tmp_path)) >= 1
    assert_picture(tmp_path / "curves.png", BLUE)
    _, shapes = read_params(tmp_path / "parameters_independent.safetensors")
    assert {shape[0] for shape in shapes.values()} == {2}


# The parts


def test_gae_is_the_loop_over_each_agent():
    g = torch.Generator().manual_seed(0)
    steps, envs, agents, gamma, lam = 7, 3, 2, 0.9, 0.8
    rewards = torch.randn(steps, envs, agents, generator=g, dtype=torch.float64)
    values = torch.randn(steps + 1, envs, agents, generator=g, dtype=torch.float64)
    done = torch.rand(steps, envs, generator=g) < 0.3
    got = navigation.gae(rewards, values, done, gamma, lam)
    assert done.any()
    assert not done.all()
    for b in range(envs):
        for i in range(agents):
            for t in range(steps):
                expected, weight = 0.0, 1.0
                for k in range(t, steps):  # the sum of discounted errors up to the end of the episode
                    after = 0.0 if done[k, b] else values[k + 1, b, i].item()
                    expected += weight * (rewards[k, b, i].item() + gamma * after - values[k, b, i].item())
                    weight *= gamma * lam
                    if done[k, b]:
                        break
                assert got[t, b, i].item() == pytest.approx(expected, abs=1e-12)


def test_gae_with_lambda_one_is_the_return_over_the_value():
    rewards, values = torch.ones(4, 1, 1), torch.tensor([5.0, 6, 7, 8, 9]).reshape(5, 1, 1)
    done = torch.tensor([False, False, False, True])[:, None]
    torch.testing.assert_close(
        navigation.gae(rewards, values, done, 1.0, 1.0).flatten(), torch.tensor([4.0, 3, 2, 1]) - values[:4, 0, 0]
    )


def test_the_first_ppo_loss_is_minus_the_mean_advantage_and_its_gradient_stays_with_the_agent():
    team = navigation.make_team("independent", 2)
    params = navigation.init_team(team, navigation.fm.key(0))
    env = navigation.make_env(SMALL)
    played = navigation.rollout(env, team, params, 6, 1, torch.Generator().manual_seed(0))
    batch = navigation.make_batch(played, 0.9, 0.9)
    torch.testing.assert_close(batch.advantages.mean(0), torch.zeros(2))
    batch = batch._replace(advantages=batch.advantages * torch.tensor([1.0, 0.0]) + torch.tensor([0.5, 0.0]))
    loss = navigation.ppo_loss(team, params, batch, 0.2)["policy_loss"]
    assert loss.item() == pytest.approx(-0.25, abs=1e-5)
    loss.backward()
    grad = params["policy"]["0.weight"].grad
    assert grad is not None
    assert grad[0].abs().sum() > 0
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))


def test_the_policy_without_ids_treats_both_agents_the_same_and_the_one_with_ids_does_not():
    obs = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0)).expand(5, 2, 8)
    for sharing, alike in (("shared", True), ("0,0", True), ("shared-ids", False), ("independent", False)):
        team = navigation.make_team(sharing, 2)
        mean = navigation.act(team, navigation.init_team(team, navigation.fm.key(0)), obs).mean
        assert torch.allclose(mean[:, 0], mean[:, 1]) == alike


def play(monkeypatch: pytest.MonkeyPatch, envs: int, target: Any) -> Any:
    """A rollout of agents that steer by ``target``, a function of the offsets from the goals ``[*B, n, n, 2]``."""

    def steer(team: Any, params: Any, obs: Tensor) -> Normal:
        away = target(obs[..., 4:].unflatten(-1, (-1, 2)))
        return Normal(-4 * away - 1.5 * obs[..., 2:4], 1e-3)

    monkeypatch.setattr(navigation, "act", steer)
    team = navigation.make_team("shared", 2)
    params = navigation.init_team(team, navigation.fm.key(0))
    return navigation.rollout(navigation.make_env(navigation.Settings(envs=envs)), team, params, 100, 5, None)


def own_goal(offsets: Tensor) -> Tensor:
    return offsets.diagonal(dim1=-3, dim2=-2).mT  # [*B, n, 2]


def between_goals(offsets: Tensor) -> Tensor:
    return offsets.mean(-2)


def distance_to_goal(obs: Any) -> Tensor:
    return own_goal(obs[..., 4:].unflatten(-1, (-1, 2))).square().sum(-1).sqrt()


def test_an_episode_ends_at_the_goals_and_rewards_the_progress(monkeypatch: pytest.MonkeyPatch):
    played = play(monkeypatch, 8, own_goal)
    assert played.done.any(0).all()
    assert torch.equal(played.alive[1:], played.alive[:-1] & ~played.done[:-1])
    assert not played.rewards[~played.alive].any()
    for b in range(8):
        length = int(played.alive[:, b].sum())
        assert 5 < length < 100
        start, end = (distance_to_goal(played.obs[t, b]) for t in (0, length))
        bonus = 0.01 if (end < 0.05).all() else 0.0  # VMAS gives it if all agents are at their goals
        torch.testing.assert_close(played.rewards[:, b].sum(0), start - end + bonus, atol=1e-5, rtol=0)


def test_scripted_agents_come_close_to_the_ceilings(monkeypatch: pytest.MonkeyPatch):
    known, unknown = navigation.CEILINGS.values()
    played = play(monkeypatch, 2_000, own_goal)
    assert distance_to_goal(played.obs[0]).mean().item() == pytest.approx(known, abs=0.03)
    assert known - 0.1 < played.rewards.sum(0).mean().item() < known  # an episode ends within 0.1 of the goals
    assert play(monkeypatch, 2_000, between_goals).rewards.sum(0).mean().item() == pytest.approx(unknown, abs=0.03)
