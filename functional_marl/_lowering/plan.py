"""The plan: a module made of known layers, lowered once to steps that run for all agents at once.

No module is touched when a plan runs: it is plain torch on the stacked tensors, safe in threads, and
``grad``, ``vmap`` over populations, ``compile`` and ``export`` go through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.activations import ELEMENTWISE, activation
from functional_marl._lowering.attention import encoder_layer
from functional_marl._lowering.cells import Cell, lower_cell
from functional_marl._lowering.dense import Affine, gather_slots, run_dense, run_dense_whole, run_shared
from functional_marl._lowering.expected_leaves import altered, check_ordinary
from functional_marl._lowering.layers import CONVOLUTIONS, PASSING, convolution, lower_layer
from functional_marl._lowering.steps import Leaves, Run, Step, Value, plain_layout
from functional_marl._module.spec import ModuleSpec
from functional_marl._sharing import Sharing
from functional_marl.nets import ConvNet

__all__ = ["Images", "Plan", "lower", "register_container", "register_rewrite"]

_CONTAINERS: set[type[nn.Module]] = {nn.Sequential}


def register_container(kind: type[nn.Module]) -> None:
    """Declare that modules of exactly this class run their children in order, and nothing else."""
    _CONTAINERS.add(kind)


class Images(nn.Sequential):
    """What a rewrite returns for layers on images with any batch axes ahead of ``[C, H, W]``; a lone image as it is."""


_REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {}


def register_rewrite(kind: type[nn.Module], rewrite: Callable[[Any], nn.Module]) -> None:
    """Declare that modules of exactly this class compute what ``rewrite(module)`` does, with the same leaf names."""
    _REWRITES[kind] = rewrite


@dataclass(frozen=True)
class Plan:
    """Steps in order; ``dense`` where all of it is one run of linear layers under one slot map.

    Or one ``cell``, a module of several inputs and outputs, and no steps.
    """

    steps: tuple[Step, ...]
    dense: tuple[tuple[Affine, ...], Sharing] | None = None
    cell: Cell | None = None

    def __call__(self, run: Run, h: Tensor, mapped: bool) -> Value:
        """The output ``[n, ...]``, or what all agents get alike and False."""
        for step in self.steps:
            h, mapped = step(run, h, mapped)
        return plain_layout(h, mapped), mapped


@dataclass(frozen=True)
class _Linear:
    weight: str
    bias: str | None
    sharing: Sharing


@dataclass(frozen=True)
class _Activation:
    module: nn.Module


@dataclass(frozen=True)
class _Convolution:
    module: nn.Module
    leaves: Leaves


_Layer = _Linear | _Convolution | _Activation | Step


@dataclass(frozen=True)
class _Lowering:
    """What rules need to know: the module's description, and the slot map of every parameter and buffer."""

    module_spec: ModuleSpec
    slots: Mapping[str, Sharing]
    n_agents: int
    train: bool

    def layers(self, module: nn.Module, name: str) -> Iterator[_Layer]:
        """The layers of a straight-line module, in order; ``name`` is its path with a dot behind."""
        kind = type(module)
        if altered(module):
            raise Unsupported(f"{_named(name, kind)} has hooks or methods of its own")
        if kind in _REWRITES:
            module = _REWRITES[kind](module)
            kind = type(module)
        if kind is Images:
            yield _images(self.children(module, name), lone=True)
        elif kind in _CONTAINERS:
            yield from self.children(module, name)
        elif kind is nn.Linear:
            yield self.linear(self.ordinary(module, name))
        elif kind in CONVOLUTIONS:
            yield _Convolution(module, self.ordinary(module, name))
        elif kind in ELEMENTWISE:
            self.ordinary(module, name)
            yield _Activation(module)
        elif isinstance(module, nn.TransformerEncoder) and kind is nn.TransformerEncoder:
            yield from self.children(module.layers, f"{name}layers.")
            if module.norm is not None:
                yield from self.layers(module.norm, f"{name}norm.")
        elif isinstance(module, nn.TransformerEncoderLayer) and kind is nn.TransformerEncoderLayer:
            yield self.transformer_layer(module, name)
        elif isinstance(module, ConvNet) and kind is ConvNet:
            yield _images(self.layers(module.layers, f"{name}layers."), lone=False)
        else:
            try:
                step = lower_layer(module, self.leaves(module, name), self.train)
            except Unsupported as why:
                raise Unsupported(f"{_named(name, kind)}: {why}") from None
            self.ordinary(module, name)
            yield step

    def children(self, module: nn.Module, name: str) -> Iterator[_Layer]:
        """The layers of all parts, in order; one part may stand in several places."""
        for key, child in module._modules.items():
            if child is None:
                raise Unsupported(f"{name}{key} is None")
            yield from self.layers(child, f"{name}{key}.")

    def ordinary(self, module: nn.Module, name: str) -> Leaves:
        """The leaves of a layer that has a rule, if they are what its class makes."""
        leaves = self.leaves(module, name)
        shapes = {
            k: (self.module_spec.params.get(n) or self.module_spec.buffers[n]).shape for k, n in leaves.names.items()
        }
        try:
            for prefix, part in _parts(module):
                own = {k.removeprefix(prefix): v for k, v in shapes.items() if k.rpartition(".")[0] == prefix[:-1]}
                check_ordinary(part, own)
        except Unsupported as why:
            raise Unsupported(f"{_named(name, type(module))}: {why}") from None
        return leaves

    def leaves(self, module: nn.Module, name: str) -> Leaves:
        """The leaves of a layer; a tied one goes by its first name."""
        template, names = self.module_spec, dict[str, str]()
        for attribute in [prefix + k for prefix, part in _parts(module) for k in (*part._parameters, *part._buffers)]:
            full = name + attribute
            full = template.param_aliases.get(full, template.buffer_aliases.get(full, full))
            if full in template.params or full in template.buffers:
                names[attribute] = full
        return Leaves(names, {attribute: self.slots[full] for attribute, full in names.items()})

    def transformer_layer(self, module: nn.TransformerEncoderLayer, name: str) -> Step:
        """One layer of a transformer: attention, and its other parts as steps of their own."""
        if type(module.self_attn) is not nn.MultiheadAttention or altered(module.self_attn):
            raise Unsupported(f"{_named(name, type(module))}: an attention of its own")

        def chain(*parts: str) -> Step:
            layers = [layer for part in parts for layer in self.part(module, name, part)]
            steps, _ = _merged(layers)
            return _in_order(steps)

        return encoder_layer(
            module,
            self.ordinary(module.self_attn, f"{name}self_attn."),
            (chain("norm1"), chain("norm2")),
            chain("dropout1"),
            chain("linear1", "activation", "dropout", "linear2", "dropout2"),
        )

    def part(self, module: nn.Module, name: str, part: str) -> Iterator[_Layer]:
        """The layers of one part of a module; of an activation that is a function, the module of it."""
        child = getattr(module, part)
        if child not in _FUNCTIONS and not isinstance(child, nn.Module):
            raise Unsupported(f"{_named(name, type(module))}: no rule for {part}={child!r}")
        return self.layers(_FUNCTIONS[child]() if child in _FUNCTIONS else child, f"{name}{part}.")

    def linear(self, leaves: Leaves) -> _Layer:
        """A linear layer; where weight and bias are shared apart, one on every agent's copy of both."""
        weight, bias, sharing = leaves.names["weight"], leaves.names.get("bias"), leaves.slots["weight"]
        if bias is None or leaves.slots["bias"] == sharing:
            return _Linear(weight, bias, sharing)
        inner = _dense((Affine(weight, bias),), Sharing.independent(self.n_agents))

        def step(run: Run, h: Tensor, mapped: bool) -> Value:
            names = (weight, bias)
            own = {name: gather_slots(run.params[name], self.slots[name]) for name in names}
            return inner(replace(run, params=own), h, mapped)

        return step


