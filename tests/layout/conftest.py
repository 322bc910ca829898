"""The fixture of the tests of layout."""

from typing import Any

import pytest


@pytest.fixture(params=["auto", "loop", "vmap"])
def strategy(request: pytest.FixtureRequest) -> Any:
    return request.param
