"""What every strategy gets, returns and offers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from functional_marl._errors import RandomnessError, StructureError, Unsupported
from functional_marl._layout.inputs import Inputs
from functional_marl._network_settings import NetworkSettings
from functional_marl._pytrees import Tree

__all__ = [
    "FALLBACK_ERRORS",
    "FINAL_ERRORS",
    "Call",
    "Evaluator",
    "FastPath",
    "Result",
    "failure_of",
    "remember",
    "sparse_layout",
    "sparse_reason",
]

# After these errors the next strategy is tried. torch raises them for a missing batching rule, and for wrong inputs.
FALLBACK_ERRORS = (RuntimeError, ValueError, NotImplementedError, IndexError)
# After these no other strategy is tried: the user has to see them.
FINAL_ERRORS = (StructureError, RandomnessError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Call:
    """One call of ``apply``, checked: parameters, state and inputs fit the network."""

    net: NetworkSettings
    params: dict[str, Tensor]  # [S, *leaf]
    state: dict[str, Tensor]  # [S, *leaf]
    inputs: Inputs
    key: Tensor | None  # [2]
    train: bool
    mutable: bool

    def tensors(self) -> tuple[Any, ...]:
        """All leaves of the call: parameters, state and inputs."""
        return (*self.params.values(), *self.state.values(), *self.inputs.leaves)


@dataclass(frozen=True)
class Result:
    """Outputs with the agents in front, ``[n, ...]`` a leaf, and every agent's buffers after the call."""

    outputs: Tree
    state: dict[str, Tensor]  # [n, *leaf]; empty unless the call is mutable


# params and one input ``[*B, n, F]`` -> the output with the agents in its place, or None
FastPath = Callable[[Mapping[str, Any], Tensor], Tensor | None]


def _no_fast_path(params: Mapping[str, Any], x: Tensor) -> Tensor | None:
    return None


class Evaluator(abc.ABC):
    """A strategy that is prepared for one network in one mode, training or evaluation.

    Attributes:
        fast_path: the path of a call with one input tensor, no key, no state and no keyword inputs. It checks the
            call itself, and returns None where it does not apply: then :meth:`evaluate` is used.
    """

    name: ClassVar[str]  # as in ``strategy=``
    fast_path: FastPath = staticmethod(_no_fast_path)

    @classmethod
    @abc.abstractmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> Evaluator | Unsupported:
        """The evaluator, or why this strategy can evaluate no call of the network in this mode."""

    @abc.abstractmethod
    def evaluate(self, call: Call) -> Result | Unsupported:
        """All agents' outputs, or why this strategy cannot evaluate this call."""

    def unsupported_now(self) -> str:
        """Why no call can be evaluated at this moment, as while global hooks are registered; or ""."""
        return ""


def sparse_layout(call: Call) -> torch.layout | None:
    """The layout of the first input that is not dense, or None. Batched operations take dense tensors."""
    for leaf in call.inputs.leaves:
        if isinstance(leaf, Tensor) and leaf.layout is not torch.strided:
            return leaf.layout
    return None


def sparse_reason(call: Call) -> str:
    """Why a strategy of batched operations cannot evaluate a call with a sparse input, or ""."""
    layout = sparse_layout(call)
    return "" if layout is None else f"it takes dense tensors, got {layout}; give x.to_dense()"


MOST_KINDS = 1000  # kinds of calls that are remembered


def remember(kinds: set[Any], kind: Any) -> None:
    """Add a kind of calls to those that are known; of too many, all are forgotten."""
    if len(kinds) >= MOST_KINDS:
        kinds.clear()
    kinds.add(kind)


def failure_of(strategy: str, error: Exception) -> str:
    """An error that a strategy raised, in one line."""
    line = (str(error).splitlines() or [""])[0]
    return f"{strategy} raised {type(error).__name__}: {line if len(line) <= 100 else f'{line[:97]}...'}"
