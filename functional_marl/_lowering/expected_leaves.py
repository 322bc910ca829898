"""Check a layer before its rule is used: has it the leaves that its class registers, and no hooks.

A rule reads the settings of a layer and the names of its leaves. A user may have replaced a leaf: a plain tensor or a
buffer in place of a parameter, a parameter in place of a number, or a leaf of another shape. The rule would then
compute something else than the module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._module.held_objects import MODULE_ATTRIBUTES

__all__ = ["ExpectedLeaves", "altered", "check_leaves", "no_leaves", "weight_and_bias"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ExpectedLeaves:
    """The leaves that a class registers: names and shapes, and which of them may be None."""

    params: Shapes = field(default_factory=dict[str, tuple[int, ...]])
    buffers: Shapes = field(default_factory=dict[str, tuple[int, ...]])
    optional: Collection[str] = ("bias",)


def no_leaves(module: nn.Module) -> ExpectedLeaves:
    """The class registers neither parameters nor buffers."""
    return ExpectedLeaves()


def weight_and_bias(*weight: int, bias: int) -> ExpectedLeaves:
    """A weight of this shape, and a bias ``[bias]`` or None."""
    return ExpectedLeaves({"weight": weight, "bias": (bias,)})


def altered(module: nn.Module) -> bool:
    """Whether a module computes something else than its class: it has hooks, or a method set on the instance."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    own = module.__dict__.keys() - MODULE_ATTRIBUTES
    return any(hooks) or any(callable(getattr(type(module), name, None)) for name in own)


def check_leaves(module: nn.Module, expected: ExpectedLeaves, shapes: Shapes) -> None:
    """Check that a layer has the leaves that its class registers; ``shapes`` are those of the leaves that it has.

    Raises:
        Unsupported: it has other leaves, or a tensor in place of a setting.
    """
    params, buffers = expected.params, expected.buffers
    tensors = any(isinstance(module.__dict__[name], Tensor) for name in module.__dict__.keys() - MODULE_ATTRIBUTES)
    if tensors or module._parameters.keys() != params.keys() or module._buffers.keys() != buffers.keys():
        raise Unsupported("other leaves than its class registers")
    for name, shape in (*params.items(), *buffers.items()):
        if name not in shapes and name not in expected.optional:
            raise Unsupported(f"no {name}")
        if name in shapes and shapes[name] != shape:
            raise Unsupported(f"{name} of another shape than its class registers")
