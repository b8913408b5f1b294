"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime
from functools import lru_cache

from pixyproxy.core.request_context import call_id, trace_id


@lru_cache(maxsize=2)
def _local_time(seconds: int) -> tuple[str, str]:
    """Return a time in seconds since 1970 as ISO 8601, split before the offset."""
    text = datetime.fromtimestamp(seconds).astimezone().isoformat()
    return text[:19], text[19:]


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object on one line.

    The keys are ``time`` (ISO 8601 with an offset), ``level``, ``request_id`` (the call id), ``thread``, ``method``,
    ``line``, ``message``, and optionally ``trace_id`` and ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        second, offset = _local_time(int(record.created))
        fields: dict[str, object] = {
            "time": f"{second}.{int(record.msecs):03d}{offset}",
            "level": record.levelname,
            "request_id": call_id.get(),
            "thread": threading.get_native_id(),
            # A record may name another method and line than those of the logging call.
            "method": getattr(record, "method", record.funcName),
            "line": getattr(record, "line", record.lineno),
            "message": record.getMessage(),
        }
        if trace_id.get():
            fields["trace_id"] = trace_id.get()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
