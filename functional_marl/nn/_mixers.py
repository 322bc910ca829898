"""Mixers: from the value of each agent's chosen action to the value of the joint action."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._arguments import as_flag, as_index, as_shape, short_repr
from functional_marl.nn._layer_options import check_device

__all__ = ["Mixer", "QMixer", "VDNMixer"]


class Mixer(nn.Module):
    """Base of the mixers: checks shapes and calls :meth:`mix`, ``[*B, n, 1] -> [*B, 1]``.

    Args:
        n_agents: how many agents.
        needs_state: whether the second input is a global state ``[*B, *state_shape]``.
        state_shape: the shape of the state; an int is one axis.
        device: where the parameters are.

    Raises:
        StructureError: a wrong argument.
        ValueError: at the call, another number of inputs, or inputs of other shapes.

    After ``torchrl.modules.models.multiagent.Mixer`` (pytorch.org/rl).

    >>> class Mean(Mixer):
    ...     def mix(self, chosen_action_value, state):
    ...         return chosen_action_value.mean(-2)
    >>> Mean(n_agents=3, needs_state=False, state_shape=(), device=None)(torch.ones(5, 3, 1)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, n_agents: int, needs_state: bool, state_shape: Sequence[int] | int, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.n_agents = as_index(n_agents, "n_agents", 1)
        self.device = device
        self.needs_state = as_flag(needs_state, "needs_state")
        if isinstance(state_shape, Iterable) and not isinstance(state_shape, str):
            self.state_shape = as_shape(state_shape, "state_shape")
        else:
            self.state_shape = (as_index(state_shape, "state_shape", 1),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """``values: [*B, n, 1]`` and, if needed, ``state: [*B, *state_shape]`` ``-> [*B, 1]``."""
        values, state = self._values_and_state(inputs)
        out = self.mix(values, state)
        expected = (*values.shape[:-2], 1)
        if not isinstance(out, Tensor) or out.shape != expected:  # pyright: ignore[reportUnnecessaryIsInstance]
            got = list(out.shape) if isinstance(out, Tensor) else short_repr(out)  # pyright: ignore
            raise ValueError(f"mix: expected an output of shape {list(expected)}, got {got}")
        return out

    def _values_and_state(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        if not all(isinstance(x, Tensor) for x in inputs):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"inputs: expected tensors, got {', '.join(map(short_repr, inputs))}")
        if len(inputs) != 1 + self.needs_state:
            what = (
                "Mixer that needs state was passed more than 2 inputs or fewer: expected values and state"
                if self.needs_state
                else "Mixer that doesn't need state was passed more than 1 input or none: expected values alone"
            )
            raise ValueError(f"{what}, got {len(inputs)} inputs of shapes {[list(x.shape) for x in inputs]}")
        values, state = inputs[0], inputs[1] if self.needs_state else None
        tail = self.state_shape
        if state is not None and (state.ndim < len(tail) or tuple(state.shape[state.ndim - len(tail) :]) != tail):
            raise ValueError(f"Mixer network expected state with ending shape {list(tail)}, got {list(state.shape)}")
        if values.shape[-2:] != (self.n_agents, 1):
            raise ValueError(
                f"Mixer network expected chosen_action_value with last 2 dimensions {(self.n_agents, 1)} "
                f"(the agents and 1), got {list(values.shape)}"
            )
        if state is not None and state.shape[: state.ndim - len(tail)] != values.shape[:-2]:
            raise ValueError(
                f"Mixer network expected the same batch axes in both inputs, got {list(values.shape[:-2])} in "
                f"chosen_action_value and {list(state.shape[: state.ndim - len(tail)])} in state"
            )
        return values, state

    def mix(self, chosen_action_value: Tensor, state: Any) -> Tensor:
        """The value of the joint action: ``[*B, n, 1]``, ``[*B, *state_shape]`` or None ``-> [*B, 1]``."""
        raise NotImplementedError(f"{type(self).__name__}.mix: expected a subclass that defines it")


class VDNMixer(Mixer):
    """The sum of the agents' values: ``[*B, n, 1] -> [*B, 1]``.

    Args:
        n_agents: how many agents.
        device: has no effect, as there are no parameters; torchrl's class has it.

    Raises:
        ValueError: at the call, a second input, or an input of another shape.

    Value decomposition networks (Sunehag et al. 2017, arXiv:1706.05296); ``torchrl.modules.VDNMixer``.

    >>> VDNMixer(n_agents=3, device="cpu")(torch.ones(5, 3, 1))[0]
    tensor([3.])
    """

    def __init__(self, n_agents: int, device: torch.device | str | None) -> None:
        super().__init__(n_agents=n_agents, needs_state=False, state_shape=torch.Size([]), device=device)

    def mix(self, chosen_action_value: Tensor, state: Any) -> Tensor:
        """The sum over agents."""
        return chosen_action_value.sum(-2)


class QMixer(Mixer):
    """A monotonic mixing network with weights from a global state: ``[*B, n, 1], [*B, *S] -> [*B, 1]``.

    When one agent's value rises, the output does not fall, for all parameters and states.

    Args:
        state_shape: ``S``, the shape of the state; an int is one axis.
        mixing_embed_dim: the width of the mixing network.
        n_agents: how many agents.
        device: where to make the parameters.

    Raises:
        ValueError: at the call, not two inputs, or inputs of other shapes.

    QMIX (Rashid et al. 2018, arXiv:1803.11485); ``torchrl.modules.QMixer``.

    >>> mixer = QMixer(state_shape=(4, 2), mixing_embed_dim=8, n_agents=3, device="cpu")
    >>> mixer(torch.ones(5, 3, 1), torch.zeros(5, 4, 2)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, state_shape: Sequence[int] | int, mixing_embed_dim: int, n_agents: int, device: torch.device | str | None
    ) -> None:
        super().__init__(n_agents=n_agents, needs_state=True, state_shape=state_shape, device=device)
        check_device(device)
        self.embed_dim = as_index(mixing_embed_dim, "mixing_embed_dim", 1)
        self.state_dim = math.prod(self.state_shape)
        self.hyper_w_1 = nn.Linear(self.state_dim, self.embed_dim * self.n_agents, device=device)
        self.hyper_w_final = nn.Linear(self.state_dim, self.embed_dim, device=device)
        self.hyper_b_1 = nn.Linear(self.state_dim, self.embed_dim, device=device)
        self.V = nn.Sequential(
            nn.Linear(self.state_dim, self.embed_dim, device=device),
            nn.ReLU(),
            nn.Linear(self.embed_dim, 1, device=device),
        )

    def mix(self, chosen_action_value: Tensor, state: Tensor) -> Tensor:
        """Two layers. Their weights come from the state and are not negative; their biases may be."""
        batch = chosen_action_value.shape[:-2]
        flat = state.reshape(*batch, self.state_dim)
        w_1 = self.hyper_w_1(flat).abs().unflatten(-1, (self.n_agents, self.embed_dim))  # [*B, n, E]
        row = chosen_action_value.transpose(-2, -1)  # [*B, 1, n]
        hidden = F.elu(row @ w_1 + self.hyper_b_1(flat).unsqueeze(-2))  # [*B, 1, E]
        w_2 = self.hyper_w_final(flat).abs().unsqueeze(-1)  # [*B, E, 1]
        return (hidden @ w_2).squeeze(-1) + self.V(flat)
