"""What the rules of the plan return, and what a step of the plan takes and returns.

A value between steps is a pair ``(h, mapped)``. If ``mapped`` is true, the agents are the first axis:
``h: [n, *what one agent sees]``. If it is false, all agents see the same ``h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from functional_marl._errors import Unsupported
from functional_marl._gather_slots import gather_slots
from functional_marl._lowering.linear_kernels import Affine
from functional_marl._sharing import Sharing

__all__ = [
    "Activation",
    "Cell",
    "Fusible",
    "Layer",
    "Leaves",
    "Lowered",
    "PassThrough",
    "Pointwise",
    "Run",
    "Step",
    "Value",
    "WholeNetwork",
    "check_shape",
]


@dataclass
class Run:
    """What one call of a plan carries from step to step."""

    n_agents: int
    params: dict[str, Tensor]  # [S, *leaf]
    state: dict[str, Tensor]  # [S, *leaf]
    key: Tensor | None
    randomness: str
    train: bool
    site: int = 0  # how many dropouts have run


@dataclass(frozen=True)
class Leaves:
    """The parameters and buffers of one layer: full names and slot maps by attribute."""

    names: dict[str, str]
    slots: dict[str, Sharing]

    @property
    def shared(self) -> bool:
        """Whether all agents share all leaves of the layer."""
        return all(sharing.is_shared for sharing in self.slots.values())

    def rows(self, run: Run, attribute: str) -> Tensor | None:
        """The leaf as ``[k, *leaf]``, or None if the layer has none. ``k`` is 1 if the layer is shared, else ``n``."""
        name = self.names.get(attribute)
        if name is None:
            return None
        leaf = run.params[name] if name in run.params else run.state[name]
        return leaf if self.shared else gather_slots(leaf, self.slots[attribute])


# --- what a rule returns -------------------------------------------------------------------------------

Value = tuple[Tensor, bool]
Step = Callable[[Run, Tensor, bool], Value]
Activation = Callable[[Tensor], Tensor]
# The inputs, each [n, ...] or None, under the module's own argument names -> outputs [n, ...]
Cell = Callable[..., Any]


@dataclass(frozen=True)
class Pointwise:
    """An elementwise layer: a function that leaves its input unchanged, and perhaps one that writes over it."""

    function: Activation
    in_place: Activation | None = None


@dataclass(frozen=True)
class Fusible:
    """A step that also computes the activations after it.

    Its output must be a new tensor that no backward needs, because the first activation may write over it.
    """

    make: Callable[[Sequence[Activation]], Step]


@dataclass(frozen=True)
class PassThrough:
    """A step that may return its input or a view of it. A plan of these alone is refused."""

    step: Step


@dataclass(frozen=True)
class WholeNetwork:
    """A module with several inputs or outputs. It has a plan only if it is the whole network."""

    cell: Cell


Layer = Affine | Fusible | Pointwise | PassThrough | Step
Lowered = Layer | Sequence[Layer] | WholeNetwork


def check_shape(tensor: Tensor, *shape: int) -> None:
    """Check an input of a whole network. The plan does not broadcast: the module broadcasts, or raises its own error.

    Raises:
        Unsupported: another shape.
    """
    if tensor.shape != shape:
        raise Unsupported(f"an input {list(tensor.shape[1:])} beside others that need {list(shape[1:])}")
