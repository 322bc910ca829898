"""The network of one agent without its numbers: what a factory builds, as names, shapes and a skeleton."""

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

from functional_marl._clean_context import neutral, ordinary_tensors
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._module import limitations as limits
from functional_marl._module.leaves import (
    as_parameter,
    copy_without_leaves,
    deep_copy,
    forget_flat_weights,
    materialise,
    named_tensors,
    nearest_parameters,
    plain_tensors,
    set_leaves,
)
from functional_marl._module.replay import InitTrace, in_plain_context, record_init
from functional_marl._module.reset import Redraw
from functional_marl._module.stateless import StatelessCaller
from functional_marl._randomness.use_generator import GlobalState, drawing_from

__all__ = ["Build", "LeafSpec", "ModuleSpec"]

Build = Callable[[], nn.Module]


_NOT_PICKLED = ("_init_trace", "_last", "stateless")


@dataclass(frozen=True)
class LeafSpec:
    """What one agent has under a name."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class ModuleSpec:
    """Names, shapes, ties, initial buffers and the skeleton of the module that a factory builds.

    Args:
        build: a factory of one agent's module, or a module, which is copied and never touched.
        example: a tuple of one agent's inputs, run once through a lazy module to give it its shapes.
    """

    # The module drawn last: a factory that returns it again makes no fresh ones.
    _last: Callable[[], nn.Module | None] = staticmethod(lambda: None)

    @neutral()
    def __init__(self, build: Build | nn.Module, example: tuple[Any, ...] | None) -> None:
        self.example = example
        if isinstance(build, nn.Module):
            limits.check_parts(build)
            pattern = deep_copy(build)
            materialise(pattern, example)
            self.build: Build | None = Redraw(pattern, copy_without_leaves(pattern))
        elif callable(build):
            self.build = build
        else:
            raise StructureError(
                f"build: expected a function that returns an nn.Module, or a module, got {type(build).__name__}"
            )
        state = GlobalState()
        module = self.init_module(0)
        if state.moved() and not _same_leaves(module, self.init_module(0)):  # another thread moves it, too
            state.restore()
            raise RandomnessError(
                "build: the factory draws from torch's global generator where no key can serve it, as in a thread that "
                "it starts or in an extension; draw in the factory itself, by torch's functions"
            )
        limits.check_parts(module)
        plain = plain_tensors(module)
        other = self.init_module(1) if plain or next(module.buffers(), None) is not None else module
        again = plain_tensors(other)
        lost = [k for k, t in plain.items() if t.grad_fn is not None or not _same(t, again.get(k))]
        if lost:
            raise StructureError(
                f"build: the plain tensor attributes {lost} are drawn, or computed from parameters, in the factory; "
                "all agents would have those of one draw: make them buffers (register_buffer), or compute them in "
                "forward"
            )
        self._describe(module)
        self._empty = copy_without_leaves(module)
        self._prepare()
        # A buffer that two draws give differently is random: its initial value needs a key.
        again = named_tensors(other, "_buffers")[0]
        self.random_buffers = tuple(k for k, b in self.buffers.items() if not _same(b, again.get(k)))

    @classmethod
    def from_module(cls, module: nn.Module) -> ModuleSpec:
        """The template of a module as it is: nothing is drawn now, and its resets need not fill every leaf.

        The module is taken over, and loses its tensors: it becomes the skeleton.
        """
        template = cls.__new__(cls)
        template.example = None
        template.random_buffers = ()
        template._describe(module)
        template._empty = module
        template.build = Redraw(module, module)
        for part in module.modules():
            for place in (part._parameters, part._buffers):
                place.update(dict.fromkeys(place))
            forget_flat_weights(part)
        template._prepare()
        return template

    def _describe(self, module: nn.Module) -> None:
        params, param_aliases = named_tensors(module, "_parameters")
        self.buffers, buffer_aliases = named_tensors(module, "_buffers")
        self.aliases = param_aliases | buffer_aliases  # the further names of tied leaves: {alias: first name}
        self.params = {k: LeafSpec(tuple(p.shape), p.dtype) for k, p in params.items()}
        # the parameter whose device and dtype a buffer takes, or ""
        self.nearest_param = nearest_parameters(self.buffers, params)
        self.why_not_vmap = next(filter(None, itertools.starmap(limits.why_not_vmap, module.named_modules())), "")
        # train -> why "auto" does not map this module, or ""
        self.no_vmap = {False: self.why_not_vmap, True: self.why_not_vmap}
        self.unmapped: set[tuple[Any, ...]] = set()  # the kinds of calls that vmap failed on
        self.warned = False  # whether the user knows that "auto" takes the loop

    def _prepare(self) -> None:
        """What is not pickled: the skeletons in use, one pair a thread and one pair for dynamo, made when needed."""
        self._init_trace: tuple[InitTrace | None] | None = None  # recorded at the first init_params
        self.stateless = StatelessCaller(self._empty, self.buffers, self.aliases)

    @ordinary_tensors()
    def init_module(self, seed: int) -> nn.Module:
        """A freshly initialised module, a function of the seed alone.

        Raises:
            StructureError: the network was unpickled without its factory, or the factory gives no module.
        """
        if self.build is None:
            raise StructureError(
                "this network was unpickled and its factory could not be pickled (a lambda or a local function): "
                "apply works, fresh parameters do not; define the factory at the top level of a module"
            )
        with drawing_from(seed):
            module = self.build()
            if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise StructureError(f"build: expected a function that returns an nn.Module, got {module!r}")
            if not isinstance(self.build, Redraw):
                materialise(module, self.example)
        if module is self._last():
            raise StructureError(
                "build: the function returned the same module twice; return a new one each time, or pass the "
                "module itself"
            )
        self._last = weakref.ref(module)
        return module

    def init_trace(self) -> InitTrace | None:
        """How to fill one slot's leaves without building a module, if the factory is of that kind."""
        if self._init_trace is None:
            if not in_plain_context():  # another call may find it so
                return None
            self._init_trace = (None if self.build is None else record_init(self.init_module),)
        return self._init_trace[0]

    def make_module(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
        """An ordinary module in evaluation mode that holds copies of these tensors."""
        module = copy.deepcopy(self._empty).eval()
        leaves = {k: as_parameter(p.detach().clone()) for k, p in params.items()}
        set_leaves(module, {**leaves, **{k: b.detach().clone() for k, b in buffers.items()}}, self.aliases)
        return module

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The submodules by name, for reading only."""
        return self._empty.named_modules()

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


def _same(a: Tensor, b: Tensor | None) -> bool:
    if a.is_meta:
        return True
    if b is None or a.shape != b.shape:
        return False
    try:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    except RuntimeError:  # fake tensors have no numbers
        return True


def _same_leaves(a: nn.Module, b: nn.Module) -> bool:
    return all(
        _same(leaf, named_tensors(b, kind)[0].get(name))
        for kind in ("_parameters", "_buffers")
        for name, leaf in named_tensors(a, kind)[0].items()
    )


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever a user's __reduce__ raises
        return False
    return True
