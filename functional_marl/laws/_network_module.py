"""A functional network with its parameters as a module, so that the laws of modules are checked on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._apply import apply
from functional_marl._check_params import check_params, check_state
from functional_marl._init_state import init_state
from functional_marl._module.leaves import as_parameter
from functional_marl._network import Network
from functional_marl._tensordict import as_flat_dict

__all__ = ["NetworkModule", "as_module"]


class NetworkModule(nn.Module):
    """``(net, params, state)`` as a module: parameters ``[S, *leaf]`` under their dotted names.

    In training it keeps the state that :func:`functional_marl.apply` returns, as an ``nn.Module`` does.
    """

    def __init__(self, net: Network, params: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        for name, leaf in params.items():
            copy = leaf.detach().clone()
            self._put(name, as_parameter(copy), "_parameters")
        for name, leaf in state.items():
            self._put(name, leaf.detach().clone(), "_buffers")

    def _put(self, name: str, leaf: Tensor, kind: str) -> None:
        """Register a leaf in a tree of plain modules, whatever names of a module its own are."""
        at: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            at = at._modules.setdefault(part, nn.Module())  # pyright: ignore
        getattr(at, kind)[last] = leaf

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """All agents' outputs, as :func:`functional_marl.apply` gives them."""
        params, state = dict(self.named_parameters()), dict(self.named_buffers())
        how: dict[str, Any] = {"kwargs": kwargs or None, "state": state or None}
        if not self.training or not state:
            return apply(self.net, params, *inputs, train=self.training, **how)
        outputs, after = apply(self.net, params, *inputs, train=True, mutable=True, **how)
        with torch.no_grad():
            for name, buffer in state.items():
                buffer.copy_(after[name])
        return outputs

    @property
    def stated(self) -> dict[str, Any]:
        """What the network claims: all of its settings."""
        net, dims = self.net, self.net.agent_dim
        stated: dict[str, Any] = {
            "n_agents": net.n_agents,
            "sharing": {name: net.sharing[name] for name, leaf in self.named_parameters() if leaf.requires_grad},
            "centralized": net.centralized,
            "agent_dim": dims[0] if isinstance(dims, tuple) and len(dims) == 1 else dims,
            "randomness": net.randomness,
        }
        return stated if net.out_agent_dim is None else {**stated, "out_agent_dim": net.out_agent_dim}


def as_module(subject: Any) -> Any:
    """``(net, params)`` or ``(net, params, state)`` as a module; anything else as it is.

    Raises:
        TypeError: a network without its parameters. StructureError: parameters that do not fit it.
    """
    if isinstance(subject, Network):
        raise TypeError("a Network alone has no parameters: give (net, params), with params = init_params(net, key)")
    if not isinstance(subject, tuple) or not subject or not isinstance(subject[0], Network):
        return subject
    if len(cast("tuple[Any, ...]", subject)) not in (2, 3):
        raise TypeError("expected (net, params) or (net, params, state) of a Network")
    net, given, *more = cast("tuple[Any, ...]", subject)
    params = as_flat_dict(given)
    check_params(net, params)
    state = as_flat_dict(more[0]) if more and more[0] is not None else init_state(net)
    check_state(net, state)
    return NetworkModule(net, params, state)
