"""What a call has written into its leaves: clones that count their writes, and a mode that sees ``.data``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from functional_marl._torch_compat import data_of, storage_id, unwrapped, write_count

__all__ = ["DataWrites", "clone_counting_writes", "was_written"]


def was_written(clone: Tensor) -> bool:
    """Whether a clone that this call made was written to; False for tensors that do not count their writes."""
    if torch.compiler.is_dynamo_compiling():
        return False
    clone = unwrapped(clone)  # under vmap only the wrapped tensor counts
    return not clone.is_inference() and write_count(clone) > 0


def clone_counting_writes(tensor: Tensor) -> Tensor:
    """A clone that counts its writes, in inference mode too."""
    if torch.compiler.is_dynamo_compiling():
        return tensor.clone()
    if not torch.is_inference_mode_enabled():
        with torch.enable_grad():  # torch's matmul rounds differently if a weight requires no grad
            return tensor.clone()
    with torch.inference_mode(False), torch.no_grad():
        clone = tensor.clone()
        return clone.clone() if was_written(clone) else clone  # the clone of an inference tensor counts its creation


# --- writes through .data ------------------------------------------------------------------------------

_GET, _SET = Tensor.data.__get__, Tensor.data.__set__  # pyright: ignore


class DataWrites(TorchFunctionMode):
    """Keeps every tensor that a forward gets by ``.data``: each counts its own writes.

    Under vmap, where torch raises for ``.data``, it gives a tensor that works.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        if func == _GET:
            alias = data_of(args[0])
            self.taken.append(unwrapped(alias))
            return alias
        if func == _SET and (args[0].shape, args[0].dtype) == (args[1].shape, args[1].dtype):
            alias = data_of(args[0])
            self.taken.append(unwrapped(alias))
            return alias.copy_(args[1])
        return func(*args, **(kwargs or {}))

    def wrote(self, leaf: Tensor) -> bool:
        """Whether something taken by ``.data`` from this leaf, or from a view of it, was written to."""
        if not self.taken:
            return False
        memory = storage_id(unwrapped(leaf))
        return any(write_count(alias) > 0 and storage_id(alias) == memory for alias in self.taken)
