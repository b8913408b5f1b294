"""The request that the running code works for: its id, for every log line, and who makes it.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from contextvars import ContextVar

from pixyproxy.core.models import Caller

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request, or "-" outside of one."""

caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Who makes the request, or None where it came without credentials."""
