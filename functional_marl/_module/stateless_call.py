"""One agent's forward with tensors from outside, as ``torch.func.functional_call``. Writing into parameters raises."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from functional_marl import _torch_compat
from functional_marl._errors import StructureError
from functional_marl._module import limitations as limits
from functional_marl._module.code_reading import Code, Writes, read_code
from functional_marl._module.stateless_module import StatelessModule
from functional_marl._module.write_detection import DataWrites, clone_counting_writes, was_written

__all__ = ["StatelessCaller"]


class StatelessCaller:
    """Calls a module without leaves on parameters and buffers that are given at each call.

    It keeps a few copies of the module: a call puts its tensors into a copy, so each thread has its own. Dynamo
    has a pair of its own, one for each mode, because it cannot trace the copying.

    Args:
        empty: one agent's module without leaves.
        buffers: the names of its buffers.
        aliases: the further names of tied leaves, ``{alias: first name}``.
    """

    def __init__(self, empty: nn.Module, buffers: Collection[str], aliases: Mapping[str, str]) -> None:
        self._empty, self._buffers, self._aliases = empty, buffers, aliases
        self._local = threading.local()
        parts = list(empty.named_modules())
        self._recurrent = any(isinstance(part, nn.RNNBase) for _, part in parts)
        self._attends = any(isinstance(part, limits.ATTENDING) for _, part in parts)
        # torch scales these weights in place in the forward
        self._renormed = [
            aliases.get(name, name)
            for name in (f"{path}.weight".lstrip(".") for path, part in parts if limits.renorms(part))
        ]
        self._needs_rules: bool | None = None
        self._code: Code | None = None
        self._traced: tuple[StatelessModule, StatelessModule] | None = None
        self._tracked: list[str] = []

    # --- the call --------------------------------------------------------------------------------------

    def module(self, train: bool) -> StatelessModule:
        """A copy in training or evaluation mode that belongs to this thread and that no call is using."""
        local = self._local.__dict__
        if "copies" not in local:
            local["copies"] = ([], [])
        copies: list[StatelessModule] = local["copies"][train]
        for copy in copies:
            if not copy.in_use:
                return copy
        copies.append(StatelessModule(self._empty, train))
        return copies[-1]

    def call(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool,
    ) -> Any:
        """One agent's forward. ``buffers`` is updated with the tensors that the forward leaves in their places.

        Other attributes that a forward sets on the module are forgotten.

        Raises:
            StructureError: the module writes into its parameters.
        """
        # `torch.compiler.is_compiling` would not do: it is true in all threads while one of them compiles.
        if torch.compiler.is_dynamo_compiling():
            return self._call_in_trace(params, buffers, args, kwargs, train)
        module, writes = self.module(train), self.may_write_leaves()
        first = not (module.writes_checked or torch.compiler.is_compiling())
        if not (first or writes):
            return self._with_tensors(lambda t: module.call(t, args, kwargs), params, buffers)
        # The module gets clones: their version shows a write, and the caller's tensors stay as they are.
        params = {name: clone_counting_writes(param) for name, param in params.items()}
        given = dict(buffers)
        data = DataWrites() if first or self.may_write_by_data() else None
        with data or contextlib.nullcontext():
            out = self._with_tensors(lambda t: module.call(t, args, kwargs), params, buffers)
        changed = [name for name, param in params.items() if was_written(param) and name not in self._renormed]
        if data is not None and data.taken:
            changed += [name for name, param in params.items() if data.wrote(param)]
            # The version does not count this write. The caller sees it by another tensor in the buffer's place.
            buffers.update({name: b.view(b.shape) for name, b in buffers.items() if data.wrote(given[name])})
            if any(map(data.wrote, module.constants)):
                module.copy_module()
        if changed:
            raise StructureError(
                f"params: the module writes into {sorted(set(changed))} in its forward, and apply may not change "
                "parameters; compute a new tensor there, or make them buffers"
            )
        module.writes_checked = data is None or not data.taken  # a module that takes `.data` is checked at every call
        return out

    def _with_tensors(
        self,
        forward: Callable[[dict[str, Tensor]], Any],
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
    ) -> Any:
        """Call a function of all leaves, with tied ones under all their names."""
        tensors = {**params, **buffers}
        for name in self._renormed:
            tensors[name] = tensors[name].clone()
        for alias, name in self._aliases.items():
            tensors[alias] = tensors[name]
        with limits.differentiable_attention() if self._attends else contextlib.nullcontext():
            out = forward(tensors)
        for name in buffers:
            buffers[name] = tensors[name]
        return out

    # --- under torch.compile ---------------------------------------------------------------------------

    def _call_in_trace(
        self,
        params: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool,
    ) -> Any:
        self._have_traced()
        assert self._traced is not None
        traced = self._traced[train]
        if self.may_write_leaves():  # a trace does not see writes
            params = {name: param.clone() for name, param in params.items()}
        if self.may_change_attributes():
            traced.clone_constants_in_trace()
        out = self._with_tensors(lambda t: functional_call(traced.module, t, args, kwargs), params, buffers)
        if self.may_change_attributes():
            traced.restore_in_trace()
        return out

    @_torch_compat.constant_result
    def _have_traced(self) -> None:
        """Make the pair for dynamo, which runs this method while it traces (it traces one thread at a time)."""
        if self._traced is None:
            self._traced = (StatelessModule(self._empty, False), StatelessModule(self._empty, True))
            self._tracked = [
                name
                for path, part in self._traced[True].module.named_modules()
                if part.training and getattr(part, "track_running_stats", False)
                for name in (f"{path}.{buffer}".lstrip(".") for buffer in part._buffers)
                if name in self._buffers
            ]

    def trace_constants(self, train: bool) -> None:
        """Let dynamo see the module's plain tensors before a transform: inside one, strict export cannot add them."""
        self._have_traced()
        assert self._traced is not None
        for constant in self._traced[train].constants:
            constant.dim()

    def tracked_buffers(self) -> list[str]:
        """The buffers that a training step is known to change. Dynamo needs this list: a trace does not see writes."""
        self._have_traced()
        return self._tracked

    # --- facts about the module ------------------------------------------------------------------------

    @_torch_compat.constant_result
    def needs_batching_rules(self) -> bool:
        """Whether vmap lacks a rule for a part of the module, and `_lowering/rules/` has one."""
        if self._needs_rules is None:
            self._needs_rules = any(limits.lacks_batching_rule(part) for part in self._empty.modules())
        return self._needs_rules

    def needs_only_params(self) -> bool:
        """Whether a call under vmap needs only that parameters are put in their places."""
        special = self._buffers or self._recurrent or self._attends or self._renormed
        return not (special or self.needs_batching_rules() or self.may_write_leaves())

    def _read(self) -> Code:
        if self._code is None:
            self._code = read_code(self._empty)
        return self._code

    @_torch_compat.constant_result
    def may_write_leaves(self) -> bool:
        """Whether a forward may write into its leaves, as far as its code shows."""
        return self._read().writes is not Writes.NEVER

    @_torch_compat.constant_result
    def may_write_by_data(self) -> bool:
        """Whether it may write into them through ``.data``."""
        return self._read().writes is Writes.UNCOUNTED

    @_torch_compat.constant_result
    def may_change_attributes(self) -> bool:
        """Whether it may write into anything that the module holds."""
        return self._read().stores
