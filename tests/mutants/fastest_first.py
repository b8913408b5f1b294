"""A plugin for pytest that runs the fastest tests first: most mutants are killed by any of many.

mutmut itself gives them in any order where it forks from a server.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from mutmut.state import state


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the modules by the mean duration of their tests, and the tests of each by their duration."""
    durations = state().duration_by_test
    modules: defaultdict[str, list[float]] = defaultdict(list)
    for item in items:
        modules[item.location[0]].append(durations.get(item.nodeid, 0.0))
    means = {module: sum(seconds) / len(seconds) for module, seconds in modules.items()}

    def order(item: pytest.Item) -> tuple[float, str, float]:
        # Modules stay whole, because each starts servers of its own.
        module = item.location[0]
        return means[module], module, durations.get(item.nodeid, 0.0)

    items.sort(key=order)
