"""How the files ``*_cases.py`` check a network: all laws but those of compilation, which take minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from functional_marl.laws import Report, check

__all__ = ["Case", "checked"]

Case = tuple[str, str, Callable[[], Report]]  # the class, a description, and a function that runs the check


def checked(
    build: Callable[[], nn.Module], example: Any, *, skip: Sequence[str] = (), **how: Any
) -> Callable[[], Report]:
    """A function that checks what ``build`` returns; ``how`` are fields of ``Claims`` and arguments of ``check``."""
    how = {"examples": 8} | how
    return lambda: check(build, example=example, laws="all", skip=["compilation", *skip], **how)