_FUNCTIONS: dict[Any, type[nn.Module]] = {F.relu: nn.ReLU, F.gelu: nn.GELU}


def _in_order(steps: Sequence[Step]) -> Step:
    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        for inner in steps:
            h, mapped = inner(run, h, mapped)
        return h, mapped

    return step


def _named(name: str, kind: type[nn.Module]) -> str:
    return f"{name.rstrip('.') or 'the module'} ({kind.__name__})"


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """A layer, and what it uses the leaves of without calling it."""
    return (
        [("", module), ("out_proj.", module.out_proj)] if isinstance(module, nn.MultiheadAttention) else [("", module)]
    )


def _runs(layers: Iterable[_Layer]) -> Iterator[tuple[_Layer, list[Callable[[Tensor], Tensor]]]]:
    """Each layer with the activations behind it; the first may write over what a product made."""
    held: _Layer | None = None
    acts: list[Callable[[Tensor], Tensor]] = []
    for layer in layers:
        if isinstance(layer, _Activation) and isinstance(held, (_Linear, _Convolution)):
            acts.append(activation(layer.module, fresh=not acts))
            continue
        if held is not None:
            yield held, acts
        held, acts = layer, []
    if held is not None:
        yield held, acts


def _merged(layers: Iterable[_Layer]) -> tuple[list[Step], tuple[tuple[Affine, ...], Sharing] | None]:
    """The steps: linear layers that share alike are one. And that one, where it is all there is."""
    steps: list[Step] = []
    run: list[Affine] = []
    sharing: Sharing | None = None
    others = 0

    def close() -> None:
        if run and sharing is not None:
            steps.append(_dense(tuple(run), sharing))

    for layer, acts in _runs(layers):
        if isinstance(layer, _Linear):
            if run and layer.sharing != sharing:
                close()
                run = []
                others += 1
            sharing = layer.sharing
            run.append(Affine(layer.weight, layer.bias, tuple(acts)))
            continue
        close()
        run = []
        others += 1
        if isinstance(layer, _Convolution):
            steps.append(convolution(layer.module, layer.leaves, acts))
        elif isinstance(layer, _Activation):
            steps.append(_pointwise(activation(layer.module, fresh=False)))
        else:
            steps.append(layer)
    close()
    return steps, (tuple(run), sharing) if sharing is not None and not others else None


