"""One-agent networks of many kinds, with what a law must know about each: the networks that laws are checked on.

:func:`register` adds another one; all strategies then draw it too. The factories stand at the top level,
so that networks made of them pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten
from functional_marl.nets import convnet, gru, mlp

__all__ = ["ZOO", "Bools", "Entry", "Floats", "Ints", "Spec", "register"]


# --- what goes in -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One agent's input without batch axes: its shape and what numbers it holds."""

    shape: tuple[int, ...]
    high: int = 0  # integers below it; 0: floats

    def draw(self, lead: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard normal floats, or integers: ``[*lead, *shape]``."""
        shape = (*lead, *self.shape)
        if self.high == 0:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        drawn = torch.randint(self.high, shape, generator=generator)
        return drawn.bool() if self.high == 2 else drawn


def Floats(*shape: int) -> Spec:
    """Floats of a shape."""
    return Spec(shape)


def Ints(*shape: int, high: int) -> Spec:
    """Integers below ``high``, three or more."""
    return Spec(shape, max(high, 3))


def Bools(*shape: int) -> Spec:
    """Truth values."""
    return Spec(shape, 2)


@dataclass(frozen=True, eq=False)
class Entry:
    """A one-agent network and what laws must know about it.

    Args:
        name: its name in the zoo.
        build: a function that builds one agent's module.
        inputs: one tree of :class:`Spec` for each positional input, without batch axes.
        kwargs: the same for keyword inputs.
        joint: the function that builds the module for ``k`` agents' first inputs merged at their first axis
            (``[k * F]``); None where there is no such module, and then it is never centralized.
        batch_dims: the smallest and the largest number of batch axes that the module takes in front.
        batch_size: the smallest size of a batch axis that training takes.
        rows_apart: whether in evaluation each row of a batch is computed by itself.
        random: whether it draws in training.
        shows_mask: whether an output is zero exactly where the mask of a dropout with p = 1/2 is.
        pooled: whether a joint module says the same in whatever order the agents come.
        masks_agents: whether the first input has leaves "obs" and "alive" (``Bools(1)``), and a joint module
            looks only at the observations of those that are alive.
        vmap: whether ``torch.func.vmap`` can map it.
        compiles: whether dynamo can trace it.
        exports: whether ``torch.export`` can, strict and not.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Tree, ...]
    kwargs: Mapping[str, Tree] = field(default_factory=dict[str, Tree])
    joint: Callable[[int], nn.Module] | None = None
    batch_dims: tuple[int, int] = (0, 2)
    batch_size: int = 1
    rows_apart: bool = True
    random: bool = False
    shows_mask: bool = False
    pooled: bool = False
    masks_agents: bool = False
    vmap: bool = True
    compiles: bool = True
    exports: bool = True

    @property
    def first(self) -> list[Spec]:
        """The leaves of the first input."""
        return flatten(self.inputs[0])[0]

    @property
    def flat(self) -> bool:
        """Whether the first input is one vector of floats and another width can be built."""
        first = self.inputs[0]
        return self.joint is not None and isinstance(first, Spec) and first.high == 0 and len(first.shape) == 1


ZOO: dict[str, Entry] = {}


def register(
    name: str,
    build: Callable[[], nn.Module] | None = None,
    *inputs: Tree,
    joint: Callable[[int], nn.Module] | None = None,
    **about: Any,
) -> Entry:
    """Add a network to the zoo: ``inputs`` are trees of specs, one a positional input.

    ``joint`` builds it for the first inputs of ``k`` agents; ``build`` may then be left out. ``about`` is
    the rest of :class:`Entry`.

    Raises:
        StructureError: the name is taken, or there is nothing to build or no input.

    >>> from functional_marl.laws import zoo
    >>> entry = zoo.register("my net", partial(nn.Linear, 3, 2), zoo.Floats(3))
    >>> zoo.ZOO.pop("my net") is entry
    True
    """
    if name in ZOO:
        raise StructureError(f"zoo: expected a new name, got {name!r}, which is there")
    if build is None and joint is not None:
        build = partial(joint, 1)
    if build is None or not inputs:
        raise StructureError(f"zoo: {name!r}: expected build= or joint=, and a spec for each input")
    entry = Entry(name, build, inputs, joint=joint, **about)
    ZOO[name] = entry
    return entry


# --- modules ----------------------------------------------------------------------------------------------


def _mlp(k: int) -> nn.Module:
    return mlp(4 * k, 5, 3)()


def _convnet(k: int) -> nn.Module:
    return convnet([2 * k, 3, 2], kernel=2)()


def _layernorm(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4 * k, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 2))


def _batchnorm(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4 * k, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def _dropout(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4 * k, 48), nn.Tanh(), nn.Dropout(0.5), nn.Linear(48, 2))


def _weight_norm(k: int) -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(4 * k, 5)), nn.Tanh(), nn.Linear(5, 2))


def _spectral_norm(k: int) -> nn.Module:
    # its norm is an estimate, which moved buffers may bring close to zero: nothing here may saturate
    return nn.Sequential(spectral_norm(nn.Linear(4 * k, 5)), nn.LeakyReLU(), nn.Linear(5, 2))


def _orthogonal() -> nn.Module:
    return nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))


def _lazy(_: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(2))


def _embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(-2), nn.Linear(8, 2))


class Attention(nn.Module):
    """Self-attention over tokens with dropout on the weights: ``[*B, T, 4] -> [*B, T, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """One head after the other over all tokens."""
        return x + self.attention(x, x, x, need_weights=False)[0]


def _attention(_: int) -> nn.Module:
    return Attention()


class Tied(nn.Module):
    """Two layers that use one weight: ``[*B, 4 k] -> [*B, 4 k]``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * k, 4 * k)
        self.second = nn.Linear(4 * k, 4 * k)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """The weight is used twice."""
        return self.second(torch.tanh(self.first(x)))


