"""``apply``: check, lay out, evaluate, and put the agents back where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor

from functional_marl._check_arguments import as_flag, short_repr
from functional_marl._check_params import check_meta, check_network, check_params, check_state
from functional_marl._errors import StructureError
from functional_marl._init_state import default_state
from functional_marl._layout.inputs import place_inputs
from functional_marl._layout.outputs import place_outputs
from functional_marl._network import Network
from functional_marl._parameters.merging import merged_state
from functional_marl._pytrees import Params, Tree, tree_map
from functional_marl._strategies import Call, Result
from functional_marl._strategies.diagnostics import clearer_error
from functional_marl._strategies.loop import buffers_changed
from functional_marl._strategies.under_torch_compile import is_compiled
from functional_marl._tensordict import as_flat_dict
from functional_marl.random import Key, as_key

__all__ = ["apply"]

_DENSE = torch.strided


@overload
def apply(
    net: Network,
    params: Mapping[str, Tensor],
    *inputs: Tree,
    key: Key | None = None,
    state: Mapping[str, Tensor] | None = None,
    train: bool = False,
    mutable: Literal[False] = False,
    kwargs: Mapping[str, Tree] | None = None,
) -> Tree: ...


@overload
def apply(
    net: Network,
    params: Mapping[str, Tensor],
    *inputs: Tree,
    key: Key | None = None,
    state: Mapping[str, Tensor] | None = None,
    train: bool = False,
    mutable: Literal[True],
    kwargs: Mapping[str, Tree] | None = None,
) -> tuple[Tree, Params]: ...


@overload
def apply(
    net: Network,
    params: Mapping[str, Tensor],
    *inputs: Tree,
    key: Key | None = None,
    state: Mapping[str, Tensor] | None = None,
    train: bool = False,
    mutable: bool,
    kwargs: Mapping[str, Tree] | None = None,
) -> Tree | tuple[Tree, Params]: ...


def apply(
    net: Network,
    params: Mapping[str, Tensor],
    *inputs: Tree,
    key: Key | None = None,
    state: Mapping[str, Tensor] | None = None,
    train: bool = False,
    mutable: bool = False,
    kwargs: Mapping[str, Tree] | None = None,
) -> Any:
    """All agents' outputs: ``[*B, n, F] -> [*B, n, F_out]``, a pure function of its arguments.

    Equivalent to, for one input ``x`` with the agents at dim -2::

        torch.stack([agent_module(net, params, i)(x[..., i, :]) for i in range(n)], dim=-2)

    Inputs, parameters, state and the module that the network was built from are left unchanged. It may be
    called from many threads, and goes through ``torch.func`` transforms, ``torch.compile(fullgraph=True)``
    and ``torch.export``. Outputs are new tensors, with two exceptions: a centralized network with shared
    parameters is evaluated once and its output is an expanded view over the agents; a module that returns
    one of its parameters gives a view of it. ``torch.utils.checkpoint`` goes around the whole call, with
    ``use_reentrant=False``; inside a forward it fails in backward, when the module's parameters are gone
    (as with ``torch.func.functional_call``).

    Args:
        net: a network of ``n`` agents.
        params: ``{name: [S, *leaf]}``, or a TensorDict of the same.
        *inputs: tensors or pytrees of tensors, with the agent axis at ``net.agent_dim``. Every agent gets other leaves
            (numbers, strings) as they are.
        key: dropouts sample from it alone, and any other random operation raises. Without a key they sample
            from torch's global generator, as in an ``nn.Module``. Where nothing is sampled, as by dropouts without
            ``train=True``, a key changes nothing.
        state: buffers ``{name: [S, *leaf]}``; by default the initial ones.
        train: training mode for the whole module, whatever flags it was built with.
        mutable: return ``(y, new_state)``. Where agents share a buffer and change it differently, the new buffer is
            the mean of theirs (the largest, for integers).
        kwargs: keyword inputs of the module.

    Raises:
        StructureError: params, state or inputs that do not fit, before any work (one error names all wrong leaves of
            params, or of state, or the first wrong input); a tensor on
            the meta device beside others; buffers that changed without ``mutable=True``. RandomnessError: a random
            operation under ``randomness="error"``, or one that cannot sample from the key.

    ``net.strategy`` chooses how agents are evaluated: ``"loop"`` (one agent after the other), ``"vmap"``
    (``torch.func.vmap``), ``"plan"`` (batched kernels for modules made of known layers). ``"auto"`` takes
    the plan where there is one, else vmap. It takes the loop for modules that vmap cannot map or computes wrongly:
    modules with an operation on a list that was found with torch's own samples (``tools/vmap_faults.py``), that read
    ``requires_grad``, or that have backward hooks. A :class:`StrategyWarning` then gives the reason, once for each
    one-agent module.

    >>> from torch import nn
    >>> from functional_marl import network, init_params
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> apply(net, init_params(net, 0), torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    """
    check_network(net)
    if not (train is False or train is True):  # 0.1 us less than a call
        train = as_flag(train, "train")
    if mutable is not False:
        mutable = as_flag(mutable, "mutable")
    evaluator = net.evaluators[train]
    if len(inputs) == 1 and kwargs is None and state is None and not mutable and key is None and type(params) is dict:
        x = inputs[0]
        if isinstance(x, Tensor) and x.layout is _DENSE:
            y = evaluator.fast_path(params, x)
            if y is not None:
                return y
    call = _checked(net, params, inputs, key, state, train, mutable, kwargs)
    try:
        result = evaluator.evaluate(call)
    except TypeError as error:
        if inputs and not any(isinstance(leaf, Tensor) for leaf in call.inputs.leaves):
            raise StructureError(f"inputs: expected tensors, got {short_repr(inputs)}: {error}") from error
        raise
    except RuntimeError as error:
        clearer = clearer_error(call, error)
        if clearer is None:
            raise
        raise clearer from error
    outputs = _placed(call, result)
    if not mutable:
        return outputs
    sharing = net.state_sharing
    return outputs, {k: merged_state(result.state[k], before, sharing[k]) for k, before in call.state.items()}


def _checked(
    net: Network,
    params: Any,
    inputs: tuple[Tree, ...],
    key: Key | None,
    state: Any,
    train: bool,
    mutable: bool,
    kwargs: Any,
) -> Call:
    """The call, its leaves checked and its inputs laid out."""
    params = as_flat_dict(params)
    check_params(net, params)
    buffers = default_state(net, params) if state is None else as_flat_dict(state, "state")
    if state is not None:
        check_state(net, buffers)
    if train and buffers and not mutable and is_compiled():
        tracked = net.module_spec.stateless.tracked_buffers()
        if tracked:  # a trace cannot see that they are written to
            raise StructureError(buffers_changed(tracked))
    placed = place_inputs(inputs, _as_kwargs(kwargs), net.n_agents, net.agent_dim, net.centralized)
    check_meta(params, buffers, placed.leaves)
    return Call(net, params, buffers, placed, None if key is None else as_key(key), train, mutable)


def _as_kwargs(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    given: dict[Any, Any] | None = dict(kwargs) if hasattr(kwargs, "keys") else None
    if given is None or not all(isinstance(name, str) for name in given):
        raise StructureError(f"kwargs: expected a dict from the names of keyword inputs, got {short_repr(kwargs)}")
    return given


def _placed(call: Call, result: Result) -> Tree:
    """The outputs with the agents where the inputs have them."""
    outputs = place_outputs(result.outputs, call.net.out_agent_dim, call.inputs.position)
    if not call.net.all_shared:
        return outputs
    return _contiguous(outputs) if isinstance(outputs, Tensor) else tree_map(_contiguous, outputs)


def _contiguous(leaf: Any) -> Any:
    """A contiguous copy of an output that is not contiguous, for a network that all agents share.

    torchrl's output is contiguous there too. Expanded views stay as they are.
    """
    dense = isinstance(leaf, Tensor) and leaf.layout is _DENSE and 0 not in leaf.stride()
    return leaf.contiguous() if dense else leaf
