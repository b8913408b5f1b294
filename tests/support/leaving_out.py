"""A pytest plugin: tests whose servers or tools are not here are left out, and the last lines say which, why and how to
have them run. Where the environment requires them, they fail instead.
"""

from __future__ import annotations

import os
from collections import Counter
from enum import StrEnum
from typing import NoReturn

import pytest

LEFT_OUT = "left out: "
"""How the reason of every such skip begins."""


class Required(StrEnum):
    """Variables that, set to 1, have tests fail that would be left out; `.ci/run` sets all of them."""

    DATABASES = "PIXYPROXY_TEST_REQUIRE_DATABASES"
    OBJECT_STORES = "PIXYPROXY_TEST_REQUIRE_OBJECT_STORES"
    GRPCURL = "PIXYPROXY_TEST_REQUIRE_GRPCURL"
    PROMTOOL = "PIXYPROXY_TEST_REQUIRE_PROMTOOL"
    CLIENTS = "PIXYPROXY_TEST_REQUIRE_CLIENTS"
    GATEWAYS = "PIXYPROXY_TEST_REQUIRE_GATEWAYS"
    CLUSTER = "PIXYPROXY_TEST_REQUIRE_CLUSTER"
    GALLERY = "PIXYPROXY_TEST_REQUIRE_GALLERY"


def leave_out(what: str, why: str, required: Required) -> NoReturn:
    """Skip the test; fail it where the environment requires what it needs.

    Args:
        what: is left out: "MySQL", "the client in Go".
        why: it is not here, and how to have it: "Go is not there: install it".
        required: the variable that requires it.
    """
    reason = f"{LEFT_OUT}{what} ({' '.join(why.split())})"
    if os.environ.get(required) == "1":
        pytest.fail(f"{reason}, but {required} is set", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was not run, and why."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ").removeprefix(LEFT_OUT)
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        line = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"tests left out: {line}", yellow=True)
