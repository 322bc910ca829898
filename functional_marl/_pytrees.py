"""Pytrees: any nesting of dicts, lists, tuples, named tuples and TensorDicts. The only importer of optree.

``None`` is an empty node: it has no leaves and stays where it is. Params are a flat tree, a dict of tensors.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optree
from torch import Tensor

from functional_marl._errors import StructureError

__all__ = [
    "Params",
    "Tree",
    "flatten",
    "is_array",
    "is_tensordict",
    "leaf_names",
    "prefix_leaves",
    "structure",
    "tree_map",
]

Tree = Any
Params = dict[str, Tensor]  # dotted name -> tensor
_NAMESPACE = "functional_marl"
_registered: list[bool] = []
_registering = threading.Lock()


@dataclass(frozen=True)
class _Layout:
    """The structure of a TensorDict, without its leaves; the number of axes of a leaf is not part of it."""

    names: tuple[str, ...]
    batch_dims: int
    ndims: tuple[int | None, ...] = field(compare=False)  # None for a child that is no tensor


def is_tensordict(tree: Tree) -> bool:
    """Whether ``tree`` is a TensorDict; tensordict is not imported for it.

    >>> is_tensordict({"a": 1})
    False
    """
    module = sys.modules.get("tensordict")
    return module is not None and isinstance(tree, module.TensorDictBase)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numpy or another library; a number is none. Modules take no arrays.

    >>> import torch
    >>> is_array(torch.zeros(2)), is_array(1.0)
    (False, False)
    """
    return not isinstance(leaf, Tensor) and hasattr(leaf, "__array__") and hasattr(leaf, "shape") and leaf.shape != ()


def _register_tensordicts() -> None:
    """Register the TensorDict classes in optree, once, if tensordict has been imported."""
    if _registered or "tensordict" not in sys.modules:
        return
    with _registering:
        if not _registered:
            _register()
            _registered.append(True)


def _register() -> None:
    import tensordict as td

    def unflatten(layout: _Layout, children: Sequence[Any]) -> Any:
        # Batch dims are leading dims that all children share. An axis that the leaves gained or lost counts as a batch
        # dim. Too few batch dims are always valid, too many are not.
        sized = [(child, n) for child, n in zip(children, layout.ndims, strict=True) if n is not None]
        gained = min((child.ndim - ndim for child, ndim in sized), default=0)
        alike = itertools.takewhile(
            lambda sizes: len(set(sizes)) == 1, zip(*(child.shape for child, _ in sized), strict=False)
        )
        batch = [sizes[0] for sizes in alike][: max(0, layout.batch_dims + gained)]
        return td.TensorDict(dict(zip(layout.names, children, strict=True)), batch_size=batch)

    def flatten_sorted(d: Any) -> tuple[list[Any], _Layout, tuple[str, ...]]:
        # Sorted, as optree sorts the keys of a dict: the order of insertion is not part of the structure.
        names = tuple(sorted(d.keys()))
        children = [d.get(name) for name in names]
        children = [child.data if isinstance(child, td.NonTensorData) else child for child in children]  # text
        return children, _Layout(names, d.batch_dims, tuple(getattr(child, "ndim", None) for child in children)), names

    for kind in (td.TensorDict, td.LazyStackedTensorDict, td.TensorDictParams):
        optree.register_pytree_node(  # pyright: ignore[reportUnknownMemberType]
            kind,
            flatten_sorted,
            unflatten,  # pyright: ignore
            namespace=_NAMESPACE,
        )


def flatten(tree: Tree) -> tuple[list[Any], Callable[[Sequence[Any]], Tree]]:
    """The leaves of a tree, and a function that builds the tree again from new leaves.

    >>> leaves, rebuild = flatten({"a": 1, "b": (2, None)})
    >>> leaves, rebuild([10, 20])
    ([1, 2], {'a': 10, 'b': (20, None)})
    """
    _register_tensordicts()
    leaves, treedef = optree.tree_flatten(tree, namespace=_NAMESPACE)
    return leaves, treedef.unflatten


def structure(tree: Tree) -> Any:
    """The structure of a tree without its leaves; it can be compared and hashed.

    >>> structure({"a": 1}) == structure({"a": 2}), structure([1]) == structure((1,))
    (True, False)
    """
    _register_tensordicts()
    return optree.tree_structure(tree, namespace=_NAMESPACE)


def leaf_names(tree: Tree, root: str = "") -> list[str]:
    """A readable path for each leaf, in the order of :func:`flatten`.

    >>> leaf_names({"a": 1, "b": (2, 3)}, "x")
    ["x['a']", "x['b'][0]", "x['b'][1]"]
    """
    _register_tensordicts()
    return [f"{root}{a.codify('')}" for a in optree.tree_accessors(tree, namespace=_NAMESPACE)]


def prefix_leaves(prefix: Tree, tree: Tree, what: str) -> list[Any]:
    """The value of ``prefix`` for each leaf of ``tree``, as ``in_dims`` of ``torch.func.vmap``.

    Raises:
        StructureError: ``prefix`` is not a prefix of ``tree``.

    >>> prefix_leaves((0, None), ({"a": 1, "b": 2}, 3), "agent_dim")
    [0, 0, None]
    """
    _register_tensordicts()
    # None is a value in the prefix, and an empty node in the tree, as in `flatten`.
    leaves = optree.tree_leaves(tree, none_is_leaf=True, namespace=_NAMESPACE)
    try:
        values = optree.broadcast_prefix(prefix, tree, none_is_leaf=True, namespace=_NAMESPACE)
        return [value for value, leaf in zip(values, leaves, strict=True) if leaf is not None]
    except ValueError as error:
        raise StructureError(
            f"{what}: expected an int, None or a prefix of the tree it describes, got {prefix!r}: {error}"
        ) from None


def tree_map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply a function to the leaves of one or several trees of the same structure.

    >>> tree_map(lambda a, b: a + b, {"a": 1}, {"a": 2})
    {'a': 3}
    """
    _register_tensordicts()
    return optree.tree_map(function, tree, *rest, namespace=_NAMESPACE)
