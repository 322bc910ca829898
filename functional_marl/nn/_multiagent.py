"""``MultiAgentMLP`` and ``MultiAgentConvNet``: an ``MLP`` or a ``ConvNet`` for each agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._check_arguments import as_flag, as_index
from functional_marl._sharing import SharingSpec
from functional_marl.nn._base import MultiAgentNetBase, merges_agents, repeatable
from functional_marl.nn._layer_options import as_features, check_class
from functional_marl.nn._single_agent_convnet import ConvNet
from functional_marl.nn._single_agent_mlp import MLP

__all__ = ["MultiAgentConvNet", "MultiAgentMLP"]


class MultiAgentMLP(MultiAgentNetBase):
    """An MLP for each agent: ``[*B, n, F] -> [*B, n, F_out]``.

    Args:
        n_agent_inputs: ``F``; with None the first call determines it.
        n_agent_outputs: ``F_out``.
        n_agents: how many agents.
        centralized: each agent sees the inputs of all agents, ``n * F`` numbers.
        share_params: True, False, or any sharing: see :class:`MultiAgentNetBase`.
        device: where to make the parameters.
        depth, num_cells, activation_class: the hidden layers, as in :class:`MLP`.
        use_td_params: how the parameters are stored: see :class:`MultiAgentNetBase`.
        **kwargs: further options of :class:`MLP`, and ``vmap_randomness``.

    Raises:
        TypeError: ``centralized`` or ``share_params`` is missing.
        ValueError: at the call, another number of agents.

    After ``torchrl.modules.MultiAgentMLP`` (pytorch.org/rl).

    >>> mlp = MultiAgentMLP(4, 2, 3, centralized=True, share_params=False, depth=1)
    >>> mlp(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    >>> mlp
    MultiAgentMLP(
        MLP(
          (0): Linear(in_features=12, out_features=32, bias=True)
          (1): Tanh()
          (2): Linear(in_features=32, out_features=2, bias=True)
        ),
        n_agents=3,
        share_params=False,
        centralized=True,
        agent_dim=-2)
    """

    def __init__(
        self,
        n_agent_inputs: int | None,
        n_agent_outputs: int,
        n_agents: int,
        *,
        centralized: bool | None = None,
        share_params: bool | SharingSpec | None = None,
        device: torch.device | str | None = None,
        depth: int | None = None,
        num_cells: Sequence[int] | int | None = None,
        activation_class: Callable[..., Any] | None = nn.Tanh,
        use_td_params: bool = True,
        **kwargs: Any,
    ) -> None:
        centralized = kwargs.pop("centralised", centralized)
        self.n_agents = as_index(n_agents, "n_agents", 1)
        self.centralized = centralized is not None and as_flag(centralized, "centralized")
        self.n_agent_inputs = None if n_agent_inputs is None else as_index(n_agent_inputs, "n_agent_inputs", 0)
        self.n_agent_outputs = as_features(n_agent_outputs, "n_agent_outputs")
        self.num_cells = num_cells
        check_class(activation_class or nn.Identity, "activation_class")
        self.activation_class = activation_class
        self.depth = depth
        super().__init__(
            n_agents=n_agents,
            centralized=centralized,
            share_params=share_params,
            device=device,
            agent_dim=-2,
            use_td_params=use_td_params,
            **kwargs,
        )

    @repeatable
    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        inputs = self.n_agent_inputs
        return MLP(
            in_features=inputs * self.n_agents if self.centralized and inputs is not None else inputs,
            out_features=self.n_agent_outputs,
            depth=self.depth,
            num_cells=self.num_cells,
            activation_class=nn.Identity if self.activation_class is None else self.activation_class,
            device=device,
            **kwargs,
        )

    @merges_agents
    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        if inputs.ndim < 2 or inputs.shape[-2] != self.n_agents:
            raise ValueError(
                f"inputs: expected {self.n_agents} agents at dim -2, shape[-2]={self.n_agents}, got {inputs.shape}"
            )
        return inputs.flatten(-2, -1) if self.centralized else inputs


class MultiAgentConvNet(MultiAgentNetBase):
    """A convolutional network for each agent: ``[*B, n, C, H, W] -> [*B, n, F]``.

    Args:
        n_agents: how many agents.
        centralized: each agent sees the images of all agents, ``n * C`` channels.
        share_params: True, False, or any sharing: see :class:`MultiAgentNetBase`.
        in_features: ``C``; with None the first call determines it.
        device: where to make the parameters.
        num_cells, kernel_sizes, strides, paddings, activation_class: the layers, as in :class:`ConvNet`.
        use_td_params: how the parameters are stored: see :class:`MultiAgentNetBase`.
        **kwargs: further options of :class:`ConvNet`, and ``vmap_randomness``.

    Raises:
        TypeError: ``centralized`` or ``share_params`` is missing.
        ValueError: at the call, fewer than four axes, or another number of agents.

    After ``torchrl.modules.MultiAgentConvNet`` (pytorch.org/rl).

    >>> cnn = MultiAgentConvNet(3, centralized=False, share_params=True, in_features=2, num_cells=[4])
    >>> cnn(torch.zeros(5, 3, 2, 9, 9)).shape
    torch.Size([5, 3, 36])
    """

    def __init__(
        self,
        n_agents: int,
        centralized: bool | None = None,
        share_params: bool | SharingSpec | None = None,
        *,
        in_features: int | None = None,
        device: torch.device | str | None = None,
        num_cells: Sequence[int] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 5,
        strides: Sequence[int] | int = 2,
        paddings: Sequence[int] | int = 0,
        activation_class: Callable[..., Any] = nn.ELU,
        use_td_params: bool = True,
        **kwargs: Any,
    ) -> None:
        self.in_features = None if in_features is None else as_index(in_features, "in_features", 1)
        self.num_cells = num_cells
        self.kernel_sizes = kernel_sizes
        self.strides = strides
        self.paddings = paddings
        check_class(activation_class, "activation_class")
        self.activation_class = activation_class
        super().__init__(
            n_agents=n_agents,
            centralized=centralized,
            share_params=share_params,
            device=device,
            agent_dim=-4,
            use_td_params=use_td_params,
            **kwargs,
        )

    @repeatable
    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        channels = self.in_features
        return ConvNet(
            in_features=channels * self.n_agents if self.centralized and channels is not None else channels,
            num_cells=self.num_cells,
            kernel_sizes=self.kernel_sizes,
            strides=self.strides,
            paddings=self.paddings,
            activation_class=self.activation_class,
            device=device,
            **kwargs,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """``[*B, n, C, H, W] -> [*B, n, F]``.

        Without a batch axis each agent's layers see ``[C, H, W]``. Where all agents share the network they see a batch
        of one: in torchrl the agents are the batch there. Norms, ``nn.Flatten`` and ``nn.Softmax(1)`` give different
        results for ``[C, H, W]`` and ``[1, C, H, W]``.
        """
        unbatched = bool(inputs) and all(isinstance(x, Tensor) and x.ndim == 4 for x in inputs)  # pyright: ignore
        if unbatched and self.share_params is True and not self.centralized:
            return super().forward(*(x.unsqueeze(0) for x in inputs)).squeeze(0)
        return super().forward(*inputs)

    @merges_agents
    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        if inputs.ndim < 4 or inputs.shape[-4] != self.n_agents:
            raise ValueError(
                f"inputs: expected [*B, n_agents, channels, height, width] with {self.n_agents} agents at dim -4, "
                f"got {inputs.shape}"
            )
        return inputs.flatten(-4, -3) if self.centralized else inputs
