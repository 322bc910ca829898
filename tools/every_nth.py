"""``EVERY=7 pytest -p tools.every_nth``: each seventh test of each file, a sample for ``tools/compat.py``."""

import os
from collections import Counter

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same tests at each run and in each worker."""
    seen = Counter[object]()
    kept: list[pytest.Item] = []
    for item in items:
        if seen[item.path] % int(os.environ["EVERY"]) == 0:
            kept.append(item)
        seen[item.path] += 1
    items[:] = kept
