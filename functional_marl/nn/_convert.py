"""Out of the facade and back: networks as values, and checkpoints between storages and sharings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from functional_marl._arguments import shown
from functional_marl._checks import check_network, check_params, check_state
from functional_marl._errors import SharingError, StructureError
from functional_marl._init_state import init_state
from functional_marl._network import Network
from functional_marl._parameters import Merge, stack_agents
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl._tensordict import as_flat_dict
from functional_marl.nn._base import MultiAgentNetBase
from functional_marl.nn._storage import is_lazy

__all__ = ["MultiAgentNet", "convert_state_dict", "from_functional"]


class MultiAgentNet(MultiAgentNetBase):
    """A module around a functional network: what :func:`from_functional` returns.

    >>> import functional_marl as fm
    >>> net = fm.network(nn.Linear(4, 2), n_agents=3)
    >>> MultiAgentNet(net, fm.init_params(net, 0), {})(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(
        self, net: Network, params: Mapping[str, Tensor], state: Mapping[str, Tensor], *, use_td_params: bool = True
    ) -> None:
        maps = set(net.sharing_spec.values())
        whole = maps.pop() if len(maps) == 1 else None
        plain = whole is not None and (whole.is_shared or whole.is_independent)
        self._given = net
        self._rows: dict[str, dict[str, Tensor]] | None = {
            "params": {k: p[0] for k, p in params.items()},
            "state": {k: b[0] for k, b in state.items()},
        }
        super().__init__(
            n_agents=net.n_agents,
            centralized=net.centralized,
            share_params=whole.is_shared if whole is not None and plain else net.sharing_spec,
            agent_dim=0,  # the base wants one; the network's own is below
            vmap_randomness=net.randomness,
            use_td_params=use_td_params,
            device=None,
        )
        self.agent_dim: Any = net.agent_dim
        self._rows = None
        with torch.no_grad():
            for live, given in zip(self._live(), (params, state), strict=True):
                for name, leaf in live.items():
                    leaf.copy_(given[name][0] if self.share_params is True else given[name])

    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        template = self._given.module_spec
        if self._rows is not None:
            return template.module(self._rows["params"], self._rows["state"]).train()
        return template.draw(int(torch.randint(2**62, ())))

    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        return inputs  # the core checks

    def _network_of(self, leaves: dict[str, Tensor]) -> Network:
        net, given = super()._network_of(leaves), self._given
        return net.replace(agent_dim=given.agent_dim, out_agent_dim=given.out_agent_dim, strategy=given.strategy)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """``fm.apply(net, params, *inputs, kwargs=kwargs)`` in the module's mode; buffers are updated in training."""
        return self._evaluate(self._current(), inputs, kwargs or None)


def from_functional(
    net: Network,
    params: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None = None,
    *,
    use_td_params: bool = True,
) -> MultiAgentNetBase:
    """An ``nn.Module`` of a functional network, with copies of its params; undone by ``module.functional()``.

    ``module(*inputs, **kwargs)`` is ``fm.apply(net, params, *inputs, kwargs=kwargs)`` with the parameters that the
    module holds at that moment, in its mode, whatever the inputs and wherever they carry the agents. Several
    inputs go to the one-agent module as they are; the other classes here concatenate them.

    Args:
        net: any network.
        params: ``{name: [S, *leaf]}``.
        state: its buffers; by default the initial ones.
        use_td_params: where the parameters are registered: see :class:`MultiAgentNetBase`.

    Raises:
        StructureError: no network; params or state that do not fit.

    >>> import functional_marl as fm
    >>> net = fm.network(fm.nets.mlp(4, 8, 2), n_agents=3, sharing=[0, 0, 1])
    >>> params = fm.init_params(net, 0)
    >>> module = from_functional(net, params)
    >>> x = torch.ones(5, 3, 4)
    >>> torch.equal(module(x), fm.apply(net, params, x))
    True
    """
    check_network(net)
    params = as_flat_dict(params)
    check_params(net, params)
    if state is not None and not hasattr(state, "keys"):
        raise StructureError(f"state: expected a dict of dotted names to tensors, got {shown(state)}")
    state = init_state(net) if state is None else as_flat_dict(state)
    check_state(net, state)
    return MultiAgentNet(net, params, state, use_td_params=use_td_params)


def convert_state_dict(
    state_dict: Mapping[str, Any],
    module: MultiAgentNetBase,
    *,
    sharing: bool | SharingSpec | None = None,
    merge: Merge = "error",
    prefix: str = "",
) -> dict[str, Any]:
    """A checkpoint of another storage mode or sharing, as ``module.load_state_dict`` takes it.

    Args:
        state_dict: of torchrl's class or of ours, with keys ``params.0.weight`` or ``_empty_net.0.weight``.
        module: what the result is for; it is not changed. Its slots that no agent is in keep what they hold,
            unless the checkpoint is of the same sharing.
        sharing: the sharing that the checkpoint was made under. By default it is read off the shapes: no
            slot axis or one slot is shared, as many slots as agents is independent.
        merge: agents that come together in a slot must agree (``"error"``), or are merged: ``"mean"`` or
            ``"first"``.
        prefix: where the module is inside of a larger one (``"module."``); other keys are handed on.

    Raises:
        StructureError: keys or shapes that do not fit, all of them named. SharingError: agents of a slot
            that differ under ``merge="error"``.

    >>> from functional_marl.nn import MultiAgentMLP
    >>> shared = MultiAgentMLP(4, 2, 3, centralized=False, share_params=True, depth=0)
    >>> own = MultiAgentMLP(4, 2, 3, centralized=False, share_params=False, depth=0, use_td_params=False)
    >>> own.load_state_dict(convert_state_dict(shared.state_dict(), own))
    <All keys matched successfully>
    """
    if not isinstance(state_dict, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"state_dict: expected a checkpoint, a dict, got {type(state_dict).__name__}")
    if wrong := [k for k in state_dict if not isinstance(k, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"state_dict: expected names as keys, got {wrong[:8]}")
    if not isinstance(module, MultiAgentNetBase):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(_not_ours(module))
    if merge not in get_args(Merge):
        raise SharingError(f"merge: expected one of {', '.join(map(repr, get_args(Merge)))}, got {merge!r}")
    if not isinstance(prefix, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StructureError(f"prefix: expected a string as 'module.', got {prefix!r}")
    if not module.initialized:
        raise StructureError("module: its lazy leaves have no shapes yet; call it once, or give its input features")
    rows, old = _read(state_dict, module, sharing, prefix)
    layout, slots, current = module._layout, module._sharing, module._leaves()
    new: dict[str, Tensor] = {}
    for name, leaf in rows.items():
        target = slots[name]
        if target == old[name]:
            new[name] = leaf.detach().clone()
            continue
        agents = [{name: leaf[slot]} for slot in old[name]]
        merged = stack_agents(agents, sharing=target.canonical(), merge=merge)[name]
        new[name] = merged
        if target.n_slots != len(merged):  # the used slots in the order of their first agents
            new[name] = current[name].detach().to(merged, copy=True)
            new[name][list(dict.fromkeys(target))] = merged
    root = prefix + ("params." if module.use_td_params else "_empty_net.")
    bare = module.share_params is True
    leaves = {k: new[layout.aliases.get(k, k)] for k in layout.names}
    others = {k: v for k, v in state_dict.items() if not k.startswith((prefix + "params.", prefix + "_empty_net."))}
    return {**others, **{root + k: leaf[0] if bare else leaf for k, leaf in leaves.items()}}


def _read(
    state_dict: Mapping[str, Any], module: MultiAgentNetBase, sharing: bool | SharingSpec | None, prefix: str
) -> tuple[dict[str, Tensor], dict[str, Sharing]]:
    """The checkpoint's leaves ``{name: [S, *leaf]}`` and their slot maps."""
    layout = module._layout
    ours = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    roots = [root for root in ("params.", "_empty_net.") if any(k.startswith(root) for k in ours)]
    if not roots:
        raise StructureError(
            f"state_dict: expected keys {prefix}params.* or {prefix}_empty_net.*, got {list(state_dict)[:8]}; "
            "prefix= says where the module is inside of a larger one, as 'module.0.'"
        )
    where = prefix + roots[0]
    # tensordict 0.11 writes batch sizes and devices among the tensors
    given = {k[len(roots[0]) :]: v for k, v in ours.items() if k.startswith(roots[0]) and isinstance(v, Tensor)}
    shapes = {k: tuple(t.shape if module.share_params is True else t.shape[1:]) for k, t in module._leaves().items()}
    names = [k for k in layout.names if k not in layout.aliases]
    lines = [f"{where}{k}: missing, expected a leaf {list(shapes[k])}" for k in names if k not in given]
    lines += [f"{where}{k}: not a leaf of this network" for k in given if k not in layout.names]
    lines += [f"{where}{k}: has no shape yet" for k, leaf in given.items() if is_lazy(leaf)]
    source = None if sharing is None else resolve(_as_spec(sharing), module.n_agents, names)
    old: dict[str, Sharing] = {}
    rows: dict[str, Tensor] = {}
    for name in (k for k in names if k in given and not is_lazy(given[k])):
        value, shape = given[name], shapes[name]
        rows[name] = value[None] if tuple(value.shape) == shape else value
        count = len(rows[name]) if rows[name].ndim else 0
        known = Sharing.shared(module.n_agents) if count == 1 else Sharing.independent(module.n_agents)
        old[name] = known if source is None else source[name]
        if tuple(rows[name].shape[1:]) != shape or count != old[name].n_slots:
            lines.append(
                f"{where}{name}: expected {list(shape)} or [slots, *{list(shape)}] with {old[name].n_slots} slots, "
                f"got {list(value.shape)}; say sharing= for another sharing"
            )
    if lines:
        raise StructureError("state_dict does not fit the module\n" + "\n".join(lines))
    return rows, old


def _not_ours(module: Any) -> str:
    inside = [
        (name, part)
        for name, part in (module.named_modules() if isinstance(module, nn.Module) else ())
        if isinstance(part, MultiAgentNetBase)
    ]
    found = f"; it holds one: give that, and prefix={inside[0][0] + '.'!r}" if inside else ""
    return f"module: expected a module of functional_marl.nn, got {type(module).__name__}{found}"


def _as_spec(sharing: bool | SharingSpec) -> SharingSpec:
    if isinstance(sharing, bool):
        return "shared" if sharing else "independent"
    return sharing
