"""Wrong modules whose numbers, memory, draws or copies are not what the claim says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from tests.laws.verdict_cases_forms import Keeps
from tests.laws.verdict_cases_right import OneEach, claim, mlp
from tests.laws.verdict_cases_wrong import Wrong

__all__ = ["WRONG_IMPURE"]

# --- NaN --------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Probabilities of the actions that a fixed mask allows: NaN where it allows none."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.net = mlp(6, 5)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).masked_fill(~self.mask, float("-inf")).softmax(-1)


class Standardised(nn.Module):
    """In training a value is divided by its standard deviation over one number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.net(x)
        return (v - v.mean(-1, keepdim=True)) / v.std(-1, keepdim=True, correction=0) if self.training else v


# --- memory -----------------------------------------------------------------------------------------------


class Decays(nn.Module):
    """The temperature falls with the number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) * max(0.1, 1.0 - 0.05 * self.calls)


class Cached(nn.Module):
    """Keeps results by the shape of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.cache: dict[Any, Tensor] = {}

    def key(self, x: Tensor) -> Any:
        return x.shape

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.net(x)
        if self.key(x) not in self.cache:
            self.cache[self.key(x)] = self.net(x)
        return self.cache[self.key(x)]


class CachedById(Cached):
    """Keeps results by ``id``, which the next tensor gets when the first is gone."""

    def key(self, x: Tensor) -> Any:
        return id(x)


class NormalisesAlways(nn.Module):
    """The running mean moves in evaluation, too."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
        return self.net(x - self.mean)


class StaysInEvaluation(nn.Module):
    """Switches itself to evaluation to value its action, and forgets to switch back."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        action = self.actor(x)
        self.eval()
        return torch.cat([action, self.critic(torch.cat([x, action], -1))], -1)


class TeamMemory(nn.Module):
    """Keeps one hidden state for the team, while each agent is said to act on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRUCell(6, 8), nn.Linear(8, 2)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        b, n, f = x.shape
        if self.h is None or len(self.h) != b:
            self.h = x.new_zeros(b, 8)
        h = self.gru(x.reshape(b * n, f), self.h.repeat_interleave(n, 0)).view(b, n, 8)
        self.h = h.mean(1).detach()
        return self.out(h)


# --- draws ------------------------------------------------------------------------------------------------


class NumpyNoise(nn.Module):
    """Exploration noise from numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y + 0.1 * torch.as_tensor(np.random.randn(*y.shape), dtype=y.dtype)


class PythonEpsilon(nn.Module):
    """Epsilon-greedy by Python's random."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        actions = self.net(x).argmax(-1, keepdim=True)
        return torch.tensor(
            [[[random.randrange(5) if random.random() < 0.3 else int(a)] for a in row] for row in actions.flatten(1)]
        )


class OwnGenerator(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.generator = mlp(6, 5), torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        p = self.net(x).softmax(-1)
        return torch.multinomial(p.flatten(0, 1), 1, generator=self.generator).view(*x.shape[:2], 1)


class Reseeds(nn.Module):
    """Seeds torch in every call, to be reproducible."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return Categorical(logits=self.net(x)).sample()


class AlwaysDrops(nn.Module):
    """``F.dropout`` drops in evaluation, too, where nobody says ``self.training``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.first(x).relu(), 0.5))


# --- kinds, inputs, copies --------------------------------------------------------------------------------


class Filled(nn.Module):
    """Fills an output that is always float32."""

    def __init__(self) -> None:
        super().__init__()
        self.actors = nn.ModuleList([mlp() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 3, 2, device=x.device)
        for i, actor in enumerate(self.actors):
            out[:, i] = actor(x[:, i]).to(out.dtype)
        return out


class ScalesInput(nn.Module):
    """Scales and clips observations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.div_(2.0).clamp_(-1.0, 1.0)
        return self.net(x)


