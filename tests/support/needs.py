"""What a test needs, before it runs."""

from __future__ import annotations

import pytest


def needs_of(item: pytest.Item) -> set[str]:
    """The servers a test asks for by a fixture such as `mysql_server`, or by a parameter, such as "mysql"."""
    parameters = (
        item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    )
    names = {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}
    return {name.removesuffix("_server") for name in names}
