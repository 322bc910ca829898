"""``apply``: check, view, choose a way, evaluate, put the agents back where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from functional_marl._arguments import as_flag, shown
from functional_marl._checks import check_meta, check_network, check_params, check_state
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._init_params import default_state
from functional_marl._layout.inputs import place_inputs, place_outputs
from functional_marl._lowering import Plan, Unsupported
from functional_marl._merging import merged_state
from functional_marl._network import Network
from functional_marl._pytrees import Tree, tree_map
from functional_marl._randomness.rng_state import RngStates, rng_states, set_rng_states
from functional_marl._strategies import Call, Result, apply_directly, evaluate_loop, evaluate_mapped, evaluate_plan
from functional_marl._strategies.diagnostics import explained, warn_of_loop
from functional_marl._strategies.loop import buffers_changed
from functional_marl._strategies.vmap import FALLBACK_ERRORS, FINAL_ERRORS
from functional_marl._strategies.vmap_fast_path import is_compiled
from functional_marl._strategies.vmap_faults import VmapFault
from functional_marl._strategies.vmap_support import give_up_vmap, is_unmapped, try_vmap
from functional_marl._tensordict import as_flat_dict
from functional_marl._torch_compat import backward_hooked
from functional_marl.random import Key, as_key

__all__ = ["apply", "tabulate"]

_DENSE = torch.strided


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
        *inputs: tensors or pytrees of tensors; ``net.agent_dim`` says where they carry the agents. Other
            leaves (numbers, strings) are seen whole by every agent.
        key: dropouts draw from it alone, and any other random operation raises. Without a key they draw
            from torch's global generator, as in an ``nn.Module``. Where nothing draws, as dropouts without
            ``train=True``, a key changes nothing.
        state: buffers ``{name: [S, *leaf]}``; by default the initial ones.
        train: training mode for the whole module, whatever flags it was built with.
        mutable: return ``(y, new_state)``. Agents that share a buffer and change it apart get the mean
            of the changed ones (the largest, for integers).
        kwargs: keyword inputs of the module.

    Raises:
        StructureError: params, state or inputs that do not fit, before any work, all of them named; a tensor on
            the meta device beside others; buffers that changed without ``mutable=True``. RandomnessError: a draw under
            ``randomness="error"``, or one that the key cannot serve.

    ``net.strategy`` forces a way of evaluating: ``"loop"`` (one agent after the other), ``"vmap"``
    (``torch.func.vmap``), ``"plan"`` (batched kernels for modules made of known layers). ``"auto"`` takes
    the plan where there is one, else vmap, and the loop for modules that vmap cannot map, or maps wrongly:
    by a list of operations found with torch's own samples (``tools/vmap_faults.py``), and where a module asks for
    ``requires_grad`` or has backward hooks. It then says so by a :class:`StrategyWarning`, once a network.

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
    if len(inputs) == 1 and kwargs is None and state is None and not mutable and key is None and type(params) is dict:
        x = inputs[0]
        if isinstance(x, Tensor) and x.layout is _DENSE:
            y = apply_directly(net, params, x, train) if net.direct is None else net.direct(params, x)
            if y is not None:
                return y
    params = as_flat_dict(params)
    check_params(net, params)
    buffers = default_state(net, params) if state is None else as_flat_dict(state, "state")
    if state is not None:
        check_state(net, buffers)
    if train and buffers and not mutable and is_compiled():
        tracked = net.module_spec.stateless.tracked_buffers()
        if tracked:  # in a trace no write is seen
            raise StructureError(buffers_changed(tracked))
    call = Call(
        net=net,
        params=params,
        state=buffers,
        inputs=place_inputs(inputs, _as_kwargs(kwargs), net.n_agents, net.agent_dim, net.centralized),
        key=None if key is None else as_key(key),
        train=train,
        mutable=mutable,
    )
    check_meta(params, buffers, call.inputs.leaves)
    try:
        result = _evaluate(call)
    except TypeError as error:
        if inputs and not any(isinstance(leaf, Tensor) for leaf in call.inputs.leaves):
            raise StructureError(f"inputs: expected tensors, got {shown(inputs)}: {error}") from error
        raise
    except RuntimeError as error:
        clearer = explained(call, error)
        if clearer is None:
            raise
        raise clearer from error
    outputs = place_outputs(result.outputs, net.out_agent_dim, call.inputs.position)
    if all(sharing.is_shared for sharing in net.sharing.values()):
        outputs = _in_order(outputs) if isinstance(outputs, Tensor) else tree_map(_in_order, outputs)
    if not mutable:
        return outputs
    return outputs, {name: merged_state(result.state[name], buffers[name], net.state_sharing[name]) for name in buffers}


def _as_kwargs(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    given: dict[Any, Any] | None = dict(kwargs) if hasattr(kwargs, "keys") else None
    if given is None or not all(isinstance(name, str) for name in given):
        raise StructureError(f"kwargs: expected a dict from the names of keyword inputs, got {shown(kwargs)}")
    return given


def _in_order(leaf: Any) -> Any:
    """An output of a network that all agents share: contiguous, as if they were its batch; expanded views stay."""
    plain = isinstance(leaf, Tensor) and leaf.layout is torch.strided and 0 not in leaf.stride()
    return leaf.contiguous() if plain else leaf


def _evaluate(call: Call) -> Result:
    """Evaluate in the way that the network asks for, or the fastest that fits."""
    net, train = call.net, call.train
    for leaf in call.inputs.leaves:
        if isinstance(leaf, Tensor) and leaf.layout is not _DENSE:
            return _evaluate_sparse(call, leaf.layout)
    plan = net.plans[train]
    if net.strategy == "plan":
        if isinstance(plan, str):
            raise StructureError(f'strategy="plan": {plan}; use "auto", which takes another way, or "vmap" or "loop"')
        try:
            return evaluate_plan(call, plan)
        except Unsupported as why:
            raise StructureError(f'strategy="plan": {why}; use "auto", which takes another way') from None
    if net.strategy == "loop":
        return evaluate_loop(call)
    if torch.compiler.is_dynamo_compiling() and not isinstance(plan, Plan):
        try_vmap(call)
    if net.strategy == "vmap":
        why = _never_mapped(net) or (net.module_spec.no_vmap[train] if torch.compiler.is_dynamo_compiling() else "")
        if why:
            raise StructureError(f'strategy="vmap": {why}; use "auto" or "loop"')
        try:
            return evaluate_mapped(call)
        except FALLBACK_ERRORS as error:
            if net.randomness == "error" and not isinstance(error, FINAL_ERRORS):
                _name_what_draws(call)
            raise
    # What a way consumed before it failed is given back, so that a seed means the same at every call.
    draws = call.key is None and (train or not isinstance(plan, Plan))  # a module may draw in evaluation too
    before: RngStates | None = None
    if draws and not torch.compiler.is_dynamo_compiling():
        before = rng_states((*call.params.values(), *call.state.values(), *call.inputs.leaves), needed=False)
    if isinstance(plan, Plan):
        try:
            return evaluate_plan(call, plan)
        except (Unsupported, *FALLBACK_ERRORS) as error:
            _give_up(error, before)
    if not is_unmapped(call):
        try:
            return evaluate_mapped(call)
        except FALLBACK_ERRORS as error:
            _give_up(error, before)
            # The loop's own error, should it fail too, is the plainer one: nothing in it is about vmap.
            result = evaluate_loop(call)
            give_up_vmap(call, error)
    else:
        result = evaluate_loop(call)
    warn_of_loop(net, _never_mapped(net) or net.module_spec.no_vmap[train])
    return result


def _never_mapped(net: Network) -> str:
    """Why vmap cannot serve any call of a network, or nothing."""
    return net.module_spec.why_not_vmap or (
        "torch.func.vmap leaves out global backward hooks" if backward_hooked() else ""
    )


def _name_what_draws(call: Call) -> None:
    """Raise the loop's error where an operation draws under ``randomness="error"``: vmap's does not name it."""
    if torch.compiler.is_dynamo_compiling():
        return
    try:
        evaluate_loop(call)
    except RandomnessError:
        raise
    except FALLBACK_ERRORS:
        return


def _evaluate_sparse(call: Call, layout: torch.layout) -> Result:
    """One agent after the other, each with its part of a sparse input; the batched operations take none."""
    if call.net.strategy in ("plan", "vmap"):
        raise StructureError(
            f'inputs: strategy="{call.net.strategy}" takes dense tensors, got {layout}; give x.to_dense(), or use '
            '"auto" or "loop"'
        )
    try:
        return evaluate_loop(call)
    except FALLBACK_ERRORS as error:
        if isinstance(error, FINAL_ERRORS):
            raise
        raise StructureError(f"inputs: {layout} fails in the loop over agents; give x.to_dense(): {error}") from error


def _give_up(error: Exception, before: RngStates | None) -> None:
    """Raise what is an answer and not a failure of this way; else put the generators back."""
    answer = isinstance(error, FINAL_ERRORS) and not isinstance(error, VmapFault)
    if answer or torch.compiler.is_dynamo_compiling():
        raise error
    if before is not None:
        set_rng_states(before)


def tabulate(net: Network) -> str:
    """A table of the leaves, who shares them, how many numbers they hold, and how apply will evaluate.

    >>> from torch import nn
    >>> from functional_marl import network
    >>> print(tabulate(network(lambda: nn.Linear(4, 2), n_agents=3, sharing={"bias": "shared", "*": [0, 0, 1]})))
    leaf    shape      agents -> slots  numbers
    weight  [2, 2, 4]  0 0 1                 16
    bias    [1, 2]     shared                 2
    3 agents, 18 numbers; strategy auto: plan in evaluation, plan in training
    """
    check_network(net)
    rows = [("leaf", "shape", "agents -> slots", "numbers")]
    total = 0
    for shapes, slots, mark in (
        (net.param_shapes, net.sharing, ""),
        (net.state_shapes, net.state_sharing, " (buffer)"),
    ):
        for name, shape in shapes.items():
            numbers = torch.Size(shape).numel()
            total += 0 if mark else numbers
            sharing = slots[name]
            word = "shared" if sharing.is_shared else "independent" if sharing.is_independent else ""
            rows.append((name + mark, str(list(shape)), word or " ".join(map(str, sharing)), str(numbers)))
    widths = [max(len(row[c]) for row in rows) for c in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row[:3], widths[:3], strict=True)) for row in rows]
    lines = [f"{line}  {row[3].rjust(widths[3])}" for line, row in zip(lines, rows, strict=True)]
    ways = [f"{_way(net, train)} in {mode}" for train, mode in ((False, "evaluation"), (True, "training"))]
    lines.append(f"{net.n_agents} agents, {total} numbers; strategy {net.strategy}: {', '.join(ways)}")
    return "\n".join(lines)


def _way(net: Network, train: bool) -> str:
    """The way that apply takes in a mode, and why not a faster one."""
    plan, no_vmap = net.plans[train], _never_mapped(net) or net.module_spec.no_vmap[train]
    why = {"plan": plan if isinstance(plan, str) else "", "vmap": _never_mapped(net)}.get(net.strategy, "")
    if why:
        return f"none ({net.strategy} was asked for: {why})"
    if net.strategy != "auto":
        return net.strategy
    if isinstance(plan, Plan):
        return "plan"
    return f"loop ({no_vmap})" if no_vmap else f"vmap (no plan: {plan})"
