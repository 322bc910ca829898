"""A mode that raises at the first operation that samples."""

from __future__ import annotations

from typing import Any

from functional_marl._errors import RandomnessError
from functional_marl._randomness.random_ops import is_random_op
from functional_marl._torch_compat import LocalMode

__all__ = ["ForbidRandomOps"]


class ForbidRandomOps(LocalMode):
    """Raises :class:`RandomnessError` at the first random op, before it samples.

    Args:
        reason: the part of the message after the name of the op.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op, unless it samples."""
        kwargs = kwargs or {}
        if is_random_op(func, args, kwargs):
            raise RandomnessError(f"random operation {func}: {self.reason}")
        return func(*args, **kwargs)
