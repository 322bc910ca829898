"""Each law that our own networks, groups and facades can have, on all that its strategies generate.

``-k local_jacobian`` selects one. A failure prints the call that makes its subject again, ready to paste:
``LAWS['local_jacobian'](zoo_subject('mlp', n_agents=2, ...))``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings

from functional_marl.laws import LAWS, Law, NetworkSubject, Subject
from functional_marl.laws.strategies import cases

# Warnings that torch raises: for an op without a batching rule in a vmap of the law itself; and, while it traces, for
# tensors that are set on a module and removed again.
_SLOW = "ignore:There is a performance drop:UserWarning"
_TRACING = [
    _SLOW,
    "ignore:While compiling, we found certain side effects:UserWarning",
]
_FILTERS = {
    "populations_are_loops": [_SLOW],
    "compile_is_eager": _TRACING,
    "export_is_eager": _TRACING,
    "inductor_is_eager": _TRACING,
}


def can_be_generated(law: Law) -> bool:
    """Whether a law is about our own networks, groups, patterns or facades, and not about modules alone."""
    return law.about is not Subject or law.is_about(NetworkSubject)


def _marked(law: Law) -> object:
    return pytest.param(
        law, id=law.name, marks=[pytest.mark.filterwarnings(text) for text in _FILTERS.get(law.name, [])]
    )


GENERATED = [law for law in LAWS.values() if can_be_generated(law)]


@pytest.mark.parametrize("law", [_marked(law) for law in GENERATED])
def test_law(law: Law, examples: Callable[[int], int]) -> None:
    if not examples(law.cost):
        pytest.skip("one case takes seconds, and this profile is short")
    # If one case takes seconds, a failure is not shrunk.
    phases = [phase for phase in Phase if law.cost < 20 or phase is not Phase.shrink]

    @settings(max_examples=examples(law.cost), phases=phases)
    @given(cases(law))
    def holds(case: object) -> None:
        law(case)

    holds()
