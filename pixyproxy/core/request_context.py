"""The context of the running call: its id, its caller and its trace.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from pixyproxy.core.models import Caller

call_id: ContextVar[str] = ContextVar("call_id", default="-")
"""The id of the call, for log lines; "-" outside of calls."""

caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The caller, or None for a call without credentials."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of the trace, or "" without tracing."""

trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))
"""The headers that continue the trace in requests to other services."""