def _pointwise(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda run, h, mapped: (function(h), mapped)


def _dense(layers: tuple[Affine, ...], sharing: Sharing) -> Step:
    """A run of linear layers, over any axes between the agents and the features."""

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        if h.ndim < 1 + mapped:
            raise Unsupported("a linear layer over a number")
        if sharing.is_shared:
            if mapped and h.ndim > 2 and not h.is_contiguous():  # as the caller had them, with the agents inside
                return run_shared(layers, run.params, h.movedim(0, -2)).movedim(-2, 0), mapped
            return run_shared(layers, run.params, h), mapped
        batch = h.shape[mapped:-1]
        flat = h.reshape(*h.shape[:mapped], math.prod(batch), h.shape[-1])
        out = (run_dense if mapped else run_dense_whole)(layers, run.params, flat, sharing)
        return out.reshape(run.n_agents, *batch, out.shape[-1]), True

    return step


def _images(layers: Iterable[_Layer], lone: bool) -> Step:
    """Any batch axes ahead of ``[C, H, W]``, which the layers see as one; a lone image as it is if ``lone``."""
    steps, _ = _merged(layers)
    inside = _in_order(steps)

    def step(run: Run, h: Tensor, mapped: bool) -> Value:
        lead = h.shape[mapped:-3]
        if lone and not lead:
            return inside(run, h, mapped)
        h, mapped = inside(run, h.reshape(*h.shape[:mapped], math.prod(lead), *h.shape[-3:]), mapped)
        return plain_layout(h, mapped).reshape(*h.shape[:mapped], *lead, *h.shape[mapped + 1 :]), mapped

    return step


def lower(module_spec: ModuleSpec, slots: Mapping[str, Sharing], n_agents: int, train: bool) -> Plan:
    """The plan of a template in one of the two modes, under slot maps for parameters and buffers.

    Raises:
        Unsupported: says which part has no rule, and why.
    """
    modules = [module for _, module in module_spec.modules()]
    if all(type(module) in (*PASSING, *_CONTAINERS) for module in modules):
        raise Unsupported("nothing is computed")  # the output would be a view of the input
    if any("train" in module.__dict__ for module in modules):
        raise Unsupported("a part has a mode of its own")
    lowering = _Lowering(module_spec, slots, n_agents, train)
    if not altered(modules[0]):
        cell = lower_cell(modules[0], lowering.leaves(modules[0], ""))
        if cell is not None:
            lowering.ordinary(modules[0], "")
            return Plan((), cell=cell)
    steps, dense = _merged(lowering.layers(modules[0], ""))
    if not steps:
        raise Unsupported("nothing is computed")
    return Plan(tuple(steps), dense)
