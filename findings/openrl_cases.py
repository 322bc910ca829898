"""OpenRL's multi-agent transformer: an encoder that sees all agents, and actors with shared or own parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from case import Case, checked
from openrl.modules.networks.MAT_network import Decoder, Encoder
from torch import Tensor, nn

N, F, A, H = 3, 6, 4, 8


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
    example = torch.zeros(2, N, F)
    yield "Encoder", "", checked(Values, example, n_agents=N, sharing="shared", communication=True)
    for share in (True, False):
        build = lambda share=share: Actors(share)  # noqa: E731
        claim = "shared" if share else "independent"
        yield "Decoder", f"dec_actor=True, share_actor={share}", checked(build, example, n_agents=N, sharing=claim)
