"""``python -m functional_marl.laws``: exit codes, one clear line where it could not run, JSON, what it asks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl.laws import check_group_map, check_grouping
from functional_marl.laws.__main__ import main
from functional_marl.laws._check import laws_named

LINEAR = ["torch.nn:Linear", "--args", "[6, 2]", "--n-agents", "3", "--input", "4,3,6", "--examples", "2"]
HERE = "tests.laws.test_check_cli"


class Net(nn.Module):
    """What torchrl's classes take, and a dict in."""

    def __init__(self, n_agents: int, share_params: bool, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(4, 2), act()) for _ in range(1 if share_params else n_agents))
        self.n = n_agents

    def forward(self, given: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        x = given["agents"]["obs"]
        return {"q": torch.stack([self.nets[i % len(self.nets)](x[..., i, :]) for i in range(self.n)], -2)}


NET = fm.network(nn.Linear(6, 2), 3, sharing=[0, 0, 1])


def functional(seed: int) -> tuple[fm.Network, dict[str, Tensor]]:
    return NET, fm.init_params(NET, seed)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "functional_marl.laws", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command() -> None:
    kwargs = json.dumps({"n_agent_inputs": 6, "n_agent_outputs": 2, "depth": 1})
    words = ["torchrl.modules:MultiAgentMLP", "--kwargs", kwargs, "--n-agents", "3", "--input", "4,3,6"]
    sound = run(*words, "--sharing", "independent", "--examples", "4")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.startswith("All 20 laws that apply to torchrl.modules:MultiAgentMLP hold.")
    broken = run(*words[:-2], "--input", "4,2,6", "--sharing", "independent")
    assert broken.returncode == 2
    assert broken.stderr.count("\n") == 1
    assert "could not run: inputs[0]: expected 3 agents at dim 1, got shape [4, 2, 6]" in broken.stderr


def test_a_violation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINEAR, "--sharing", "independent"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("VIOLATED: 3 laws of 16")
    assert "agents 0 and 1 both train weight[0, 0]" in text
    again = "python -m functional_marl.laws torch.nn:Linear --args '[6, 2]' --n-agents 3 --input 4,3,6"
    assert f"{again} --examples 2 --sharing independent --laws gradient_reaches_own_slot" in text


def test_a_functional_network(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{HERE}:functional", "--args", "[3]", "--input", "4,3,6", "--examples", "2"]
    assert main(words) == 0
    assert "(claimed by the module)" in capsys.readouterr().out
    assert main([*words, "--sharing", "shared"]) == 1
    assert "VIOLATED" in capsys.readouterr().out
    assert main([*words, "--infer"]) == 0
    assert "weight  [2, 2, 6]  {0,1} {2} along axis 0" in capsys.readouterr().out


def test_json_and_chosen_laws(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                *LINEAR,
                "--sharing",
                "0,0,0",
                "--json",
                "--laws",
                "local_jacobian,gradient_reaches_own_slot",
                "--seed",
                "3",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert [row["law"] for row in found["laws"]] == ["local_jacobian", "gradient_reaches_own_slot"]


def test_what_is_missing_comes_from_the_claims(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{HERE}:Net", "--n-agents", "3", "--input", "agents.obs=4,3,4", "--examples", "2"]
    assert main([*words, "--sharing", "shared"]) == 0
    assert main([*words, "--sharing", "independent", "--kwargs", '{"act": "@torch.nn:ReLU"}', "--train"]) == 0
    assert main([*words, "--sharing", "independent", "--kwargs", '{"share_params": true}']) == 1
    assert main([*words, "--sharing", "shared", "--tensordict"]) == 0
    assert main([*words, "--sharing", "[0, 0, 1]", "--kwargs", '{"share_params": false}']) == 1
    capsys.readouterr()


def one_agent() -> nn.Module:
    return nn.Linear(6, 2)


def test_the_network_of_one_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINEAR, "--single", f"{HERE}:one_agent"]) == 0
    text = capsys.readouterr().out
    assert "agents_are_networks" in text
    assert "claim: sharing shared (inferred)" in text
    assert main([*LINEAR, "--single", f"{HERE}:NET"]) == 2
    assert "single: expected a function that builds the module of one agent, got Network" in capsys.readouterr().err


def test_the_list_of_laws(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--list"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if line.split()[:1] == ["local_jacobian"])
    assert "no agent's output depends on another agent's input" in " ".join(lines[at : at + 3])
    names = {law.name for law in laws_named("all")}
    assert names <= {word for line in lines for word in line.replace("*", " ").split()}


def test_infer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINEAR, "--infer"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["sharing of 3 agents: shared", "weight  [2, 6]  {0,1,2}"]


def test_functions_that_group(capsys: pytest.CaptureFixture[str]) -> None:
    path = "torchrl.envs.utils:MarlGroupMapType.{}.get_group_map"
    assert main([path.format("ALL_IN_ONE_GROUP"), "--names", "a,b"]) == 1
    assert "the caller's names ['a'] became ['a', 'intruder']" in capsys.readouterr().out
    assert main([path.format("ONE_GROUP_PER_AGENT"), "--names", "a,b"]) == 0
    assert not check_grouping(lambda names: {"one": names[:1], "two": names}, ["a", "b"])
    assert check_grouping(lambda names: {names[9]: names}, ["a"]).verdicts[0].why.startswith("it raised IndexError")


def test_a_wrong_grouping_raises() -> None:
    with pytest.raises(AssertionError, match="'intruder'"):
        check_group_map(lambda names: {"agents": names}, ["a", "b"])
    assert check_group_map({"one": ["b"], "two": ["a"]}, ["a", "b"])


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{HERE}:interrupted", "--n-agents", "3", "--input", "4,3,6"]) == 130
    assert capsys.readouterr().err == "functional_marl.laws: interrupted\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nope:X"], "cannot import nope"),
        (["torch.nn"], "torch.nn: expected package.module:Class"),
        (["torch.nn:Lineal"], "torch.nn has no Lineal"),
        (["torch:pi"], "expected a class or a function, got float"),
        (["torch.nn:Linear", "--args", "[6"], "--args: expected JSON, got '[6'"),
        (["torch.nn:Linear", "--args", "{}"], "--args: expected a JSON list"),
        (["torch.nn:Linear", "--kwargs", "[]"], "--kwargs: expected a JSON dict"),
        (["torch.nn:Linear"], "torch.nn:Linear does not build: TypeError"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--input", "4,3,5"], "the module raises on the example: RuntimeError"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--input", "4,x"], "--input: expected [name=]4,3,6"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--sharing", "all"], "--sharing: expected shared, independent"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--laws", "none"], "laws: expected 'default', 'all'"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--input", "a=4,3,6", "--input", "4"], "a name for every input"),
        (["torch.nn:Linear", "--args", "[6, 2]", "--n-agents", "two"], "argument --n-agents: invalid int value"),
        ([f"{HERE}:NET"], "subject: a Network alone has no parameters: give (net, params)"),
        (["math:sqrt", "--args", "[4]"], "subject: expected a module, (net, params) or (function, params), got float"),
    ],
)
def test_what_could_not_run(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*words, *(["--n-agents", "3"] if "--n-agents" not in words else [])]
    given += [] if "--input" in words else ["--input", "4,3,6"]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("functional_marl.laws: could not run: ")
    assert error.count("\n") == 1
    assert line in error
