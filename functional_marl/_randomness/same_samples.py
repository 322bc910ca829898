"""``randomness="same"`` in the loop, for generators that the module passes to its operations itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functional_marl._randomness.random_ops import is_random_op, passed_generator
from functional_marl._torch_compat import LocalMode, generator_id

__all__ = ["SameSamples"]


class SameSamples(LocalMode):
    """Every agent samples the same numbers as the first one from each generator that the module passes.

    The first use of a generator saves its state. Its first use by each later agent restores that state.
    """

    def __init__(self) -> None:
        super().__init__()
        # By address: an operation sees another Python object each time. A generator that is kept keeps its address.
        self._first: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._used: set[int] = set()

    def next_agent(self) -> None:
        """The next operations are those of another agent."""
        self._used.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op; before an agent's first use of a generator, restore the generator's state."""
        kwargs = kwargs or {}
        passed = passed_generator(args, kwargs) if is_random_op(func, args, kwargs) else None
        if passed is not None:
            address = generator_id(passed)
            if address not in self._used:
                self._used.add(address)
                generator, state = self._first.setdefault(address, (passed, passed.get_state()))
                generator.set_state(state)
        return func(*args, **kwargs)
