"""``CrossGroupCritic``: a centralized critic over several groups of agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensordict.nn import TensorDictModule  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from functional_marl._arguments import as_flag, as_index, short_repr
from functional_marl._errors import StructureError
from functional_marl.nn._layer_options import check_class, check_device
from functional_marl.nn._single_agent_mlp import MLP

__all__ = ["CrossCriticGroupSpec", "CrossGroupCritic"]

NestedKey = str | tuple[str, ...]


@dataclasses.dataclass
class CrossCriticGroupSpec:
    """One group of agents as :class:`CrossGroupCritic` sees it.

    Each of its ``n_agents`` agents observes ``obs_dim`` numbers. The observations are under ``obs_key``, the values
    are written under ``value_key``.

    >>> CrossCriticGroupSpec(8, 2, ("medics", "observation"), ("medics", "state_value")).n_agents
    2
    """

    obs_dim: int
    n_agents: int
    obs_key: NestedKey
    value_key: NestedKey

    def __post_init__(self) -> None:
        self.obs_dim, self.n_agents = as_index(self.obs_dim, "obs_dim", 1), as_index(self.n_agents, "n_agents", 1)
        for name in ("obs_key", "value_key"):
            key = getattr(self, name)
            parts = key if isinstance(key, tuple) else (key,)
            if not parts or not all(isinstance(part, str) for part in parts):
                raise StructureError(f"{name}: expected a string, or a tuple of strings, got {short_repr(key)}")


class _CrossGroupNet(nn.Module):
    """One encoder for each group, a trunk over all agents of all groups, value heads. Tensors in, tensors out."""

    def __init__(
        self,
        groups: Mapping[str, CrossCriticGroupSpec],
        d_model: int,
        trunk_depth: int,
        trunk_cells: int,
        activation_class: Callable[..., Any],
        share_params: bool,
        detach_groups: Iterable[str] | None,
        device: Any,
    ) -> None:
        super().__init__()
        if not isinstance(groups, Mapping) or not groups:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise StructureError(
                f"group_map: expected a dict of CrossCriticGroupSpec, one a group, got {short_repr(groups)}"
            )
        for name, spec in groups.items():
            if not isinstance(name, str) or not name or "." in name:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise StructureError(f"group_map: expected names without dots as groups, got {name!r}")
            if not all(hasattr(spec, field.name) for field in dataclasses.fields(CrossCriticGroupSpec)):
                raise StructureError(f"group_map[{name!r}]: expected a CrossCriticGroupSpec, got {short_repr(spec)}")
        if isinstance(detach_groups, str):
            raise StructureError(
                f"detach_groups: expected a list of groups, got {detach_groups!r}; use [{detach_groups!r}]"
            )
        check_class(activation_class, "activation_class")
        check_device(device)
        d_model, trunk_depth = as_index(d_model, "d_model", 1), as_index(trunk_depth, "trunk_depth", 0)
        trunk_cells, share_params = as_index(trunk_cells, "trunk_cells", 1), as_flag(share_params, "share_params")
        self.shapes = {name: (spec.n_agents, spec.obs_dim) for name, spec in groups.items()}
        try:
            self.detached = frozenset(detach_groups or ())
        except TypeError:
            raise StructureError(f"detach_groups: expected a list of groups, got {short_repr(detach_groups)}") from None
        unknown = sorted(self.detached - self.shapes.keys())
        if unknown:
            raise ValueError(f"detach_groups: expected names among {list(self.shapes)}, got {unknown} too")
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(spec.obs_dim, d_model, device=device), activation_class())
                for name, spec in groups.items()
            }
        )
        joint = sum(n for n, _ in self.shapes.values()) * d_model
        self.trunk = MLP(joint, joint, trunk_depth, trunk_cells, activation_class, device=device)
        self.shared_head = nn.Linear(d_model, 1, device=device) if share_params else None
        heads = {} if share_params else {name: nn.Linear(d_model, 1, device=device) for name in groups}
        self.group_heads = None if share_params else nn.ModuleDict(heads)

    def forward(self, *observations: Tensor) -> tuple[Tensor, ...]:
        """``[*B, n_g, F_g]`` of each group ``-> [*B, n_g, 1]`` of each group."""
        if len(observations) != len(self.shapes):
            raise ValueError(f"expected the observations of the groups {list(self.shapes)}, got {len(observations)}")
        for name, x in zip(self.shapes, observations, strict=True):
            if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"group {name!r}: expected a tensor of observations, got {short_repr(x)}")
        batches = {name: list(x.shape[:-2]) for name, x in zip(self.shapes, observations, strict=True)}
        if any(batch != next(iter(batches.values())) for batch in batches.values()):
            raise ValueError(f"expected the same batch axes in all groups, got {batches}")
        encoded: list[Tensor] = []
        for (name, shape), x in zip(self.shapes.items(), observations, strict=True):
            if x.shape[-2:] != shape:
                raise ValueError(f"group {name!r}: expected observations [*B, {shape[0]}, {shape[1]}], got {x.shape}")
            encoding: Tensor = self.encoders[name](x)
            encoded.append(encoding.detach() if name in self.detached else encoding)
        joint = torch.cat(encoded, -2)  # [*B, n, D]
        mixed = self.trunk(joint.flatten(-2, -1)).unflatten(-1, joint.shape[-2:])
        parts = mixed.split([n for n, _ in self.shapes.values()], -2)
        return tuple(self._head(name)(part) for name, part in zip(self.shapes, parts, strict=True))

    def _head(self, name: str) -> nn.Module:
        return self.shared_head if self.group_heads is None else self.group_heads[name]  # pyright: ignore


class CrossGroupCritic(TensorDictModule):
    """Values of all agents from the observations of all groups, in and out of a TensorDict.

    Each group has an encoder ``F_g -> d_model``. An MLP sees the encodings of all agents at once. A head gives
    each agent its value ``[*B, n_g, 1]``.

    Args:
        group_map: group name -> :class:`CrossCriticGroupSpec`, in the order of the inputs.
        d_model: the width of the encodings.
        trunk_depth, trunk_cells: the hidden layers of the MLP.
        activation_class: for encoders and MLP.
        share_params: one head for all groups, instead of one for each.
        detach_groups: groups that the values depend on, but whose encoders and observations get no gradient.
        device: where to make the parameters.

    Raises:
        ValueError: a name in ``detach_groups`` that is no group; at the call, observations of another shape.

    MAPPO's centralized critic (Yu et al. 2022, arXiv:2103.01955) over several groups;
    ``torchrl.modules.CrossGroupCritic``.

    >>> from tensordict import TensorDict
    >>> groups = {
    ...     "soldiers": CrossCriticGroupSpec(12, 3, ("soldiers", "observation"), ("soldiers", "state_value")),
    ...     "medics": CrossCriticGroupSpec(8, 2, ("medics", "observation"), ("medics", "state_value")),
    ... }
    >>> critic = CrossGroupCritic(groups, d_model=16, trunk_depth=1, trunk_cells=32)
    >>> observed = {"soldiers": {"observation": torch.zeros(4, 3, 12)}, "medics": {"observation": torch.zeros(4, 2, 8)}}
    >>> critic(TensorDict(observed, batch_size=[4]))["medics", "state_value"].shape
    torch.Size([4, 2, 1])
    """

    def __init__(
        self,
        group_map: Mapping[str, CrossCriticGroupSpec],
        *,
        d_model: int = 64,
        trunk_depth: int = 2,
        trunk_cells: int = 256,
        activation_class: Callable[..., Any] = nn.Tanh,
        share_params: bool = False,
        detach_groups: Iterable[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            module=_CrossGroupNet(
                group_map, d_model, trunk_depth, trunk_cells, activation_class, share_params, detach_groups, device
            ),
            in_keys=[spec.obs_key for spec in group_map.values()],
            out_keys=[spec.value_key for spec in group_map.values()],
        )
