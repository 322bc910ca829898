"""Params as TensorDicts and back; tensordict is imported only when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from functional_marl._arguments import short_repr
from functional_marl._errors import StructureError
from functional_marl._pytrees import is_tensordict

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["as_flat_dict", "from_tensordict", "to_tensordict"]


def as_flat_dict(params: Any, what: str = "params") -> dict[str, Any]:
    """Params as a plain flat dict: a dict itself, a mapping copied, a TensorDict with dotted names; else it raises.

    ``what`` is the name of the argument, for the error.
    """
    if type(params) is dict:
        return params  # pyright: ignore[reportUnknownVariableType]
    if is_tensordict(params):
        return from_tensordict(params)
    if isinstance(params, Mapping):
        return dict(params)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise StructureError(
        f"{what}: expected a dict of dotted names to tensors (or a TensorDict), got {type(params).__name__}"
    )


def to_tensordict(params: Mapping[str, Tensor]) -> TensorDict:
    """Params as a nested TensorDict over the same tensors: ``{"0.weight": ...} -> td["0", "weight"]``.

    Its batch size is ``[S]`` if all leaves have the same number of slots, else ``[]``. ``pytorch.org/tensordict``
    documents the class.

    Raises:
        StructureError: no dict from names to tensors.

    >>> to_tensordict({"0.weight": torch.zeros(3, 2)})["0", "weight"].shape
    torch.Size([3, 2])
    """
    from tensordict import TensorDict

    params = as_flat_dict(params)
    for name, leaf in params.items():
        if not isinstance(name, str) or not isinstance(leaf, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise StructureError(f"params[{name!r}]: expected a tensor under a dotted name, got {short_repr(leaf)}")
    slots = {leaf.shape[:1] for leaf in params.values()}
    batch = slots.pop() if len(slots) == 1 else torch.Size()
    return TensorDict({tuple(name.split(".")): leaf for name, leaf in params.items()}, batch_size=batch)


def from_tensordict(td: Any) -> dict[str, Tensor]:
    """A nested TensorDict as flat params over the same tensors; the inverse of :func:`to_tensordict`.

    Raises:
        StructureError: no TensorDict.

    >>> list(from_tensordict(to_tensordict({"0.weight": torch.zeros(3, 2)})))
    ['0.weight']
    """
    if not is_tensordict(td):
        raise StructureError(f"td: expected a TensorDict, got {type(td).__name__}")
    return {
        name if isinstance(name, str) else ".".join(name): leaf
        for name, leaf in td.items(include_nested=True, leaves_only=True)
    }
