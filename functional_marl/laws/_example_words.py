"""Examples of inputs from words of the command line: ``4,3,6``, ``obs=4,3,6``, ``action=4,3:int5``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functional_marl._tensordict import to_tensordict
from functional_marl.laws._subject import CheckError

__all__ = ["example_of"]

_KINDS = {"float": torch.float32, "double": torch.float64, "int": torch.int64, "bool": torch.bool}


def example_of(words: Sequence[str], tensordict: bool, agents: Sequence[str] | int | None) -> Any:
    """A tensor, a tuple, a dict (dots nest) or a TensorDict; if ``agents`` is a number, a list with one input an agent.

    With names of agents, an input without a name is that of every agent.

    Raises:
        CheckError: a word is no shape, or some inputs have names and some have none.

    >>> example_of(["obs=4,3,6", "mask=4,3:bool"], False, None)["mask"].shape
    torch.Size([4, 3])
    >>> sorted(example_of(["4,6"], False, ["wolf", "sheep"]))
    ['sheep', 'wolf']
    """
    if not words:
        raise CheckError("--input: expected the shape of an example input, such as 4,3,6")
    inputs = [_input(text) for text in words]
    if not any(name for name, _ in inputs):
        if isinstance(agents, int):
            return [inputs[k % len(inputs)][1] for k in range(agents)]
        if agents is not None:
            inputs = [(agent, leaf) for _, leaf in inputs for agent in agents]
        else:
            return inputs[0][1] if len(inputs) == 1 else tuple(leaf for _, leaf in inputs)
    if not all(name for name, _ in inputs):
        raise CheckError("--input: expected a name for every input, or for none")
    if tensordict:
        return to_tensordict(dict(inputs))
    nested: dict[str, Any] = {}
    for name, leaf in inputs:
        *path, last = name.split(".")
        at = nested
        for key in path:
            at = at.setdefault(key, {})
        at[last] = leaf
    return nested


def _input(text: str) -> tuple[str, Tensor]:
    name, _, rest = text.rpartition("=")
    shape, _, kind = rest.partition(":")
    high = int(kind[3:]) if kind[:3] == "int" and kind[3:].isdigit() else 2
    try:
        sizes = [int(size) for size in shape.split(",")]
        dtype = _KINDS["int" if kind.startswith("int") else kind or "float"]
    except (ValueError, KeyError):
        raise CheckError(f"--input: expected [name=]4,3,6[:float|double|bool|int7], got {text!r}") from None
    zeros = torch.zeros(sizes, dtype=dtype)
    return name, torch.arange(zeros.numel()).remainder(high).reshape(sizes) if dtype == torch.int64 else zeros
