from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.openai_stand_in import RunningStandIn, start_stand_in


@pytest.fixture(scope="package")
def stand_in() -> Iterator[RunningStandIn]:
    with start_stand_in() as running:
        yield running


@pytest.fixture
def long_form() -> None:
    """For tests that take minutes."""
    if os.environ.get("PIXYPROXY_TEST_LONG") != "1":
        pytest.skip("left out: the long form of the tests on database clusters (set PIXYPROXY_TEST_LONG=1)")
