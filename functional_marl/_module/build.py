"""Initializing one agent's module: a factory that runs under a seed, and the check that it is repeatable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from functional_marl._clean_context import regular_tensors
from functional_marl._errors import RandomnessError, StructureError
from functional_marl._module.held_objects import plain_tensors
from functional_marl._module.lazy import materialize
from functional_marl._module.leaves import all_leaves, named_tensors, same_numbers
from functional_marl._module.limitations import check_parts
from functional_marl._module.reset import ResetFactory
from functional_marl._randomness.rng_state import GlobalGenerators
from functional_marl._randomness.use_generator import sampling_from_seed

__all__ = ["Build", "build_repeatably", "run_factory"]

Build = Callable[[], nn.Module]


@regular_tensors()
def run_factory(build: Build | None, example: tuple[Any, ...] | None, seed: int) -> nn.Module:
    """A new module, a function of the seed alone: all random operations of the factory use that seed.

    Raises:
        StructureError: the network was unpickled without its factory, or the factory gives no module.
    """
    if build is None:
        raise StructureError(
            "this network was unpickled and its factory could not be pickled (a lambda or a local function): "
            "apply works, init_params does not; define the factory at the top level of a module"
        )
    with sampling_from_seed(seed):
        module = build()
        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise StructureError(f"build: expected a function that returns an nn.Module, got {module!r}")
        if not isinstance(build, ResetFactory):
            materialize(module, example)
    return module


def build_repeatably(init_module: Callable[[int], nn.Module]) -> tuple[nn.Module, tuple[str, ...]]:
    """The module for seed 0, and the names of its random buffers, which another seed fills with other numbers.

    Raises:
        RandomnessError: the factory uses torch's global generator where a seed has no effect.
        StructureError: it is no module of one agent, or it has random plain tensors, on which a key has no effect.
    """
    state = GlobalGenerators()
    module = init_module(0)
    if state.changed() and not _same_leaves(module, init_module(0)):  # another thread moves it, too
        state.restore()
        raise RandomnessError(
            "build: the factory uses torch's global generator where a key has no effect, as in a thread that it starts "
            "or in an extension; make the random numbers in the factory itself, by torch's functions"
        )
    check_parts(module)
    plain = plain_tensors(module)
    other = init_module(1) if plain or next(module.buffers(), None) is not None else module
    again = plain_tensors(other)
    lost = [k for k, t in plain.items() if t.grad_fn is not None or not same_numbers(t, again.get(k))]
    if lost:
        raise StructureError(
            f"build: the plain tensor attributes {lost} are random, or computed from parameters, in the factory, and "
            "all agents would have the same ones; make them buffers (register_buffer), or compute them in forward"
        )
    again = named_tensors(other, "_buffers")
    random = [k for k, b in named_tensors(module, "_buffers").items() if not same_numbers(b, again.get(k))]
    return module, tuple(random)


def _same_leaves(a: nn.Module, b: nn.Module) -> bool:
    others = all_leaves(b)
    return all(same_numbers(leaf, others.get(name)) for name, leaf in all_leaves(a).items())
