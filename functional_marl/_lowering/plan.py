"""The plan: a module made of known layers, turned once into steps that compute all agents at once.

The rules of the layers are in ``_lowering/rules/``. A plan holds no parameters and changes nothing that it holds: it is
torch operations on the stacked tensors. (An activation or a pooling layer is a copy of that layer, without leaves.) So
it is safe in threads, and ``grad``, ``vmap`` over populations, ``compile`` and ``export`` work on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering import rules as rules  # importing it registers the rules
from functional_marl._lowering.expected_leaves import altered, check_leaves
from functional_marl._lowering.fusion import LinearRun, fuse
from functional_marl._lowering.registry import RULES, Context, join
from functional_marl._lowering.rows import plain_layout
from functional_marl._lowering.steps import (
    Cell,
    Layer,
    Leaves,
    Lowered,
    PassThrough,
    Run,
    Step,
    Value,
    WholeNetwork,
)
from functional_marl._module.module_spec import ModuleSpec
from functional_marl._sharing import Sharing

__all__ = ["Plan", "lower"]


@dataclass(frozen=True)
class Plan:
    """Steps in order; or one ``cell``, a module of several inputs or outputs, and no steps."""

    steps: tuple[Step, ...]
    cell: Cell | None = None

    @property
    def linear_run(self) -> LinearRun | None:
        """The only step, if it is a run of linear layers."""
        only = self.steps[0] if len(self.steps) == 1 else None
        return only if isinstance(only, LinearRun) else None

    def __call__(self, run: Run, h: Tensor, mapped: bool) -> Value:
        """The output ``[n, ...]`` and True; or what is the same for all agents, and False."""
        for step in self.steps:
            h, mapped = step(run, h, mapped)
        return plain_layout(h, mapped), mapped


def lower(module_spec: ModuleSpec, slots: Mapping[str, Sharing], n_agents: int, train: bool) -> Plan:
    """The plan of a module in training or in evaluation, under slot maps for parameters and buffers.

    Raises:
        Unsupported: names the part that has no rule, and why.
    """
    modules = [module for _, module in module_spec.named_modules()]
    if any("train" in module.__dict__ for module in modules):
        raise Unsupported("a part has a train() of its own")
    lowered = _Lowering(module_spec, slots, n_agents, train).by_rule(modules[0], "")
    if isinstance(lowered, WholeNetwork):
        return Plan((), lowered.cell)
    layers = _as_list(lowered)
    if all(isinstance(layer, PassThrough) for layer in layers):
        raise Unsupported("nothing is computed")  # the output could be the input, or a view of it
    return Plan(tuple(fuse(layers)))


class _Located(Unsupported):
    """The message names the part."""


@dataclass(frozen=True)
class _Lowering:
    """Looks up the rule of a layer, checks the layer's leaves, and calls the rule."""

    module_spec: ModuleSpec
    slots: Mapping[str, Sharing]
    n_agents: int
    train: bool

    def by_rule(self, module: nn.Module, path: str) -> Lowered:
        """What the rule of the layer returns."""
        context = self.context(module, path)
        try:
            return RULES[type(module)].function(module, context)
        except _Located:
            raise
        except Unsupported as why:
            raise _located(module, path, why) from None

    def lower(self, module: nn.Module, path: str) -> list[Layer]:
        """A part of the network."""
        lowered = self.by_rule(module, path)
        if isinstance(lowered, WholeNetwork):
            raise _located(module, path, "it has a rule only as the whole network")
        return _as_list(lowered)

    def context(self, module: nn.Module, path: str) -> Context:
        """What the rule gets beside the layer, with the leaves checked."""
        rule = RULES.get(type(module))
        leaves = self._leaves(module, path)
        try:
            if altered(module):
                raise Unsupported("hooks or methods of its own")
            if rule is None:
                raise Unsupported(f"no rule for {type(module).__name__}")
            if rule.leaves is not None:
                check_leaves(module, rule.leaves(module), self._shapes(leaves))
        except Unsupported as why:
            raise _located(module, path, why) from None
        return Context(path, leaves, self.n_agents, self.train, self)

    def _leaves(self, module: nn.Module, path: str) -> Leaves:
        """The names and slot maps of the layer's own leaves; a tied leaf goes by its first name."""
        spec, names = self.module_spec, dict[str, str]()
        for attribute in (*module._parameters, *module._buffers):
            full = join(path, attribute)
            full = spec.aliases.get(full, full)
            if full in spec.params or full in spec.buffers:
                names[attribute] = full
        return Leaves(names, {attribute: self.slots[full] for attribute, full in names.items()})

    def _shapes(self, leaves: Leaves) -> dict[str, tuple[int, ...]]:
        spec = self.module_spec
        return {k: (spec.params.get(full) or spec.buffers[full]).shape for k, full in leaves.names.items()}


def _located(module: nn.Module, path: str, why: object) -> _Located:
    return _Located(f"{path or 'the module'} ({type(module).__name__}): {why}")


def _as_list(lowered: Layer | Sequence[Layer]) -> list[Layer]:
    return list(lowered) if isinstance(lowered, Sequence) else [lowered]
