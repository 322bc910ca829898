"""The network of one agent without its numbers: what a factory builds, as names, shapes and a skeleton."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from functional_marl import _torch_compat
from functional_marl._clean_context import no_active_modes, regular_tensors
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._module import limitations as limits
from functional_marl._module.replay import InitTrace, ordinary, record
from functional_marl._module.reset import Redraw
from functional_marl._module.stateless import (
    StatelessModule,
    copied,
    counted,
    emptied,
    fill,
    forget_flat_weights,
    materialise,
    named_tensors,
    nearest_parameters,
    parameter,
    plain_tensors,
    written,
)
from functional_marl._module.write_detection import Code, DataWrites, Writes, read_code
from functional_marl._randomness.rng_state import GlobalGenerators
from functional_marl._randomness.use_generator import sampling_from_seed

__all__ = ["Build", "Leaf", "ModuleSpec"]

Build = Callable[[], nn.Module]


_NOT_PICKLED = (
    *("_attends", "_code", "_last", "_local", "_recurrent", "_renormed", "_tape", "_traced", "_tracked", "_unruled"),
)


@dataclass(frozen=True)
class Leaf:
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

    @no_active_modes()
    def __init__(self, build: Build | nn.Module, example: tuple[Any, ...] | None) -> None:
        self.example = example
        if isinstance(build, nn.Module):
            limits.check_parts(build)
            pattern = copied(build)
            materialise(pattern, example)
            self.build: Build | None = Redraw(pattern, emptied(pattern))
        elif callable(build):
            self.build = build
        else:
            raise StructureError(
                f"build: expected a function that returns an nn.Module, or a module, got {type(build).__name__}"
            )
        state = GlobalGenerators()
        module = self.draw(0)
        if state.changed() and not _same_leaves(module, self.draw(0)):  # another thread moves it, too
            state.restore()
            raise RandomnessError(
                "build: the factory draws from torch's global generator where no key can serve it, as in a thread that "
                "it starts or in an extension; draw in the factory itself, by torch's functions"
            )
        limits.check_parts(module)
        plain = plain_tensors(module)
        other = self.draw(1) if plain or next(module.buffers(), None) is not None else module
        again = plain_tensors(other)
        lost = [k for k, t in plain.items() if t.grad_fn is not None or not _same(t, again.get(k))]
        if lost:
            raise StructureError(
                f"build: the plain tensor attributes {lost} are drawn, or computed from parameters, in the factory; "
                "all agents would have those of one draw: make them buffers (register_buffer), or compute them in "
                "forward"
            )
        self._describe(module)
        self._empty = emptied(module)
        self._prepare()
        # A buffer that two draws give differently is random: its initial value needs a key.
        again = named_tensors(other, "_buffers")[0]
        self.random_buffers = tuple(k for k, b in self.buffers.items() if not _same(b, again.get(k)))

    @classmethod
    def of(cls, module: nn.Module) -> ModuleSpec:
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
        params, self.param_aliases = named_tensors(module, "_parameters")
        self.buffers, self.buffer_aliases = named_tensors(module, "_buffers")
        self.params = {k: Leaf(tuple(p.shape), p.dtype) for k, p in params.items()}
        # the parameter whose device and dtype a buffer takes, or ""
        self.beside = nearest_parameters(self.buffers, params)
        self.never_vmap = next(filter(None, itertools.starmap(limits.why_not_vmap, module.named_modules())), "")

    def _prepare(self) -> None:
        """What is not pickled: the skeletons in use, one pair a thread and one pair for dynamo, made when needed."""
        self._tape: tuple[InitTrace | None] | None = None  # recorded at the first init_params
        self._local = threading.local()
        self._recurrent = any(isinstance(part, nn.RNNBase) for _, part in self.modules())
        self._attends = any(isinstance(part, limits.ATTENDING) for _, part in self.modules())
        # torch scales these weights in place in the forward
        self._renormed = [
            self.param_aliases.get(name, name)
            for name in (f"{path}.weight".lstrip(".") for path, part in self.modules() if limits.renorms(part))
        ]
        self._tracked: list[str] = []
        self._unruled: bool | None = None
        self._code: Code | None = None
        self._traced: tuple[StatelessModule, StatelessModule] | None = None

    @_torch_compat.constant_result
    def _have_traced(self) -> None:
        """Make the pair for dynamo, which runs this while it traces: see below."""
        if self._traced is None:
            self._traced = (StatelessModule(self._empty, False), StatelessModule(self._empty, True))
            self._tracked = [
                name
                for path, part in self._traced[True].module.named_modules()
                if part.training and getattr(part, "track_running_stats", False)
                for name in (f"{path}.{buffer}".lstrip(".") for buffer in part._buffers)
                if name in self.buffers
            ]

    def show_constants(self, train: bool) -> None:
        """Let dynamo see the plain tensors ahead of a transform, in which strict export cannot take them in."""
        self._have_traced()
        assert self._traced is not None
        for constant in self._traced[train].constants:
            constant.dim()

    def tracked(self) -> list[str]:
        """The buffers that a training step is known to change, for dynamo, which sees no writes."""
        self._have_traced()
        return self._tracked

    @_torch_compat.constant_result
    def unruled(self) -> bool:
        """Whether torch.func.vmap lacks a rule for a part, and _lowering/rules/ has one."""
        if self._unruled is None:
            self._unruled = any(limits.unruled_part(part) for _, part in self.modules())
        return self._unruled

    def bare(self) -> bool:
        """Whether a mapped call needs nothing but parameters put in their places."""
        special = self.buffers or self._recurrent or self._attends or self._renormed
        return not (special or self.unruled() or self.writes())

    @regular_tensors()
    def draw(self, seed: int) -> nn.Module:
        """A freshly initialised module, a function of the seed alone.

        Raises:
            StructureError: the network was unpickled without its factory, or the factory gives no module.
        """
        if self.build is None:
            raise StructureError(
                "this network was unpickled and its factory could not be pickled (a lambda or a local function): "
                "apply works, fresh parameters do not; define the factory at the top level of a module"
            )
        with sampling_from_seed(seed):
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

    def tape(self) -> InitTrace | None:
        """How to fill one slot's leaves without building a module, if the factory is of that kind."""
        if self._tape is None:
            if not ordinary():  # another call may find it so
                return None
            self._tape = (None if self.build is None else record(self.draw),)
        return self._tape[0]

    def skeleton(self, train: bool) -> StatelessModule:
        """One of this thread's skeletons in one of the two modes that no call is using."""
        local = self._local.__dict__
        if "skeletons" not in local:
            local["skeletons"] = ([], [])
        kept: list[StatelessModule] = local["skeletons"][train]
        for skeleton in kept:
            if not skeleton.busy:
                return skeleton
        kept.append(StatelessModule(self._empty, train))
        return kept[-1]

    def call(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool,
    ) -> Any:
        """One agent's forward. ``buffers`` is updated with what the module leaves in its place.

        Other attributes that a forward sets on the module are forgotten.

        Raises:
            StructureError: the module writes into its parameters.
        """
        # Dynamo cannot trace a deepcopy and gets a pair of its own (it traces one thread at a time).
        # `torch.compiler.is_compiling` would not do: it is true for all threads while one compiles.
        if torch.compiler.is_dynamo_compiling():
            self._have_traced()
            assert self._traced is not None
            traced = self._traced[train]
            if self.writes():  # in a trace no write is seen
                params = {name: param.clone() for name, param in params.items()}
            if self.stores():
                traced.lend_traced()
            out = self._call(lambda t: functional_call(traced.module, t, args, kwargs), params, buffers)
            if self.stores():
                traced.restore_traced()
            return out
        skeleton, writes = self.skeleton(train), self.writes()
        first = not (skeleton.tried or torch.compiler.is_compiling())
        if not (first or writes):
            return self._call(lambda t: skeleton.call(t, args, kwargs), params, buffers)
        # Clones: a write shows in their version, and nobody loses a number.
        params = {name: counted(param) for name, param in params.items()}
        given = dict(buffers)
        data = DataWrites() if first or self.takes_data() else None
        with data or contextlib.nullcontext():
            out = self._call(lambda t: skeleton.call(t, args, kwargs), params, buffers)
        changed = [name for name, param in params.items() if written(param) and name not in self._renormed]
        if data is not None and data.taken:
            changed += [name for name, param in params.items() if data.wrote(param)]
            # another tensor in its place is how a change of a buffer shows that no version shows
            buffers.update({name: b.view(b.shape) for name, b in buffers.items() if data.wrote(given[name])})
            if any(map(data.wrote, skeleton.constants)):
                skeleton.make()
        if changed:
            raise StructureError(
                f"params: the module writes into {sorted(set(changed))} in its forward, and apply may not change "
                "parameters; compute a new tensor there, or make them buffers"
            )
        skeleton.tried = data is None or not data.taken  # what takes `.data` is watched at every call
        return out

    def _read(self) -> Code:
        if self._code is None:
            self._code = read_code(self._empty)
        return self._code

    @_torch_compat.constant_result
    def writes(self) -> bool:
        """Whether a forward may write into its leaves, as far as its code shows."""
        return self._read().writes is not Writes.NEVER

    @_torch_compat.constant_result
    def takes_data(self) -> bool:
        """Whether it may do so through ``.data``."""
        return self._read().writes is Writes.UNCOUNTED

    @_torch_compat.constant_result
    def stores(self) -> bool:
        """Whether it may write into anything that the module holds."""
        return self._read().stores

    def _call(
        self,
        forward: Callable[[dict[str, Tensor]], Any],
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
    ) -> Any:
        tensors = {**params, **buffers}
        for name in self._renormed:
            tensors[name] = tensors[name].clone()
        for alias, name in (*self.param_aliases.items(), *self.buffer_aliases.items()):
            tensors[alias] = tensors[name]
        with limits.differentiable_attention() if self._attends else contextlib.nullcontext():
            out = forward(tensors)
        for name in buffers:
            buffers[name] = tensors[name]
        return out

    def module(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
        """An ordinary module in evaluation mode that holds copies of these tensors."""
        module = copy.deepcopy(self._empty).eval()
        fill(module, {k: parameter(p.detach().clone()) for k, p in params.items()}, self.param_aliases)
        fill(module, {k: b.detach().clone() for k, b in buffers.items()}, self.buffer_aliases)
        return module

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
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
            self._empty = emptied(self.draw(0))
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
