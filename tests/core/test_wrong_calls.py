"""Every wrong call raises an error of this library that names the argument, and changes nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import functional_marl as fm
from tests.core.wrong_calls import CALLS, Call

OURS = (fm.StructureError, fm.SharingError, fm.GroupingError, fm.RandomnessError)


def kept(value: Any) -> Any:
    """What a call must not change, as a value that can be compared."""
    if isinstance(value, Tensor):
        numbers = None if value.is_meta else value.detach().to_dense().clone().numpy().tobytes()
        return ("tensor", tuple(value.shape), value.dtype, value.requires_grad, numbers)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, nn.Module):
        return ("module", value.training, kept(dict(value.state_dict())))
    if isinstance(value, dict):
        return ("dict", [(key, kept(inner)) for key, inner in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [kept(inner) for inner in value])
    if type(value).__name__ == "TensorDict":
        return ("TensorDict", kept(dict(value.items())), value.batch_size)
    return repr(value)


def outcome(call: Call, argument: str, kind: str, given: dict[str, Any]) -> tuple[str, str]:
    """One of clear, right, unclear, raw, silent and changed, and the reason."""
    before = kept(given)
    right = kind in call.right.get(argument, ())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call.function(**given)
        found, why = ("right", "") if right else ("silent", "took it")
    except OURS as error:
        named = call.words.get(argument, argument) in str(error)
        found, why = ("clear" if named else "unclear"), str(error)
        if right:
            found = "refused"
    except Exception as error:
        # an error of the module itself comes with a note on what the agent saw
        noted = any("functional_marl: agent" in note for note in getattr(error, "__notes__", ()))
        found, why = ("clear" if noted and not right else "raw"), f"{type(error).__name__}: {error}"
    if kept(given) != before:
        found = "changed"
    return found, why


@pytest.mark.parametrize("name", CALLS)
def test_the_right_call_works(name: str) -> None:
    call = CALLS[name]
    if name == "Network.__call__":
        with pytest.raises(fm.StructureError, match=r"fm\.apply\(net, params, x\)"):
            call.function(**call.given())
    else:
        call.function(**call.given())


def test_every_wrong_call_raises_our_error_or_works() -> None:
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for name, call in CALLS.items():
        for argument, kind, given in call.wrong():
            found, why = outcome(call, argument, kind, given)
            counts[found] += 1
            if found not in ("clear", "right"):
                faults.append(f"{found:8} {name}({argument}={kind}): {' '.join(why.split())[:150]}")
    print(f"{counts.total()} calls of {len(CALLS)}: {dict(counts)}")
    assert not faults, "\n" + "\n".join(faults)
    assert counts.total() > 1500


def test_every_public_name_is_called() -> None:
    uncalled = {
        "GroupMap",
        "GroupingError",
        "RandomnessError",
        "SharingError",
        "StrategyWarning",
        "StructureError",
        "Network",
        "nets",
        "random",
    }
    called = {name.split(".")[0].split(" ")[0] for name in CALLS}
    assert set(fm.__all__) - uncalled <= called
    for module in (fm.nets, fm.random):
        short = module.__name__.rpartition(".")[2]
        names = {name for name in module.__all__ if name not in ("Key", "ConvNet", "fold_in", "key", "split")}
        assert {f"{short}.{name}" for name in names} <= set(CALLS)
