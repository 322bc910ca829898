"""What one agent's module is, without its numbers: names, shapes, ties and initial buffers of its leaves."""

from __future__ import annotations

import copy
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._clean_context import no_active_modes
from functional_marl._errors import StructureError
from functional_marl._module import limitations as limits
from functional_marl._module.build import Build, build_repeatably, run_factory
from functional_marl._module.lazy import materialize
from functional_marl._module.leaves import (
    LeafNames,
    as_parameter,
    copy_without_leaves,
    deep_copy,
    get_leaves,
    nearest_parameters,
    remove_leaves,
    set_leaves,
)
from functional_marl._module.record_init import record_init
from functional_marl._module.replay_init import InitTrace, in_plain_context
from functional_marl._module.reset import ResetFactory
from functional_marl._module.stateless_call import StatelessCaller

__all__ = ["Build", "LeafSpec", "ModuleSpec"]

_NOT_PICKLED = ("_init_trace", "_last", "stateless")


@dataclass(frozen=True)
class LeafSpec:
    """One agent's leaf without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class ModuleSpec:
    """One agent's module as a value: what its leaves are, how it is built, and how it is called.

    Args:
        build: a factory of one agent's module, or a module, which is copied and not changed.
        example: a tuple of one agent's inputs. A lazy module is called on it once, to get its shapes.
    """

    # The module that the factory returned last. A factory that returns it again builds no new ones.
    _last: Callable[[], nn.Module | None] = staticmethod(lambda: None)

    @no_active_modes()
    def __init__(self, build: Build | nn.Module, example: tuple[Any, ...] | None) -> None:
        self.example = example
        if isinstance(build, nn.Module):
            limits.check_parts(build)
            pattern = deep_copy(build)
            materialize(pattern, example)
            self.build: Build | None = ResetFactory(pattern, LeafNames.of(pattern), copy_without_leaves(pattern))
        elif callable(build):
            self.build = build
        else:
            raise StructureError(
                f"build: expected a function that returns an nn.Module, or a module, got {type(build).__name__}"
            )
        module, random = build_repeatably(self.init_module)
        self._describe(module)
        self.random_buffers = tuple(name for name in random if name in self.buffers)  # their initial values need a key
        self._empty = copy_without_leaves(module)
        self._prepare()

    @classmethod
    def from_module(cls, module: nn.Module) -> ModuleSpec:
        """The spec of a module as it is: nothing is initialized now, and its resets need not fill every leaf.

        The spec keeps the module itself and removes its leaves.
        """
        spec = cls.__new__(cls)
        spec.example = None
        spec.random_buffers = ()
        spec._describe(module)
        spec._empty = module
        spec.build = ResetFactory(module, spec.names, module)
        remove_leaves(module)
        spec._prepare()
        return spec

    def _describe(self, module: nn.Module) -> None:
        self.names = LeafNames.of(module)
        leaves = {name: leaf.detach() for name, leaf in get_leaves(module, self.names).items()}
        self.params = {k: LeafSpec(tuple(leaves[k].shape), leaves[k].dtype) for k in self.names.params}
        self.buffers = {k: leaves[k] for k in self.names.buffers}  # their initial values
        self.aliases = self.names.aliases  # the further names of tied leaves: {alias: first name}
        # buffer -> the parameter whose device and dtype it takes, or ""
        self.nearest_param = nearest_parameters(self.buffers, {k: leaves[k] for k in self.names.params})
        self.why_not_vmap = next(filter(None, itertools.starmap(limits.why_not_vmap, module.named_modules())), "")

    def _prepare(self) -> None:
        """Make what is not pickled."""
        self._init_trace: tuple[InitTrace | None] | None = None  # recorded at the first init_params
        self.stateless = StatelessCaller(self._empty, self.buffers, self.aliases)

    # --- initialization --------------------------------------------------------------------------------

    def init_module(self, seed: int) -> nn.Module:
        """A newly initialized module, a function of the seed alone.

        Raises:
            StructureError: there is no factory, or it gives no module, or the same module twice.
        """
        module = run_factory(self.build, self.example, seed)
        if module is self._last():
            raise StructureError(
                "build: the function returned the same module twice; return a new one each time, or pass the "
                "module itself"
            )
        self._last = weakref.ref(module)
        return module

    def init_trace(self) -> InitTrace | None:
        """The recorded initialization, which fills one slot's leaves without building a module; None if impossible."""
        if self._init_trace is None:
            if not in_plain_context():  # in another context it may be possible
                return None
            self._init_trace = (None if self.build is None else record_init(self.init_module),)
        return self._init_trace[0]

    # --- the module ------------------------------------------------------------------------------------

    def make_module(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
        """An ordinary module in evaluation mode that holds copies of these tensors."""
        module = copy.deepcopy(self._empty).eval()
        leaves = {k: as_parameter(p.detach().clone()) for k, p in params.items()}
        set_leaves(module, self.names, {**leaves, **{k: b.detach().clone() for k, b in buffers.items()}})
        return module

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The submodules by name, for reading only."""
        return self._empty.named_modules()

    # --- pickling --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in _NOT_PICKLED}
        for name in ("build", "_empty"):
            if not _pickles(state[name]):
                state[name] = None
        if state["build"] is None and state["_empty"] is None:
            raise pickle.PicklingError(
                "neither the factory nor the module that it builds can be pickled (parametrizations cannot): "
                "define the factory at the top level of a module"
            )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_empty"] is None:
            self._empty = copy_without_leaves(self.init_module(0))
        self._prepare()


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever a user's __reduce__ raises
        return False
    return True
