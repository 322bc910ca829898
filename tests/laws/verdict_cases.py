"""Modules as a sceptical user writes them, each with its author's claim: what decides whether verdicts are right.

The claim has the fields of :class:`functional_marl.laws.Claims`. A wrong module comes with the names of the laws
of which any one is a right verdict, and with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.laws.verdict_cases_forms import RIGHT_FORMS
from tests.laws.verdict_cases_impure import WRONG_IMPURE
from tests.laws.verdict_cases_leaks import WRONG_LEAKS
from tests.laws.verdict_cases_more import RIGHT_MORE, WRONG_MORE
from tests.laws.verdict_cases_right import RIGHT_LOCAL
from tests.laws.verdict_cases_wrong import WRONG_SHARING, Wrong

__all__ = ["RIGHT", "WRONG"]

# Right: name -> (builds the module, the claim).
RIGHT: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {**RIGHT_LOCAL, **RIGHT_FORMS, **RIGHT_MORE}

# Wrong: name -> (builds the module, the claim, laws of which any is a right verdict, what is wrong).
WRONG: dict[str, Wrong] = {**WRONG_SHARING, **WRONG_LEAKS, **WRONG_IMPURE, **WRONG_MORE}
