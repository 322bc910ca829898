"""Randomness of ``fm.init_params``: all random operations of a factory use one generator, which a key seeds.

Everything here is local to the thread and to a ``with`` block. No global generator is read or written.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import RandomnessError
from functional_marl._randomness.random_ops import is_random_op, passed_generator
from functional_marl._randomness.rng_state import GlobalGenerators
from functional_marl._torch_compat import LocalMode, generator_id, schema

__all__ = ["sampling_from_seed", "seeded_generator"]


@contextlib.contextmanager
def sampling_from_seed(seed: int) -> Generator[None]:
    """Inside, all random operations of this thread use a new CPU generator of this seed.

    Seeding of the global generators is detected by their seeds and states: at the next random operation, and at the
    end. Two cases are not detected, and have no effect on the samples inside: seeding with the generator's own seed
    that is undone at once (``fork_rng``), and setting a state of that same seed.

    Raises:
        RandomnessError: a random operation has another generator (raised before it samples); or the global
            generators were seeded inside (they are restored).
    """
    before = GlobalGenerators()
    completed = False
    try:
        with seeded_generator(seed) as generator, UseGenerator(generator):
            yield
        completed = True
    finally:
        if before.reseeded():
            before.restore()
            if completed:
                raise _global_seeding()


_seeded: set[int] = set()  # the addresses of the generators of seeded_generator, in all threads


@contextlib.contextmanager
def seeded_generator(seed: int) -> Generator[torch.Generator]:
    """A new CPU generator of this seed, which :class:`UseGenerator` accepts.

    A factory may itself initialize a network: then the inner operations have a generator from here already.
    """
    generator = torch.Generator().manual_seed(seed)
    _seeded.add(generator_id(generator))
    try:
        yield generator
    finally:
        _seeded.discard(generator_id(generator))


class UseGenerator(LocalMode):
    """Every random op uses one CPU generator, on whatever device its tensor is: equal numbers on every device.

    A dispatch mode, because a function mode does not see the random ops inside ``torch.nn.init`` and
    ``torch.distributions``.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.global_seed = torch.initial_seed()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op, with the generator if it samples.

        Raises:
            RandomnessError: the op has another generator, or the global one was seeded.
        """
        kwargs = kwargs or {}
        if not is_random_op(func, args, kwargs):
            return func(*args, **kwargs)
        passed = passed_generator(args, kwargs)
        if passed is not None:
            if generator_id(passed) in _seeded:
                return func(*args, **kwargs)
            raise RandomnessError(
                f"random operation {func}: the factory passes a generator of its own, which no key can seed for each "
                "agent; call it without generator=, the key is the seed (numbers that are the same for all agents are "
                "sampled outside of the factory)"
            )
        if torch.initial_seed() != self.global_seed:
            raise _global_seeding()
        kwargs = dict(kwargs)
        overload = _overload_with_generator(func)
        kwargs["generator"] = self.generator
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
        if device.type in ("cpu", "meta"):
            return overload(*args, **kwargs)
        # Sample on the CPU, then move. An op that works in place gets the numbers copied into its tensor.
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        sampled = overload(*[a.cpu() if isinstance(a, Tensor) else a for a in args], **kwargs)
        if tensor is not None and schema(func).is_mutable:
            return tensor.copy_(sampled)
        return sampled.to(device)


@functools.cache
def _overload_with_generator(func: Any) -> Any:
    """The overload of an aten op with a further argument ``generator``, and otherwise the same arguments."""
    names = [a.name for a in schema(func).arguments]
    if "generator" in names:
        return func
    for other in func.overloadpacket.overloads():
        candidate = getattr(func.overloadpacket, other)
        if [a.name for a in schema(candidate).arguments if a.name != "generator"] == names and any(
            a.name == "generator" for a in schema(candidate).arguments
        ):
            return candidate
    raise RandomnessError(
        f"random operation {func} takes no generator, so it cannot sample from a key; use another random operation in "
        "the factory"
    )


def _global_seeding() -> RandomnessError:
    return RandomnessError(
        "the factory seeds torch's global generator (torch.manual_seed, torch.seed, torch.set_rng_state), or another "
        "thread did while it ran: seeding has no effect on the parameters and would change the caller's random "
        "numbers; remove it, the key is the seed"
    )
