"""DI-engine's multi-agent models. By its documentation all agents share one network; in HAVAC each has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from case import Case, checked
from ding.model.template.collaq import CollaQ
from ding.model.template.coma import COMAActorNetwork
from ding.model.template.havac import HAVAC
from ding.model.template.maqac import DiscreteMAQAC
from ding.model.template.mavac import MAVAC
from ding.model.template.qmix import QMix
from ding.model.template.qtran import QTran
from ding.model.template.wqmix import WQMix
from torch import Tensor, nn

N, F, G, A, H = 3, 6, 5, 4, 8


class Wrapped(nn.Module):
    """A model of DI-engine as a function of ``[B, n, F]`` tensors."""

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Tensor:
        """The agents' outputs: ``[B, n, ...]``."""
        return self.call(self.model, *inputs)


def _states(x: Tensor, lists: int = 0) -> list[Any]:
    one: list[None] = [None] * x.shape[1]
    return [[list(one) for _ in range(lists)] if lists else list(one) for _ in range(len(x))]


def _values(model: Any, x: Tensor, **how: Any) -> Tensor:
    data = {
        "obs": {"agent_state": x, "global_state": x.new_zeros(len(x), G), "action_mask": x.new_ones(*x.shape[:2], A)},
        "prev_state": _states(x),
        "action": torch.zeros(1, *x.shape[:2], dtype=torch.long),
    }
    return model(data, single_step=True, **how)["logit"]


def _collaq(model: Any, x: Tensor, alone: Tensor) -> Tensor:
    data = {
        "obs": {
            "agent_state": x,
            "agent_alone_state": alone,
            "agent_alone_padding_state": x * 0.5,
            "global_state": x.new_zeros(len(x), G),
            "action_mask": x.new_ones(*x.shape[:2], A),
        },
        "prev_state": _states(x, 3),
        "action": torch.zeros(1, *x.shape[:2], dtype=torch.long),
    }
    return model(data, single_step=True)["logit"]


def _coma(model: Any, x: Tensor) -> Tensor:
    return model({"obs": {"agent_state": x, "action_mask": None}, "prev_state": _states(x)})["logit"]


def _actor(model: Any, x: Tensor) -> Tensor:
    return model({"agent_state": x, "action_mask": x.new_ones(*x.shape[:-1], A)}, mode="compute_actor")["logit"]


def _critic(model: Any, x: Tensor) -> Tensor:
    return model({"global_state": x}, mode="compute_critic")["value"][..., None]


def _maqac_actor(model: Any, x: Tensor) -> Tensor:
    data = {"obs": {"agent_state": x, "action_mask": x.new_ones(*x.shape[:-1], A)}}
    return model(data, mode="compute_actor")["logit"]


def _havac(model: Any, x: Tensor) -> Tensor:
    data = [{"obs": {"agent_state": x[:, k], "action_mask": x.new_ones(len(x), A)}} for k in range(N)]
    return torch.stack([model(k, one, mode="compute_actor")["logit"] for k, one in enumerate(data)], 1)


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""

    def of(build: Callable[[], nn.Module], call: Callable[..., Tensor], *sizes: int, **how: Any) -> Any:
        example = tuple(torch.zeros(2, N, size) for size in sizes)
        return checked(lambda: Wrapped(build(), call), example, n_agents=N, **{"sharing": "shared"} | how)

    q: Any = {"agent_num": N, "obs_shape": F, "global_obs_shape": G, "action_shape": A, "hidden_size_list": [H, H]}
    for mixer in (True, False):
        yield "QMix", f"mixer={mixer}", of(lambda mixer=mixer: QMix(mixer=mixer, **q), _values, F)
    for kind in ("normal", "pytorch"):
        yield "QMix", f"lstm_type={kind!r}", of(lambda kind=kind: QMix(lstm_type=kind, **q), _values, F)
    yield "QMix", "dueling=True", of(lambda: QMix(dueling=True, **q), _values, F)
    yield "WQMix", "q_star=False", of(lambda: WQMix(**q), _values, F)
    star = lambda model, x: _values(model, x, q_star=True)  # noqa: E731
    yield "WQMix", "q_star=True", of(lambda: WQMix(**q), star, F)
    yield "QTran", "", of(lambda: QTran(embedding_size=H, **q), _values, F)
    yield "CollaQ", "", of(lambda: CollaQ(alone_obs_shape=4, **q), _collaq, F, 4)
    yield "COMAActorNetwork", "", of(lambda: COMAActorNetwork(F, A, [H, H]), _coma, F)
    # By the documentation norm_type is one of 'BN', 'IN', 'SyncBN' and 'LN', and inputs are [B, agents, features].
    # These models also take one agent's [B, features], so the laws can compare with one agent alone.
    small: Any = {"actor_head_hidden_size": H, "critic_head_hidden_size": H}
    for norm in (None, "LN", "BN"):
        mavac = lambda norm=norm: MAVAC(F, G, A, N, norm_type=norm, **small)  # noqa: E731
        maqac = lambda norm=norm: DiscreteMAQAC(F, G, A, norm_type=norm, **small)  # noqa: E731
        for name, part, build, call, size in (
            ("MAVAC", "actor", mavac, _actor, F),
            ("MAVAC", "critic", mavac, _critic, G),
            ("DiscreteMAQAC", "actor", maqac, _maqac_actor, F),
        ):
            one = lambda build=build, call=call: Wrapped(build(), call)  # noqa: E731
            yield name, f"{part}, norm_type={norm!r}", of(build, call, size, single=one)
    yield "HAVAC", "actor", of(lambda: HAVAC(F, G, A, N), _havac, F, sharing="independent")
