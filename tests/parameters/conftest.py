"""The sharings that the tests of parameters run over."""

from typing import Any

import pytest

from tests.builders import SHARINGS


@pytest.fixture(params=SHARINGS.values(), ids=list(SHARINGS))
def sharing(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[s for n, s in SHARINGS.items() if n != "unused"], ids=[n for n in SHARINGS if n != "unused"])
def full_sharing(request: pytest.FixtureRequest) -> Any:
    """Sharings without unused slots: nothing could fill those."""
    return request.param