class Lambdas(nn.Module):
    """Heads are lambdas that hold this very module: a deepcopy calls the original's."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList([mlp() for _ in range(3)])
        self.heads = [lambda x, i=i: self.nets[i](x) for i in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x[:, i]) for i, head in enumerate(self.heads)], dim=1)


class PlainList(nn.Module):
    """Hidden layers in a plain list: no optimizer and no state_dict has them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(6, 8) for _ in range(3)]
        self.out = nn.ModuleList([nn.Linear(8, 2) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = [layer(x[:, i]).relu() for i, layer in enumerate(self.hidden)]
        return torch.stack([out(h) for out, h in zip(self.out, hidden, strict=True)], dim=1)


class Loose(nn.Module):
    """A trunk that is kept in a plain list: to torch it is not part of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.each = [nn.Linear(6, 6)], OneEach()

    def forward(self, x: Tensor) -> Tensor:
        return self.each(self.trunk[0](x).tanh())


_NOBODY = torch.zeros(5, dtype=torch.bool)
_SECOND = torch.tensor([[True], [False], [True]]).expand(3, 5).contiguous()

WRONG_IMPURE: dict[str, Wrong] = {
    "nan everywhere": (
        lambda: Masked(_NOBODY),
        claim("shared"),
        {"outputs_are_numbers"},
        "no action is allowed, and softmax of -inf alone is NaN",
    ),
    "nan for one agent": (
        lambda: Masked(_SECOND),
        claim("shared", ids=True),
        {"outputs_are_numbers"},
        "agent 1 may do nothing, and its probabilities are NaN",
    ),
    "nan in training": (
        Standardised,
        claim("shared"),
        {"outputs_are_numbers"},
        "training divides zero by zero",
    ),
    "keeps its state, not said": (
        lambda: Keeps(True),
        claim("shared"),
        {"calls_leave_no_memory"},
        "the second call gives another result than the first",
    ),
    "counts its calls": (
        Decays,
        claim("shared"),
        {"calls_leave_no_memory"},
        "results fall with the number of calls, in evaluation too",
    ),
    "a cache by shape": (
        Cached,
        claim("shared"),
        {"calls_leave_no_memory", "batch_is_a_loop"},
        "the second input of a shape gets the result of the first",
    ),
    "a cache by id": (
        CachedById,
        claim("shared"),
        {"calls_leave_no_memory", "batch_is_a_loop"},
        "a tensor that is changed in place, or that gets the place of one that is gone, gets its result",
    ),
    "a running mean in evaluation": (
        NormalisesAlways,
        claim("shared"),
        {"calls_leave_no_memory", "nothing_is_changed"},
        "evaluation moves the mean, which the next call uses",
    ),
    "stays in evaluation": (
        StaysInEvaluation,
        claim("shared"),
        {"nothing_is_changed", "calls_leave_no_memory"},
        "after one call in training the module is no longer in training, and never drops",
    ),
    "one memory for the team": (
        TeamMemory,
        claim("shared", memory=True),
        {"local_jacobian"},
        "what one agent saw is in all agents' outputs of the next call",
    ),
    "noise from numpy": (
        NumpyNoise,
        claim("shared", samples=True),
        {"results_follow_the_seed"},
        "torch's seed does not make results again",
    ),
    "epsilon from python": (
        PythonEpsilon,
        claim("shared", samples=True),
        {"results_follow_the_seed"},
        "torch's seed does not make results again",
    ),
    "noise from numpy, not said": (
        NumpyNoise,
        claim("shared"),
        {"results_follow_the_seed"},
        "evaluation draws, and not from torch",
    ),
    "a generator of its own": (
        OwnGenerator,
        claim("shared", samples=True),
        {"results_follow_the_seed", "calls_leave_no_memory"},
        "draws come from a generator that no seed of torch reaches",
    ),
    "a sampler that seeds torch": (
        Reseeds,
        claim("shared", samples=True),
        {"results_follow_the_seed", "generators_are_untouched", "nothing_is_changed"},
        "every call gives the same draws and sets torch's global seed",
    ),
    "dropout in evaluation": (
        AlwaysDrops,
        claim("shared"),
        {"results_follow_the_seed", "evaluation_draws_nothing", "mode_is_irrelevant_in_evaluation"},
        "F.dropout was not told self.training, and no samples are claimed",
    ),
    "always float32": (
        Filled,
        claim("independent"),
        {"kinds_are_kept"},
        "outputs of a module in float64 are float32",
    ),
    "writes into its input": (
        ScalesInput,
        claim("shared"),
        {"nothing_is_changed"},
        "the caller's observations are scaled and clipped",
    ),
    "lambdas over itself": (
        Lambdas,
        claim("independent"),
        {"copies_are_whole", "state_dicts_are_whole"},
        "a deepcopy computes with the networks of the original",
    ),
    "layers in a plain list": (
        PlainList,
        claim("independent"),
        {"independent_equivariance", "copies_are_whole"},
        "a state_dict loaded into another module of the kind gives other results",
    ),
    "a trunk in a plain list": (
        Loose,
        claim("independent"),
        {"copies_are_whole", "state_dicts_are_whole"},
        "the trunk is in no state_dict, and all agents share it",
    ),
}
