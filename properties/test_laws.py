"""Every law, on all that its strategies generate. ``-k local_jacobian`` selects one.

A failure prints the call that makes its subject again, ready to paste:
``functional_marl.laws.laws.local_jacobian(subject('mlp', n_agents=2, ...))``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings

from functional_marl.laws import LAWS, Law, laws
from functional_marl.laws.strategies import cases

# Warnings that torch raises: for an op without a batching rule in a vmap of the law itself; and, while it traces, for
# tensors that are set on a module and removed again.
_SLOW = "ignore:There is a performance drop:UserWarning"
_TRACING = [
    _SLOW,
    "ignore:While compiling, we found certain side effects:UserWarning",
]
_FILTERS = {
    laws.populations_are_loops: [_SLOW],
    laws.compile_is_eager: _TRACING,
    laws.export_is_eager: _TRACING,
    laws.inductor_is_eager: _TRACING,
}


def _marked(law: Law) -> object:
    return pytest.param(law, id=law.name, marks=[pytest.mark.filterwarnings(text) for text in _FILTERS.get(law, [])])


@pytest.mark.parametrize("law", [_marked(law) for law in LAWS.values()])
def test_law(law: Law, examples: Callable[[int], int]) -> None:
    # If one case takes seconds, a failure is not shrunk.
    phases = [phase for phase in Phase if law.cost < 20 or phase is not Phase.shrink]

    @settings(max_examples=examples(law.cost), phases=phases)
    @given(cases(law))
    def holds(case: object) -> None:
        law(case)

    holds()
