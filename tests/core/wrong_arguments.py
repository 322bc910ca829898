"""Wrong values for an argument (``KINDS``), or for a leaf of an argument that is a tree (``LEAVES``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# --- wrong values ----------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -7,
    "huge": lambda: 10**30,
    "float": lambda: 2.5,
    "nan": lambda: float("nan"),
    "text": lambda: "text",
    "bytes": lambda: b"text",
    "empty list": list,
    "list": lambda: [7.5, "a"],
    "tuple": lambda: (5, 4),
    "set": lambda: {1, 2},
    "empty dict": dict,
    "dict": lambda: {"x": 1, 2: None},
    "int64": lambda: np.int64(2),
    "bool_": lambda: np.bool_(True),
    "array": lambda: np.ones((2, 3)),
    "tensor": lambda: torch.ones(2, 7),
    "scalar": lambda: torch.tensor(2.5),
    "bools": lambda: torch.tensor([True, False]),
    "meta": lambda: torch.ones(2, 7, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "dtype": lambda: torch.int64,
    "function": lambda: len,
    "module": lambda: nn.Linear(2, 2),
    "object": object,
}
INTS = {"int64"}  # right wherever an int is right


def _each(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    """A tree with its first leaf changed."""

    def changed(tree: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(tree))
        return {**tree, name: change(tree[name])}

    return changed


# wrong values for a tensor of numbers, made from the right one
NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "on meta": lambda x: x.to("meta"),
    "sparse numbers": lambda x: x.to_sparse(),
    "as an array": lambda x: x.numpy(),
    "as lists": lambda x: x.tolist(),
    "by agent": lambda x: {f"agent_{i}": x[:, i] for i in range(x.shape[1])},
    "agents less": lambda x: x[:, 1:],
    "features less": lambda x: x[..., 1:],
    "one agent's": lambda x: x[0, 0],
    "integers": lambda x: x.to(torch.int64),
    "another dtype": lambda x: x.to(torch.float64),
    "complex": lambda x: x.to(torch.complex64),
}
# wrong values for a tree of tensors, made from the right one
LEAVES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a leaf less": lambda tree: dict(list(tree.items())[1:]),
    "a leaf more": lambda tree: {**tree, "more": torch.ones(3, 2)},
    "a number as name": lambda tree: {**tree, 3: torch.ones(3, 2)},
    "None as leaf": _each(lambda _: None),
    "float as leaf": _each(lambda _: 1.5),
    "text as leaf": _each(lambda _: "text"),
    "list as leaf": _each(lambda leaf: leaf.tolist()),
    "array as leaf": _each(lambda leaf: leaf.detach().numpy()),
    "rank less": _each(lambda leaf: leaf.sum(0)),
    "rank more": _each(lambda leaf: leaf[None]),
    "slots less": _each(lambda leaf: leaf[:-1]),
    "last axis longer": _each(lambda leaf: torch.cat([leaf, leaf], -1)),
    "meta as leaf": _each(lambda leaf: leaf.to("meta")),
    "sparse as leaf": _each(lambda leaf: leaf.to_sparse()),
    "integers as leaf": _each(lambda leaf: leaf.to(torch.int64)),
    "a population": lambda tree: {name: torch.stack([leaf, leaf]) for name, leaf in tree.items()},
    "two axes of a population": lambda tree: {name: leaf.expand(2, 2, *leaf.shape) for name, leaf in tree.items()},
    "in a list": lambda tree: [tree],
    "nested": lambda tree: {"params": tree},
    "values alone": lambda tree: list(tree.values()),
}


@dataclass
class Call:
    """A right call: its arguments, created for each use, and which other values are right too."""

    function: Callable[..., Any]
    given: Callable[[], dict[str, Any]]
    right: Mapping[str, set[str]] = field(default_factory=dict[str, set[str]])
    trees: tuple[str, ...] = ()  # arguments that are trees of parameters
    numbers: tuple[str, ...] = ()  # arguments that are tensors of numbers, [B, n, F]
    words: Mapping[str, str] = field(default_factory=dict[str, str])  # the name of an argument in messages
    theirs: Mapping[str, set[str]] = field(default_factory=dict[str, set[str]])  # callables that raise their own errors

    def wrong(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """``(argument, kind, arguments)`` for every wrong call."""
        for name in self.given():
            for kind, make in KINDS.items():
                if kind in self.theirs.get(name, ()):
                    continue
                yield name, kind, {**self.given(), name: make()}
        for name in self.trees:
            for kind, change in LEAVES.items():
                if kind in self.theirs.get(name, ()):
                    continue
                given = self.given()
                yield name, kind, {**given, name: change(given[name])}
        for name in self.numbers:
            for kind, change in NUMBERS.items():
                if kind in self.theirs.get(name, ()):
                    continue
                given = self.given()
                yield name, kind, {**given, name: change(given[name])}
