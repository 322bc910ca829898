"""What torchrl's multi-agent modules, and ours, say of themselves; without importing either.

NetworkModule networks say it too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from functional_marl._parameters import agent_module
from functional_marl.laws._network_module import NetworkModule

__all__ = ["build_of", "by_its_names", "stated_by", "template_of"]


def _is_facade(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("n_agents", "share_params", "centralized", "agent_dim", "_empty_net"))


def stated_by(module: Any) -> dict[str, Any]:
    """The claims of a functional network, or in the attributes of a facade; empty for another module."""
    if isinstance(module, NetworkModule):
        return module.stated
    if not _is_facade(module):
        return {}
    return {
        "n_agents": module.n_agents,
        "sharing": by_its_names(module, module.share_params),
        "centralized": module.centralized,
        "agent_dim": module.agent_dim,
        "randomness": getattr(module, "_vmap_randomness", None),
    }


def by_its_names(module: Any, spec: Any) -> Any:
    """Patterns over the leaves of one agent, as ``share_params`` has them, as patterns over a facade's own names."""
    if not isinstance(spec, Mapping) or not _is_facade(module):
        return spec
    patterns: Mapping[str, Any] = spec
    root = "params." if module.use_td_params else "_empty_net."
    return {root + pattern: slots for pattern, slots in patterns.items()}


def template_of(module: Any, agent: int) -> Callable[..., Any] | None:
    """One agent's network of a facade, with that agent's parameters in it, as a function of its input."""
    if isinstance(module, NetworkModule):
        params, state = dict(module.named_parameters()), dict(module.named_buffers())
        return agent_module(module.net, params, agent, state or None).train(module.training)
    if not _is_facade(module):
        return None
    if hasattr(module, "functional"):  # ours
        net, params, state = module.functional()
        return agent_module(net, params, agent, state or None).train(module.training)
    if not isinstance(module.share_params, bool):
        return None
    params = module.params.data if module.share_params else module.params.data[agent]
    template = copy.deepcopy(module._empty_net).train(module.training)

    def call(x: Any) -> Any:
        with params.to_module(template, preserve_module_state=False):
            return template(x)

    return call


def build_of(module: Any) -> Callable[[], nn.Module] | None:
    """The factory of one agent's network of a facade, where what it builds looks as the template does."""
    if isinstance(module, NetworkModule):
        return module.net.module_spec.build
    if not _is_facade(module) or not hasattr(module, "_build_single_net"):
        return None

    def build() -> nn.Module:
        return module._build_single_net(device=None)

    try:
        return build if str(build()) == str(module._empty_net) else None
    except Exception:  # arguments that only the constructor knew
        return None
