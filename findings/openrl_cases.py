"""OpenRL's multi-agent transformer: an encoder that sees all agents, and actors with shared or own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from openrl.modules.networks.MAT_network import Decoder, Encoder
from torch import Tensor, nn

from functional_marl.laws import Report, check

LAWS: list[str] = []
N, F, A, H = 3, 6, 4, 8
Case = tuple[str, str, Callable[[], Report]]


class Values(nn.Module):
    """The encoder's values: ``[B, n, F] -> [B, n, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(5, F, n_block=1, n_embd=H, n_head=2, n_agent=N, encode_state=False)

    def forward(self, x: Tensor) -> Tensor:
        """The state is not used."""
        return self.encoder(x.new_zeros(*x.shape[:2], 5), x)[0]


class Actors(nn.Module):
    """The decoder with ``dec_actor=True``: an MLP of the observation, shared (``share_actor``) or one per agent."""

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.decoder = Decoder(F, A, 1, H, 2, N, dec_actor=True, share_actor=share)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, F] -> [B, n, A]``."""
        return self.decoder(None, None, x)


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""

    def checked(build: Callable[[], nn.Module], without: str = "", **how: Any) -> Callable[[], Report]:
        laws = [law for law in LAWS if law != without]
        return lambda: check(build, n_agents=N, example=torch.zeros(2, N, F), laws=laws, examples=8, **how)

    # Law 15 expects one value for one joint input. Attention gives one per agent, as joint from that agent.
    joint: dict[str, Any] = {"sharing": "shared", "centralized": True, "without": "centralized_rows_are_equal"}
    yield "Encoder", "", checked(Values, **joint)
    for share in (True, False):
        claim = "shared" if share else "independent"
        yield (
            "Decoder",
            f"dec_actor=True, share_actor={share}",
            checked(lambda share=share: Actors(share), sharing=claim),
        )
