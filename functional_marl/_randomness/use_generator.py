"""Keeping a factory off the global generators: all its draws come from one generator that a key has seeded.

Everything here is local to the thread and to a ``with`` block.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from functional_marl._errors import RandomnessError
from functional_marl._randomness.keyed_dropout import given_generator, is_random
from functional_marl._torch_compat import LocalMode, generator_id, schema, unwatched

__all__ = ["GlobalState", "drawing_from", "seeded"]


_ours: set[int] = set()  # the addresses of the generators that a key has seeded, of all threads


@contextlib.contextmanager
def seeded(seed: int) -> Generator[torch.Generator]:
    """A CPU generator of this seed, with which :class:`UseGenerator` lets operations draw: networks may be nested."""
    generator = torch.Generator().manual_seed(seed)
    _ours.add(generator_id(generator))
    try:
        yield generator
    finally:
        _ours.discard(generator_id(generator))


class UseGenerator(LocalMode):
    """Every random op draws from one CPU generator, wherever its tensor lives: equal on every device.

    A dispatch mode, because a function mode does not see what ``torch.nn.init`` and
    ``torch.distributions`` draw inside.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.seed = torch.initial_seed()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op, with the generator if it draws.

        Raises:
            RandomnessError: the op was given another generator, or the global one was seeded.
        """
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        given = given_generator(args, kwargs)
        if given is not None:
            if generator_id(given) in _ours:
                return func(*args, **kwargs)
            raise RandomnessError(
                f"random operation {func}: the factory gives it a generator of its own, which no key can seed for each "
                "agent; draw without generator=, the key is the seed (what all agents are to have alike is drawn "
                "outside of the factory)"
            )
        if torch.initial_seed() != self.seed:
            raise _seeded()
        kwargs = dict(kwargs)
        overload = _with_generator(func)
        kwargs["generator"] = self.generator
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
        if device.type in ("cpu", "meta"):
            return overload(*args, **kwargs)
        # Draw on the CPU, then move: in place where the op is in place.
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        drawn = overload(*[a.cpu() if isinstance(a, Tensor) else a for a in args], **kwargs)
        if tensor is not None and schema(func).is_mutable:
            return tensor.copy_(drawn)
        return drawn.to(device)


@functools.cache
def _with_generator(func: Any) -> Any:
    """The overload of an aten op that takes ``generator=`` and is otherwise called alike."""
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
        f"random operation {func} takes no generator, so a key cannot serve it; draw in another way in the factory"
    )


def _seeded() -> RandomnessError:
    return RandomnessError(
        "the factory seeds torch's global generator (torch.manual_seed, torch.seed, torch.set_rng_state), or another "
        "thread did while it ran: seeding has no effect on the parameters and would change the caller's random "
        "numbers; remove it, the key is the seed"
    )


class GlobalState:
    """Torch's global generators as they are when this is made: the CPU's, and CUDA's once it is in use."""

    def __init__(self) -> None:
        generators = (torch.default_generator, *torch.cuda.default_generators)
        with unwatched():
            self._then = [(one, one.initial_seed(), one.get_state()) for one in generators]

    def moved(self) -> bool:
        """Whether numbers were drawn or a generator was seeded since then."""
        with unwatched():
            return not all(one.get_state().equal(state) for one, _, state in self._then)

    def seeded(self) -> bool:
        """Whether a generator was seeded since then. Draws move the state and leave the seed."""
        if any(one.initial_seed() != seed for one, seed, _ in self._then):
            return True
        return self.moved() and any(self._seeded_alike(*then) for then in self._then)

    def _seeded_alike(self, one: torch.Generator, seed: int, state: Tensor) -> bool:
        """Whether a generator was seeded with the seed that it had: it is at the start of its numbers again."""
        with unwatched():
            start = torch.Generator(one.device).manual_seed(seed).get_state()
            return one.get_state().equal(start) and not state.equal(start)

    def restore(self) -> None:
        """Put the generators back."""
        torch.manual_seed(self._then[0][1])  # devices that are not in use yet take their seed from the last call
        for one, _, state in self._then:
            one.set_state(state)


@contextlib.contextmanager
def drawing_from(seed: int) -> Generator[None]:
    """Inside, every torch draw of this thread comes from a fresh CPU generator of this seed.

    Seeding the global generators is seen by their seeds and states, at the next draw and at the end. Not seen, and
    without effect on the draws inside: seeding that is undone at once (``fork_rng``) with the seed that the generator
    had, and setting a state of that same seed.

    Raises:
        RandomnessError: a draw that was given another generator, before it happens; or the global generators
            were seeded inside, and are put back.
    """
    state = GlobalState()
    built = False
    try:
        with seeded(seed) as generator, UseGenerator(generator):
            yield
        built = True
    finally:
        if state.seeded():
            state.restore()
            if built:
                raise _seeded()
