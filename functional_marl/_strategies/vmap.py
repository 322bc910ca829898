"""Strategy "vmap": all agents by ``torch.func.vmap``, for any module whose operations have batching rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import RandomnessError, Unsupported
from functional_marl._network_settings import NetworkSettings
from functional_marl._pytrees import structure
from functional_marl._randomness.rng_state import rng_states, set_rng_states
from functional_marl._strategies.base import (
    FALLBACK_ERRORS,
    FINAL_ERRORS,
    Call,
    Evaluator,
    Result,
    remember,
    sparse_reason,
)
from functional_marl._strategies.loop import evaluate_loop
from functional_marl._strategies.under_torch_compile import try_vmap
from functional_marl._strategies.vmap_call import evaluate_vmap
from functional_marl._strategies.vmap_fast_path import VmapFastPath
from functional_marl._strategies.vmap_faults import VmapFault
from functional_marl._torch_compat import any_autocast, constant_result, has_global_backward_hooks

__all__ = ["VmapEvaluator"]


class VmapEvaluator(Evaluator):
    """vmap over one network in one mode, and what is known about which calls it computes correctly."""

    name = "vmap"

    def __init__(self, net: NetworkSettings, train: bool) -> None:
        self.net, self.train = net, train
        self.failure = ""  # why vmap failed last, on any kind of call
        self.failed: set[tuple[Any, ...]] = set()  # the kinds of calls that it failed on
        self.watched: set[tuple[Any, ...]] = set()  # the kinds of calls that it is known to compute as the loop
        fast = VmapFastPath.of(net, train, lambda: bool(self.failure))
        if fast is not None:
            self.fast_path = fast

    @classmethod
    def prepare(cls, net: NetworkSettings, train: bool) -> VmapEvaluator | Unsupported:
        """Unsupported where vmap has no rule for a part of the module, or computes it wrongly."""
        why = net.module_spec.why_not_vmap
        return Unsupported(why) if why else cls(net, train)

    def evaluate(self, call: Call) -> Result | Unsupported:
        """All agents in one mapped call; unsupported where vmap is known to fail or to compute something else."""
        in_trace = torch.compiler.is_dynamo_compiling()
        why = sparse_reason(call) or (self._unsupported_in_trace(call) if in_trace else self.unsupported_now())
        if why:
            return Unsupported(why)
        try:
            return self._watched(call)
        except VmapFault as fault:
            return Unsupported(str(fault))
        except FALLBACK_ERRORS as error:
            if call.net.randomness == "error" and not isinstance(error, FINAL_ERRORS):
                _raise_named(call)
            raise

    def unsupported_now(self) -> str:
        """Whether global backward hooks are registered."""
        return "torch.func.vmap leaves out global backward hooks" if has_global_backward_hooks() else ""

    def known_failure(self, call: Call) -> str:
        """Why vmap is known to fail on calls of this kind, or "".

        Calls of other kinds may work: with another flag, or under a sharing where a weight is not mapped.
        """
        return self.unsupported_now() or (self.failure if self.failure and _kind(call) in self.failed else "")

    def _unsupported_in_trace(self, call: Call) -> str:
        """A graph is traced once and cannot fall back: what failed on any kind of call is not tried in it."""
        why = self.unsupported_now()
        if why:
            return why
        if self.net.module_spec.stateless.may_write_by_data():
            return "torch.func.vmap does not accept `.data`, and in a trace nothing can replace it"
        if not self.last_failure():
            try_vmap(self, call)
        return self.last_failure()

    @constant_result
    def last_failure(self) -> str:
        """Why vmap failed last. A method with a constant result: on an attribute dynamo would put a guard."""
        return self.failure

    def remember_failure(self, call: Call, why: str) -> None:
        """From now on calls of this kind are not tried."""
        self.failure = why
        remember(self.failed, _kind(call))

    def _watched(self, call: Call) -> Result:
        """The mapped call. The first call of a kind is watched for operations that vmap computes wrongly.

        Raises:
            VmapFault: it contains such an operation.
        """
        if torch.compiler.is_dynamo_compiling():
            return evaluate_vmap(call)
        leaves = [(x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in call.inputs.leaves]
        kind = (*_call_facts(call), torch.is_grad_enabled(), *leaves)
        try:
            if kind in self.watched:
                return evaluate_vmap(call)
        except TypeError:  # symbolic sizes have no hash: such a call is watched every time
            return _watch(call)
        result = _watch(call)
        remember(self.watched, kind)
        return result


def _watch(call: Call) -> Result:
    before = rng_states(call.tensors(), needed=False) if call.key is None else {}
    try:
        return evaluate_vmap(call, watch=True)
    except VmapFault:
        set_rng_states(before)
        raise


def _raise_named(call: Call) -> None:
    """Raise the loop's error for a random operation under ``randomness="error"``: vmap's does not name it."""
    if torch.compiler.is_dynamo_compiling():
        return
    try:
        evaluate_loop(call)
    except RandomnessError:
        raise
    except FALLBACK_ERRORS:
        return


def _kind(call: Call) -> tuple[Any, ...]:
    """All that a module can see of a call except numbers and sizes: calls of one kind fail alike."""
    leaves = [(leaf.ndim, leaf.dtype) if isinstance(leaf, Tensor) else _constant(leaf) for leaf in call.inputs.leaves]
    slots = tuple(sharing.is_shared for sharing in call.net.sharing.values())
    return (*_call_facts(call), call.net.randomness, tuple(call.inputs.dims), slots, *leaves)


def _call_facts(call: Call) -> tuple[Any, ...]:
    """What a forward may branch on besides the leaves of its inputs. A trace has no structure to compare."""
    traced = torch.compiler.is_dynamo_compiling()
    tree = None if traced else structure(call.inputs.rebuild(call.inputs.leaves))
    dtypes = tuple([leaf.dtype for leaf in (*call.params.values(), *call.state.values())])
    return (call.train, call.mutable, call.key is None, any_autocast(), tree, dtypes)


def _constant(leaf: Any) -> Any:
    # numbers and strings may differ at every call
    return leaf if leaf is None or isinstance(leaf, bool) else type(leaf)
