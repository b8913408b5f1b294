from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.support.needs import needs_of

pytest_plugins = [
    # First, because the others import it: pytest wants to load its plugins itself.
    "tests.support.leaving_out",
    "tests.support.database_fixtures",
    "tests.support.object_store_fixtures",
]

# Playwright comes with `make test-gallery`.
collect_ignore = [] if find_spec("playwright") else ["gallery"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server which may have to be installed first."""
    for item in items:
        if needs_of(item) & {"mysql", "mariadb", "s3", "azure"}:
            item.add_marker("servers")
