"""The same parameters under another sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from functional_marl._arguments import as_index, is_list, short_repr
from functional_marl._checks import check_network, slot_maps
from functional_marl._errors import StructureError
from functional_marl._network import Network
from functional_marl._parameters.merging import Merge, check_merge, merged_rows
from functional_marl._pytrees import Params
from functional_marl._sharing import SharingSpec
from functional_marl._tensordict import as_flat_dict

__all__ = ["reshare"]


def reshare(
    net: Network,
    params: Mapping[str, Tensor],
    sharing: SharingSpec,
    *,
    merge: Merge = "error",
    agents: Sequence[int] | None = None,
) -> tuple[Network, Params]:
    """The same agents under another sharing: ``(new_net, new_params)``, new tensors.

    Each new agent starts with the parameters of an old one. Agents that share a new slot must be equal, or are
    merged. Splitting slots is lossless. Merging is lossy, and happens only under ``merge="mean"`` or ``"first"``.

    Args:
        net, params: the network and its params; also its state, or any tree of the same leaves (Adam's moments).
        sharing: the new sharing, as in :func:`network`.
        merge: as in :func:`stack_agents`.
        agents: for each new agent, the old agent whose parameters it starts with: this grows, shrinks or reorders
            the team.

    Raises:
        SharingError, StructureError: as :func:`stack_agents`.

    >>> from torch import nn
    >>> from functional_marl import init_params, network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=2, sharing="shared")
    >>> net, params = reshare(net, init_params(net, 0), "independent", agents=[0, 0, 1])
    >>> params["weight"].shape
    torch.Size([3, 2, 4])
    """
    check_network(net)
    params = as_flat_dict(params)
    old = slot_maps(net, params)
    check_merge(merge)
    chosen = list(range(net.n_agents)) if agents is None else _as_agents(agents, net.n_agents)
    new_net = net.replace(n_agents=len(chosen), sharing=sharing)
    new = {**new_net.sharing, **new_net.state_sharing}
    return new_net, {
        name: merged_rows(leaf, [old[name][i] for i in chosen], new[name], merge, name) for name, leaf in params.items()
    }


def _as_agents(agents: Any, n_agents: int) -> list[int]:
    try:
        chosen = [as_index(agent, "agents", 0) for agent in agents] if is_list(agents) else []
        if not chosen or max(chosen) >= n_agents:
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        wanted = f"expected indices below {n_agents}, at least one"
        raise StructureError(f"agents: {wanted}, got {short_repr(agents)}") from None
    return chosen
