"""The request that the running code works for: its id, for every log line, who makes it, and its trace.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from pixyproxy.core.models import Caller

call_id: ContextVar[str] = ContextVar("call_id", default="-")
"""The id of the request, or "-" outside of one."""

caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Who makes the request, or None where it came without credentials."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of the trace that the request is part of, or "" where none is made."""

trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))
"""What tells those who are asked for help with the request that they are part of its trace."""
