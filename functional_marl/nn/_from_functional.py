"""``from_functional``: an ``nn.Module`` around a functional network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._arguments import short_repr
from functional_marl._checks import check_network, check_params, check_state
from functional_marl._errors import StructureError
from functional_marl._init_state import init_state
from functional_marl._network import Network
from functional_marl._tensordict import as_flat_dict
from functional_marl.nn._base import MultiAgentNetBase

__all__ = ["MultiAgentNet", "from_functional"]


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
            agent_dim=0,  # the base needs one; the network's own is set below
            vmap_randomness=net.randomness,
            use_td_params=use_td_params,
            device=None,
        )
        self.agent_dim: Any = net.agent_dim
        self._rows = None
        with torch.no_grad():
            for live, given in zip(self._store.live(self._modules), (params, state), strict=True):
                for name, leaf in live.items():
                    leaf.copy_(given[name][0] if self.share_params is True else given[name])

    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        spec = self._given.module_spec
        if self._rows is not None:
            return spec.make_module(self._rows["params"], self._rows["state"]).train()
        return spec.init_module(int(torch.randint(2**62, ())))

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
        raise StructureError(f"state: expected a dict of dotted names to tensors, got {short_repr(state)}")
    state = init_state(net) if state is None else as_flat_dict(state)
    check_state(net, state)
    return MultiAgentNet(net, params, state, use_td_params=use_td_params)
