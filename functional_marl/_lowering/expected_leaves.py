"""Is a layer what its class makes it: the guard ahead of every rule of the plan.

A rule reads a layer's settings and names its leaves. Somebody may have put a plain tensor or a buffer where the class
has a parameter, a parameter where it has a number, or a leaf of another shape: the rule would compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from functional_marl._errors import Unsupported
from functional_marl.nets import GRU, LSTM

__all__ = ["altered", "check_ordinary"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Made:
    """The leaves that a class registers: names and shapes, and which of them may be None."""

    params: Shapes
    optional: tuple[str, ...] = ("bias",)
    buffers: Shapes | None = None


def _affine(*shape: int, buffers: Shapes | None = None) -> _Made:
    return _Made({"weight": shape, "bias": shape}, ("weight", "bias"), buffers)


def _linear(module: nn.Linear) -> _Made:
    return _Made({"weight": (module.out_features, module.in_features), "bias": (module.out_features,)})


def _convolution(module: Any) -> _Made:
    channels = (module.out_channels, module.in_channels // module.groups)
    return _Made({"weight": (*channels, *module.kernel_size), "bias": (module.out_channels,)})


def _transposed(module: Any) -> _Made:
    channels = (module.in_channels, module.out_channels // module.groups)
    return _Made({"weight": (*channels, *module.kernel_size), "bias": (module.out_channels,)})


def _batch_norm(module: Any) -> _Made:
    size = (module.num_features,)
    return _affine(*size, buffers={"running_mean": size, "running_var": size, "num_batches_tracked": ()})


def _cell(gates: int, inputs: str, hidden: str) -> Callable[[Any], _Made]:
    def made(module: Any) -> _Made:
        rows, columns = gates * getattr(module, hidden), (getattr(module, inputs), getattr(module, hidden))
        weights = {"weight_ih": (rows, columns[0]), "weight_hh": (rows, columns[1])}
        return _Made({**weights, "bias_ih": (rows,), "bias_hh": (rows,)}, ("bias_ih", "bias_hh"))

    return made


def _attention(module: nn.MultiheadAttention) -> _Made:
    width = module.embed_dim
    if module.head_dim * module.num_heads != width:
        raise Unsupported("heads that do not make up its width")
    params: dict[str, tuple[int, ...]] = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
    apart = {f"{name}_proj_weight": (0,) for name in "qkv"}  # registered, and None
    return _Made({**params, **apart}, ("in_proj_bias", *apart))


_MADE: dict[type[nn.Module], Callable[[Any], _Made]] = {
    **dict.fromkeys((nn.Linear, NonDynamicallyQuantizableLinear), _linear),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.ConvTranspose2d: _transposed,
    nn.LayerNorm: lambda m: _affine(*m.normalized_shape),
    nn.GroupNorm: lambda m: _affine(m.num_channels),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    nn.Embedding: lambda m: _Made({"weight": (m.num_embeddings, m.embedding_dim)}),
    nn.PReLU: lambda m: _Made({"weight": (m.num_parameters,)}),
    nn.GRUCell: _cell(3, "input_size", "hidden_size"),
    nn.LSTMCell: _cell(4, "input_size", "hidden_size"),
    GRU: _cell(3, "inputs", "hidden"),
    LSTM: _cell(4, "inputs", "hidden"),
    nn.Bilinear: lambda m: _Made(
        {"weight": (m.out_features, m.in1_features, m.in2_features), "bias": (m.out_features,)}
    ),
    nn.MultiheadAttention: _attention,
}


def altered(module: nn.Module) -> bool:
    """Whether a module does other things than its class says: by hooks, or by methods of its own."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or any(callable(getattr(type(module), name, None)) for name in module.__dict__)


def check_ordinary(module: nn.Module, shapes: Shapes) -> None:
    """Check a layer for which there is a rule, with the shapes of the leaves that it has.

    Raises:
        Unsupported: it has not the leaves that its class makes, or a tensor for a setting.
    """
    rule = _MADE.get(type(module))
    made = _Made({}) if rule is None else rule(module)
    buffers = made.buffers or {}
    tensors = [name for name, value in module.__dict__.items() if isinstance(value, Tensor)]
    if tensors or module._parameters.keys() != made.params.keys() or module._buffers.keys() != buffers.keys():
        raise Unsupported("other leaves than its class makes")
    for name, shape in (*made.params.items(), *buffers.items()):
        if name not in shapes and name not in made.optional:
            raise Unsupported(f"no {name}")
        if name in shapes and shapes[name] != shape:
            raise Unsupported(f"{name} of another shape than its class makes")