class Bare(nn.Module):
    """Parameters made in ``__init__`` that no reset knows: ``[*B, 4 k] -> [*B, 2]``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4 * k) / 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a policy."""
        mean = nn.functional.linear(x, self.weight)
        return mean, self.log_std.exp().expand_as(mean)


class Trees(nn.Module):
    """Dicts and tuples in, a dict out, a keyword, and an input that is handed through."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.see = nn.Linear(4 * k, 3)
        self.remember = nn.Linear(3, 3, bias=False)

    def forward(self, seen: dict[str, Tensor], memory: tuple[Tensor, Tensor], *, gain: Tensor) -> dict[str, Any]:
        """``{"obs": [*B, 4 k]}, ([*B, 3], [*B, 3]), gain=[*B] -> {"action": [*B, 3], "rest": ...}``."""
        h = torch.tanh(self.see(seen["obs"]) + self.remember(memory[0]))
        return {"action": h * gain[..., None], "rest": (memory[1], h.sum(-1))}


class Residual(nn.Module):
    """A forward of its own with a skip and a plain tensor attribute: ``[*B, 4 k] -> [*B, 4 k]``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * k, 4 * k) for _ in range(2))
        self.scale = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Each layer adds to what came in."""
        for layer in self.layers:
            x = x + self.scale.to(x.dtype) * torch.tanh(layer(x))
        return x


class Normaliser(nn.Module):
    """Running statistics and a random projection in buffers: ``[*B, 4 k] -> [*B, 2]``."""

    mean: Tensor
    count: Tensor
    projection: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4 * k))
        self.register_buffer("mean", torch.zeros(4 * k))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("projection", torch.randn(4 * k, 2))

    def forward(self, x: Tensor) -> Tensor:
        """In training the buffers move first: one in place, one by a new tensor."""
        if self.training:
            self.mean.mul_(0.75).add_(x.detach().reshape(-1, x.shape[-1]).mean(0), alpha=0.25)
            self.count = self.count + 1
        return torch.tanh((x - self.mean) * self.gain) @ self.projection + self.count


class Mask(nn.Module):
    """A dropout whose mask shows in the output: ``[*B, 4 k] -> [*B, 256]``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(256))
        self.layer = nn.Linear(4 * k, 256)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing but the dropout gives a zero."""
        return self.dropout(self.layer(x) + self.bias)


class Pooled(nn.Module):
    """A sum-decomposed critic, a mean over ``k`` agents: ``[*B, 4 k] -> [*B, 2]`` (Zaheer et al. 2017)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.encode, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        self.absent = nn.Parameter(torch.randn(5))

    def forward(self, seen: Tensor) -> Tensor:
        """All agents are there."""
        return self.head(torch.tanh(self.encode(seen.unflatten(-1, (self.k, 4))) + self.absent).mean(-2))


class Masked(Pooled):
    """The same with a mask: whoever is gone has one learned code. ``{"obs": [*B, 4 k], "alive": [*B, k]}``."""

    def forward(self, seen: dict[str, Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Only those alive are looked at."""
        codes = torch.tanh(self.encode(seen["obs"].unflatten(-1, (self.k, 4))))
        return self.head(torch.where(seen["alive"][..., None], codes, self.absent).mean(-2))


class TorchGRU(nn.Module):
    """``nn.GRU``, which vmap cannot map: ``[*B, T, 3] -> [*B, T, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """All outputs, without the last state."""
        return self.gru(x)[0]


def _gru_cell(k: int) -> nn.Module:
    return nn.GRUCell(3 * k, 4)


register("mlp", None, Floats(4), joint=_mlp)
register("layernorm", None, Floats(4), joint=_layernorm)
# torch 2.13: a plain tensor attribute that is first met inside vmap fails in strict export
register("residual", None, Floats(4), joint=Residual, exports=False)
register("bare", None, Floats(4), joint=Bare)
register("tied", None, Floats(4), joint=Tied)
register("dropout", None, Floats(4), joint=_dropout, random=True)
register("batchnorm", None, Floats(4), joint=_batchnorm, batch_dims=(1, 1), batch_size=2)
register("normaliser", None, Floats(4), joint=Normaliser)
register("convnet", None, Floats(2, 3, 4), joint=_convnet)
register("attention", None, Floats(5, 4), joint=_attention, batch_dims=(0, 1), random=True)
register("recurrent", gru(3, 4), Floats(2, 3), Floats(4), kwargs={"reset": Bools(2)})
register("gru cell", None, Floats(3), Floats(4), joint=_gru_cell, batch_dims=(0, 1))
register("torch gru", TorchGRU, Floats(2, 3), batch_dims=(0, 1), vmap=False, compiles=False, exports=False)
register(
    "trees",
    None,
    {"obs": Floats(4)},
    (Floats(3), Floats(3)),
    joint=Trees,
    kwargs={"gain": Floats()},
)
register("embedding", _embedding, Ints(2, high=7))
register("lazy", None, Floats(4), joint=_lazy)
register("orthogonal", _orthogonal, Floats(4))
register("weight norm", None, Floats(4), joint=_weight_norm)
register("spectral norm", None, Floats(4), joint=_spectral_norm, vmap=False, compiles=False, exports=False)
register("mask", None, Floats(4), joint=Mask, random=True, shows_mask=True)
register("pooled", None, Floats(4), joint=Pooled, pooled=True)
register("masked", None, {"obs": Floats(4), "alive": Bools(1)}, joint=Masked, pooled=True, masks_agents=True)
