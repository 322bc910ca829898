"""The registry of layer rules: how the plan learns a layer.

A rule is one function. It gets a layer and a :class:`Context`, and returns a step that computes this layer for all
agents at once. :func:`lowering_rule` registers it for one class or several, together with the leaves that such a layer
registers. A rule holds for exactly these classes, not for their subclasses. To add a rule:

1. Write the function in the file of its family, ``_lowering/rules/*.py``; ``rules/__init__.py`` lists these files. The
   layer holds no tensors: read its settings (``module.eps``), and take its leaves from ``context.leaves``. If a setting
   has no rule, raise ``Unsupported``; the network is then evaluated by ``torch.func.vmap``.
2. Add one line to ``LAYERS`` (or ``CELLS``) in ``tests/lowering/test_plan.py``. The tests there compare the rule with
   the loop, values and gradients, under every sharing. A new kind of network also gets one entry in ``laws/zoo.py``.

For example, a layer that multiplies each feature by a factor:

>>> import torch
>>> import functional_marl as fm
>>> from functional_marl._lowering.rows import over_rows
>>> class Scale(nn.Module):
...     def __init__(self, size):
...         super().__init__()
...         self.size, self.weight = size, nn.Parameter(torch.ones(size))
...     def forward(self, x):
...         return x * self.weight
>>> @lowering_rule(Scale, leaves=lambda module: ExpectedLeaves({"weight": (module.size,)}))
... def scale(module, context):
...     def inner(x, rows, run):  # x: [k, B, F], rows("weight"): [k, F]; k is 1 if all agents share the layer
...         return x * rows("weight").unsqueeze(1)
...     return over_rows(context.leaves, inner, row_ndim=lambda ndim: 1)
>>> net = fm.network(lambda: nn.Sequential(nn.Linear(4, 2), Scale(2)), n_agents=3, strategy="plan")
>>> fm.apply(net, fm.init_params(net, 0), torch.zeros(5, 3, 4)).shape
torch.Size([5, 3, 2])
>>> del RULES[Scale]

``_lowering/steps.py`` defines what a rule may return: a step; an ``Affine``, a ``Fusible`` or a ``Pointwise``, which
``_lowering/fusion.py`` merges with its neighbours; a ``PassThrough``; a list of these, for a container; or a
``WholeNetwork``.

:func:`batching_rule` registers rules of another kind, for operations that ``torch.func.vmap`` cannot batch. They are
in the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves, no_leaves
from functional_marl._lowering.steps import Layer, Leaves, Lowered

__all__ = ["RULES", "Context", "Lowering", "Rule", "batching_rule", "batching_rules", "join", "lowering_rule"]


class Lowering(Protocol):
    """What looks up rules and calls them, by the full path of a layer; ``_lowering/plan.py`` has it."""

    def lower(self, module: nn.Module, path: str) -> list[Layer]:
        """The layer as its rule returns it."""
        ...

    def context(self, module: nn.Module, path: str) -> Context:
        """The layer's context, with its leaves checked."""
        ...


@dataclass(frozen=True)
class Context:
    """What a rule gets beside the layer."""

    path: str  # of the layer; "" for the whole network
    leaves: Leaves
    n_agents: int
    train: bool
    lowering: Lowering

    def lower(self, part: nn.Module, name: str = "") -> list[Layer]:
        """A part of the layer by its own rule; without a name, another module in place of the layer itself."""
        return self.lowering.lower(part, join(self.path, name))

    def children(self, module: nn.Module, name: str = "") -> list[Layer]:
        """The children of a module in order, each by its own rule. A child may occur twice."""
        layers: list[Layer] = []
        for key, child in module._modules.items():
            path = join(name, key)
            if child is None:
                raise Unsupported(f"{path} is None")
            layers += self.lower(child, path)
        return layers

    def of(self, part: nn.Module, name: str) -> Context:
        """The context of a part that the layer computes itself, without calling it."""
        return self.lowering.context(part, join(self.path, name))


def join(path: str, name: str) -> str:
    """The path of a part.

    >>> join("0", "bias"), join("", "bias"), join("0", "")
    ('0.bias', 'bias', '0')
    """
    return f"{path}.{name}" if path and name else path or name


# --- layers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A rule, and the leaves that layers of its classes register; None if their own leaves are not used."""

    function: Callable[[Any, Context], Lowered]
    leaves: Callable[[Any], ExpectedLeaves] | None


RULES: dict[type[nn.Module], Rule] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def lowering_rule(
    *classes: type[nn.Module], leaves: Callable[[Any], ExpectedLeaves] = no_leaves, container: bool = False
) -> Callable[[_Function], _Function]:
    """Register a function ``(layer, context) -> Lowered`` as the rule of layers of exactly these classes.

    Args:
        classes: the classes of layers.
        leaves: a layer -> the leaves that its class registers. It may raise ``Unsupported``. A layer with other leaves
            has no plan.
        container: layers of these classes compute with their parts alone. Their own leaves are not used, so they are
            not checked.
    """

    def register(function: _Function) -> _Function:
        for kind in classes:
            if kind in RULES:
                raise ValueError(f"{kind.__name__}: expected one rule for a class, got a second: {function.__name__}")
            RULES[kind] = Rule(function, None if container else leaves)
        return function

    return register


# --- operations that vmap cannot batch -----------------------------------------------------------------

_BATCHING: dict[Any, Callable[..., Any]] = {}
_BATCHING_AUTOCAST: dict[Any, Callable[..., Any]] = {}


def batching_rule(
    operation: Callable[..., Any], *, equal_batches: bool = False, autocast: bool = False
) -> Callable[[_Function], _Function]:
    """Register a function that computes the same as an operation, in operations that ``torch.func.vmap`` can batch.

    Args:
        operation: what the module calls, for example ``torch.gru_cell``.
        equal_batches: the operation refuses two inputs of different batch axes. The rule would broadcast, so it is used
            for equal batch axes alone.
        autocast: the rule is needed under autocast alone.
    """

    def register(function: _Function) -> _Function:
        rule = partial(_where_batches_are_equal, operation, function) if equal_batches else function
        _BATCHING_AUTOCAST[operation] = rule
        if not autocast:
            _BATCHING[operation] = rule
        return function

    return register


def _where_batches_are_equal(operation: Any, rule: Any, x: Tensor, y: Tensor, *rest: Any, **named: Any) -> Any:
    return (rule if x.shape[:-1] == y.shape[:-1] else operation)(x, y, *rest, **named)


def batching_rules(autocast: bool) -> Mapping[Any, Callable[..., Any]]:
    """The batching rules by operation, with or without autocast."""
    return _BATCHING_AUTOCAST if autocast else _BATCHING
