"""Every wrong call of the facade ends in a clear error and changes nothing; what numpy gives as an int is one."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import functional_marl as fm
import functional_marl.nn as fmnn
from tests.nn.wrong_calls import CALLS, CNN, MLP, objects

PACKAGE = str(Path(fm.__file__).parent)


def frozen(value: Any) -> Any:
    """Numbers, keys, modes and public attributes of what a call may change."""
    if isinstance(value, Tensor):
        return ("lazy",) if nn.parameter.is_lazy(value) else (tuple(value.shape), value.flatten().tolist())
    if isinstance(value, dict):
        return {k: frozen(v) for k, v in value.items()}
    if isinstance(value, nn.Module):
        own = {k: repr(v) for k, v in vars(value).items() if not k.startswith("_")}
        return own | {"leaves": frozen(dict(value.state_dict())), "repr": repr(value)}
    return repr(value)


def outcome(call: Any, names: str) -> str:
    """How a wrong call ends: ``clear``, ``raw``, ``silent`` or ``changed``, with what happened."""
    given = objects()
    before = frozen(given)
    try:
        call(given)
    except (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        named = re.search(names.replace("[", r"\[") if "|" not in names else names, said)
        frames = traceback.extract_tb(error.__traceback__)
        ours = frames[-1].filename.startswith(PACKAGE) or bool(getattr(error, "__notes__", ()))
        # Python's own word on an argument, and torch's on the call of load_state_dict or of a dropout, are clear
        plain = re.search(r"unexpected keyword argument|Error\(s\) in loading|dropout probability|is not a valid", said)
        kind = "clear" if named and (ours or plain) else "raw"
        kind = f"{kind}: {type(error).__name__}: {said[:150]} ({Path(frames[-1].filename).name})"
    except BaseException as error:
        kind = f"raw: {type(error).__name__}: {error}"
    else:
        kind = "silent"
    return kind if frozen(given) == before else f"changed, {kind}"


def test_wrong_calls_end_in_clear_errors(capsys: pytest.CaptureFixture[str]) -> None:
    found = {name: outcome(call, names) for name, call, names in CALLS}
    counts = Counter(kind.split(":")[0] for kind in found.values())
    with capsys.disabled():
        print(f"\n{len(found)} wrong calls of functional_marl.nn: {dict(counts)}")
    bad = [f"{name}: {kind}" for name, kind in found.items() if not kind.startswith("clear")]
    assert len(found) >= 120
    assert bad == []


def test_every_public_name_is_called_wrongly() -> None:
    table = "\n".join(name for name, _, _ in CALLS)
    assert [name for name in fmnn.__all__ if name not in table and name != "AgentsApartWarning"] == []


def test_a_right_call_would_be_seen() -> None:
    """The table's judge: what is right is silent, what is raised deep in torch is raw, what changes is changed."""
    assert outcome(lambda o: o["mlp"](torch.zeros(5, 3, 4)), "x") == "silent"
    assert outcome(lambda _: torch.zeros(2) @ torch.zeros(3), "size").startswith("raw")
    assert outcome(lambda o: o["mlp"].reset_parameters(), "x").startswith("changed")


# --- what numpy gives as an int is one ------------------------------------------------------------------------


def as_numpy(value: Any) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    return [as_numpy(v) for v in value] if isinstance(value, list) else value  # pyright: ignore


@pytest.mark.parametrize("usual", [MLP, CNN], ids=["MultiAgentMLP", "MultiAgentConvNet"])
def test_integers_of_numpy_are_integers(usual: dict[str, Any]) -> None:
    make: Any = fmnn.MultiAgentMLP if usual is MLP else fmnn.MultiAgentConvNet
    x = torch.randn(5, 3, 4) if usual is MLP else torch.randn(5, 3, 2, 9, 9)
    nets: list[Any] = []
    for share in (True, False, [0, 0, 1]):
        for given in (
            {**usual, "share_params": share},
            {k: as_numpy(v) for k, v in {**usual, "share_params": share}.items()},
        ):
            torch.manual_seed(0)
            nets.append(make(**given))
        torch.testing.assert_close(nets[-1](x), nets[-2](x))
        assert nets[-1].state_dict().keys() == nets[-2].state_dict().keys()
        assert isinstance(nets[-1].n_agents, int)
        assert isinstance(nets[-1].centralized, bool)
        if isinstance(share, bool):
            assert str(nets[-1]) == str(nets[-2])


def test_integers_of_numpy_in_mixers_and_critics() -> None:
    i: Any = np.int64
    for shape in (i(4), (i(4),), [i(2), i(2)], 4):
        mixer = fmnn.QMixer(shape, i(8), i(3), "cpu")
        state = torch.zeros(5, *(mixer.state_shape))
        assert mixer(torch.ones(5, 3, 1), state).shape == (5, 1)
    assert fmnn.VDNMixer(i(3), "cpu")(torch.ones(5, 3, 1)).shape == (5, 1)
    spec = fmnn.CrossCriticGroupSpec(i(4), i(2), ("a", "observation"), ("a", "value"))
    critic = fmnn.CrossGroupCritic({"a": spec}, d_model=i(4), trunk_depth=i(1), trunk_cells=i(8))
    assert critic.module(torch.zeros(5, 2, 4))[0].shape == (5, 2, 1)
    assert fmnn.MLP(i(4), (i(2), i(1)), i(1), i(8))(torch.zeros(5, 4)).shape == (5, 2, 1)
    assert fmnn.ConvNet(i(2), i(1), i(3), i(3))(torch.zeros(5, 2, 9, 9)).shape == (5, 147)
