"""From params to agents: one agent's tree or module, and the trees of all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from functional_marl._check_arguments import as_index
from functional_marl._check_params import check_network, check_state, slot_maps
from functional_marl._errors import StructureError
from functional_marl._init_state import default_state
from functional_marl._network import Network
from functional_marl._pytrees import Params
from functional_marl._sharing import Sharing
from functional_marl._tensordict import as_flat_dict

__all__ = ["agent_module", "agent_params", "unstack_agents"]


def agent_params(net: Network, params: Mapping[str, Tensor], agent: int) -> Params:
    """One agent's tree ``{name: leaf}``, for ``torch.func.functional_call``: views into ``params``.

    Under ``torch.func.vmap`` it takes the params of a population ``[*P, S, *leaf]``, as every function of params.

    Raises:
        StructureError: params that do not fit, or no such agent.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_params(net, init_params(net, 0), 1)["weight"].shape
    torch.Size([2, 4])
    """
    check_network(net)
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return _of_agent(net, params, slots, agent)


def _of_agent(net: Network, params: Params, slots: Mapping[str, Sharing], agent: int) -> Params:
    agent = as_index(agent, "agent")
    if not -net.n_agents <= agent < net.n_agents:
        raise StructureError(f"agent: expected an index below {net.n_agents}, got {agent}")
    return {name: leaf[slots[name][agent]] for name, leaf in params.items()}


def unstack_agents(net: Network, params: Mapping[str, Tensor]) -> list[Params]:
    """The trees of all agents, in order: views into ``params``; the inverse of :func:`stack_agents`.

    Raises:
        StructureError: params that do not fit.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3, sharing="shared")
    >>> len(unstack_agents(net, init_params(net, 0)))
    3
    """
    check_network(net)
    params = as_flat_dict(params)
    slots = slot_maps(net, params)
    return [_of_agent(net, params, slots, agent) for agent in range(net.n_agents)]


def agent_module(
    net: Network, params: Mapping[str, Tensor], agent: int, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """One agent as an ordinary ``nn.Module`` in evaluation mode, with copies of its leaves: for export or a robot.

    The module of a centralized network takes the joint input.

    Raises:
        StructureError: params or a state that do not fit, or no such agent.

    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> agent_module(net, init_params(net, 0), 1)
    Linear(in_features=4, out_features=2, bias=True)
    """
    own = agent_params(net, params, agent)
    state = default_state(net, as_flat_dict(params)) if state is None else as_flat_dict(state, "state")
    check_state(net, state)
    return net.module_spec.make_module(own, _of_agent(net, state, net.state_sharing, agent))
