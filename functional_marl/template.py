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
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import BaseTorchFunctionMode

from functional_marl import _torch_compat
from functional_marl.errors import StructureError
from functional_marl.modes import drawing_from
from functional_marl.skeleton import (
    Skeleton,
    copied,
    emptied,
    fill,
    forget_flat_weights,
    is_float,
    materialise,
    named_tensors,
    parameter,
    plain_tensors,
    skeleton_pair,
    written,
)
from functional_marl.tape import Tape, record

__all__ = ["Build", "Leaf", "Template"]

Build = Callable[[], nn.Module]


_LOOPED = (nn.RNNBase, nn.LSTMCell)
_ATTENDING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_NOT_PICKLED = ("_attends", "_tape", "_last", "_local", "_recurrent", "_renormed", "_traced", "_tracked", "_unruled")


@dataclass(frozen=True)
class Leaf:
    """What one agent has under a name."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Template:
    """Names, shapes, ties, initial buffers and the skeleton of the module that a factory builds.

    Args:
        build: a factory of one agent's module, or a module, which is copied and never touched.
        example: a tuple of one agent's inputs, run once through a lazy module to give it its shapes.
    """

    # The module drawn last: a factory that returns it again makes no fresh ones.
    _last: Callable[[], nn.Module | None] = staticmethod(lambda: None)

    def __init__(self, build: Build | nn.Module, example: tuple[Any, ...] | None) -> None:
        self.example = example
        if isinstance(build, nn.Module):
            pattern = copied(build)
            materialise(pattern, example)
            self.build: Build | None = _Redraw(pattern, emptied(pattern))
        elif callable(build):
            self.build = build
        else:
            raise StructureError(
                f"build: expected a function that returns an nn.Module, or a module, got {type(build).__name__}"
            )
        module = self.draw(0)
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            raise StructureError("build: TorchScript does not take parameters from outside; give the plain nn.Module")
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
    def of(cls, module: nn.Module) -> Template:
        """The template of a module as it is: nothing is drawn now, and its resets need not fill every leaf.

        The module is taken over, and loses its tensors: it becomes the skeleton.
        """
        template = cls.__new__(cls)
        template.example = None
        template.random_buffers = ()
        template._describe(module)
        template._empty = module
        template.build = _Redraw(module, module)
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
        self.never_vmap = next((why for why in itertools.starmap(_why_not_vmap, module.named_modules()) if why), "")
        # train -> why "auto" does not map this module, or ""
        self.no_vmap = {False: self.never_vmap, True: self.never_vmap}
        self.unmapped: set[tuple[Any, ...]] = set()  # the kinds of calls that vmap failed on

    def _prepare(self) -> None:
        """What is not pickled: the skeletons in use, one pair a thread and one pair for dynamo, made when needed."""
        self._tape: tuple[Tape | None] | None = None  # recorded at the first init_params
        self._local = threading.local()
        self._recurrent = any(isinstance(part, nn.RNNBase) for _, part in self.modules())
        self._attends = any(isinstance(part, _ATTENDING) for _, part in self.modules())
        # torch scales these weights in place in the forward
        self._renormed = [
            self.param_aliases.get(name, name)
            for name in (f"{path}.weight".lstrip(".") for path, part in self.modules() if _renorms(part))
        ]
        self._rewritten = [k for k in _torch_compat.written_in_evaluation(self._empty) if k in self.buffers]
        self._tracked: list[str] = []
        self._unruled: bool | None = None
        self._traced: tuple[nn.Module, nn.Module] | None = None

    def _pair(self) -> tuple[nn.Module, nn.Module]:
        # In a transform of torch.func the copies of plain tensors would belong to that transform.
        with _torch_compat.outside_transforms():
            return skeleton_pair(self._empty)

    @_torch_compat.constant_result
    def _have_traced(self) -> None:
        """Make the pair for dynamo, which runs this while it traces: see below."""
        if self._traced is None:
            self._traced = self._pair()
            self._tracked = [
                name
                for path, part in self._traced[True].named_modules()
                if part.training and getattr(part, "track_running_stats", False)
                for name in (f"{path}.{buffer}".lstrip(".") for buffer in part._buffers)
                if name in self.buffers
            ]

    def tracked(self) -> list[str]:
        """The buffers that a training step is known to change, for dynamo, which sees no writes."""
        self._have_traced()
        return self._tracked

    @_torch_compat.constant_result
    def unruled(self) -> bool:
        """Whether torch.func.vmap lacks a rule for a part, of the kind that evaluate/rules.py has."""
        if self._unruled is None:
            self._unruled = any(_unruled(part) for _, part in self.modules())
        return self._unruled

    def bare(self) -> bool:
        """Whether a mapped call needs nothing but parameters put in their places."""
        return not (self.buffers or self._recurrent or self._attends or self._renormed or self.unruled())

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
        with drawing_from(seed):
            module = self.build()
            if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise StructureError(f"build: expected a function that returns an nn.Module, got {module!r}")
            if not isinstance(self.build, _Redraw):
                materialise(module, self.example)
        if module is self._last():
            raise StructureError(
                "build: the function returned the same module twice; return a new one each time, or pass the "
                "module itself"
            )
        self._last = weakref.ref(module)
        return module

    def tape(self) -> Tape | None:
        """How to fill one slot's leaves without building a module, if the factory is of that kind."""
        if self._tape is None:
            self._tape = (None if self.build is None else record(self.draw),)
        return self._tape[0]

    def skeleton(self, train: bool) -> Skeleton:
        """This thread's skeleton in one of the two modes."""
        local = self._local.__dict__
        if "skeletons" not in local:
            local["skeletons"] = [Skeleton(module) for module in self._pair()]
        return local["skeletons"][train]

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
            traced = self._traced[int(train)]  # see apply
            return self._call(lambda t: functional_call(traced, t, args, kwargs), params, buffers, train)
        skeleton = self.skeleton(train)
        watched = not (skeleton.tried or torch.compiler.is_compiling())
        if watched:  # the first call gets clones: a write shows in their version and nobody loses a number
            params = {name: param.clone() for name, param in params.items()}
        try:
            out = self._call(lambda t: skeleton.call(t, args, kwargs), params, buffers, train)
        finally:
            for part in skeleton.module.modules() if self._recurrent else ():
                forget_flat_weights(part)
            skeleton.restore()
        if watched:
            changed = [name for name, param in params.items() if written(param) and name not in self._renormed]
            if changed:
                raise StructureError(
                    f"params: the module writes into {changed} in its forward, and apply may not change parameters; "
                    "compute a new tensor there, or make them buffers"
                )
            skeleton.tried = not torch.is_inference_mode_enabled()  # where nothing counts writes
        return out

    def _call(
        self,
        forward: Callable[[dict[str, Tensor]], Any],
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        train: bool,
    ) -> Any:
        tensors = {**params, **buffers}
        kept = {} if train else {name: buffers[name] for name in self._rewritten}
        for name in (*self._renormed, *kept):
            tensors[name] = tensors[name].clone()
        for alias, name in (*self.param_aliases.items(), *self.buffer_aliases.items()):
            tensors[alias] = tensors[name]
        with _differentiable_attention() if self._attends else contextlib.nullcontext():
            out = forward(tensors)
        for name in buffers:
            buffers[name] = kept.get(name, tensors[name])
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


