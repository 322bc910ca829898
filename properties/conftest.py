"""Hypothesis profiles: ``HYPOTHESIS_PROFILE=ci python -m pytest properties``.

Examples for each law: 5 to see that all runs (smoke), 25 for a quick run (dev), 100 by default (test), 200 (ci),
2,000 (nightly). All but nightly generate the same examples at each run, so that nothing fails by chance, and run fewer
examples of slow laws. Laws about compilers and statistics, which are at least 20 times as slow, get fewer examples in
all profiles, and none in smoke.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# Building a network takes milliseconds, and a subject has many parts to generate. Both are normal here.
_USUAL = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
for _name, _examples in (("smoke", 5), ("dev", 25), ("test", 100), ("ci", 200)):
    settings.register_profile(
        _name, _USUAL, max_examples=_examples, derandomize=True, database=None, print_blob=_name == "ci"
    )
settings.register_profile("nightly", _USUAL, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


@pytest.fixture(scope="session")
def examples() -> Callable[[int], int]:
    """A function from a law's cost, in cases of an ordinary law, to its number of examples."""
    most = settings().max_examples
    free = 20 if most == settings.get_profile("nightly").max_examples else 1
    least = 0 if most == settings.get_profile("smoke").max_examples else 1

    def count(cost: int) -> int:
        fewer = max(least, most // cost) if cost >= free else most
        return max(1, fewer) if cost < 20 else fewer

    return count
