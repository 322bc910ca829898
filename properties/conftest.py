"""Hypothesis profiles: ``HYPOTHESIS_PROFILE=ci python -m pytest properties``.

Examples for each law: 25 for a quick look (dev), 100 by default (test), 200 (ci), 2,000 (nightly). All but the
last draw the same at each run, so that nothing fails by chance.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Networks take milliseconds to make, and the draws of a subject are many: neither is a sign of trouble here.
_USUAL = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
for _name, _examples in (("dev", 25), ("test", 100), ("ci", 200)):
    settings.register_profile(
        _name, _USUAL, max_examples=_examples, derandomize=True, database=None, print_blob=_name == "ci"
    )
settings.register_profile("nightly", _USUAL, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))