class _Redraw:
    """A factory made of a module and its skeleton: copies redrawn by their own ``reset_parameters``."""

    def __init__(self, module: nn.Module, skeleton: nn.Module) -> None:
        params, self.param_aliases = named_tensors(module, "_parameters")
        self.leaves = {k: (p.shape, p.dtype, p.device) for k, p in params.items()}
        self.integers = {k: p for k, p in params.items() if not is_float(p)}  # no NaN to mark these: kept
        self.buffers, self.buffer_aliases = named_tensors(module, "_buffers")
        self.skeleton = skeleton

    def __call__(self) -> nn.Module:
        module = copy.deepcopy(self.skeleton)
        # NaN marks what no reset has filled.
        fresh = {
            k: parameter(
                self.integers[k].clone()
                if k in self.integers
                else torch.full(shape, torch.nan, dtype=dtype, device=device)
            )
            for k, (shape, dtype, device) in self.leaves.items()
        }
        fill(module, fresh, self.param_aliases)
        fill(module, {k: b.clone() for k, b in self.buffers.items()}, self.buffer_aliases)
        for part in reversed(list(module.modules())):  # the parts before the whole, as constructors do
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
        bare = [k for k, p in fresh.items() if bool(torch.isnan(p.detach()).any())]
        if bare:
            raise StructureError(
                f"build: a module was given, and no reset_parameters() fills {bare}; give a factory instead: "
                "a function that builds the module anew"
            )
        return module


def _why_not_vmap(name: str, part: nn.Module) -> str:
    """Why ``torch.func.vmap`` cannot run a module with this part, or runs it wrongly; or nothing."""
    kind = type(part).__name__
    where = f" ({name!r})" if name else ""
    if isinstance(part, _LOOPED):
        return f"torch.func.vmap has no batching rule for {kind}{where}"
    # Mapped weights lose the padding index, and mapped indices count in the frequencies of all agents.
    if isinstance(part, nn.Embedding) and (part.padding_idx is not None or part.scale_grad_by_freq):
        return f"torch.func.vmap trains {kind}{where} wrongly with padding_idx or scale_grad_by_freq"
    return ""


def _renorms(part: nn.Module) -> bool:
    return isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None


def _unruled(part: nn.Module) -> bool:
    if isinstance(part, (nn.GRUCell, nn.RNNCell, nn.Bilinear, _torch_compat.WeightNorm)):
        return True
    return any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values())


def _same(a: Tensor, b: Tensor | None) -> bool:
    if a.is_meta:
        return True
    return b is not None and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever a user's __reduce__ raises
        return False
    return True


def _differentiable_attention() -> contextlib.AbstractContextManager[Any]:
    """Keep torch's attention off its inference kernel inside functorch transforms.

    It asks ``requires_grad``, which a tensor mapped by vmap does not show, and then takes a kernel that has
    no derivative and no batching rule. Any torch function mode, local to the thread, says no to it.
    """
    if torch.compiler.is_dynamo_compiling() or _torch_compat.in_transform():
        return BaseTorchFunctionMode()
    return contextlib.nullcontext()
