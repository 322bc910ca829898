"""What the library is compared with: torchrl, kernels written by hand, a loop of modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.modules import MultiAgentMLP
from torchrl.modules.models.multiagent import MultiAgentNetBase

__all__ = [
    "FEATURES",
    "OUTPUTS",
    "HandWeights",
    "OneMLP",
    "TorchrlNet",
    "hand_batch_major",
    "hand_feature_major",
    "hand_plain",
    "hand_weights",
    "leaves_of",
    "loop_of_modules",
    "torchrl_mlp",
]

FEATURES, OUTPUTS = 16, 4  # the network of the table: 16 -> H -> H -> 4 with tanh

Params = dict[str, Tensor]
HandWeights = list[tuple[Tensor, Tensor]]


def torchrl_mlp(agents: int, width: int, share: bool = False, device: str = "cpu") -> Any:
    """torchrl's network of the table."""
    return MultiAgentMLP(
        n_agent_inputs=FEATURES,
        n_agent_outputs=OUTPUTS,
        n_agents=agents,
        centralized=False,
        share_params=share,
        depth=2,
        num_cells=width,
        device=device,
    )


def leaves_of(net: Any) -> Params:
    """A torchrl network's parameters as ours: ``{"0.weight": [S, out, in], ...}``, copies without grad."""
    flat = net.params.flatten_keys(".")
    return {name: (leaf[None] if net.share_params else leaf).detach().clone() for name, leaf in flat.items()}


class OneMLP(nn.Module):
    """The MLP of the table with a forward of its own, for which there is no plan."""

    def __init__(self, width: int, init: str = "default") -> None:
        super().__init__()
        sizes = [FEATURES, width, width, OUTPUTS]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for layer in self.layers if init == "orthogonal" else ():
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if init == "scaled":  # a parameter computed from a random one: more than filling leaves in place
            self.log_std = nn.Parameter(0.1 * torch.randn(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, 16] -> [*B, 4]``."""
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class TorchrlNet(MultiAgentNetBase):
    """torchrl's base class over any factory."""

    def __init__(self, build: Callable[[], nn.Module], agents: int, agent_dim: int = -2) -> None:
        self.build = build
        super().__init__(n_agents=agents, centralized=False, share_params=False, agent_dim=agent_dim, device=None)

    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        return self.build()

    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        return inputs


def hand_weights(params: Mapping[str, Tensor]) -> HandWeights:
    """Weights and biases in order, from a flat dict."""
    values = list(params.values())
    return list(zip(values[::2], values[1::2], strict=True))


def hand_batch_major(weights: HandWeights, x: Tensor) -> Tensor:
    """``[B, n, F] -> [B, n, F_out]``, rows are batch entries."""
    h = x.transpose(0, 1)
    for weight, bias in weights[:-1]:
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT).tanh_()
    weight, bias = weights[-1]
    return torch.baddbmm(bias.unsqueeze(1), h, weight.mT).transpose(0, 1)


def hand_plain(weights: HandWeights, x: Tensor) -> Tensor:
    """As :func:`hand_batch_major`, with a new tensor for every activation: the simplest code."""
    h = x.transpose(0, 1)
    for weight, bias in weights[:-1]:
        h = torch.tanh(torch.baddbmm(bias.unsqueeze(1), h, weight.mT))
    weight, bias = weights[-1]
    return torch.baddbmm(bias.unsqueeze(1), h, weight.mT).transpose(0, 1)


def hand_feature_major(weights: HandWeights, x: Tensor) -> Tensor:
    """``[B, n, F] -> [B, n, F_out]``, rows are features."""
    h = x.permute(1, 2, 0)
    for weight, bias in weights[:-1]:
        h = torch.baddbmm(bias.unsqueeze(2), weight, h).tanh_()
    weight, bias = weights[-1]
    return torch.baddbmm(bias.unsqueeze(2), weight, h).permute(2, 0, 1)


def loop_of_modules(params: Mapping[str, Tensor], width: int) -> Callable[[Tensor], Tensor]:
    """One ``nn.Sequential`` per agent, called one after the other."""
    weights = hand_weights(params)
    agents = weights[0][0].shape[0]
    modules: list[nn.Module] = []
    for agent in range(agents):
        layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, OUTPUTS)]
        for layer, (weight, bias) in zip(layers[::2], weights, strict=True):
            layer.load_state_dict({"weight": weight[agent], "bias": bias[agent]})
        modules.append(nn.Sequential(*layers).to(weights[0][0].device))
    return lambda x: torch.stack([module(x[:, agent]) for agent, module in enumerate(modules)], 1)
