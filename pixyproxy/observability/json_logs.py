"""Log lines for programs to read."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime
from functools import lru_cache

from pixyproxy.core.request_context import call_id, trace_id


@lru_cache(maxsize=2)
def _local_time(seconds: int) -> tuple[str, str]:
    """Return a second since 1970 as ISO 8601 has it, and the offset that belongs behind its fractions."""
    text = datetime.fromtimestamp(seconds).astimezone().isoformat()
    return text[:19], text[19:]


class JsonFormatter(logging.Formatter):
    """Writes each record as a JSON object on one line, with what the text format has and the id of the trace.

    The keys: ``time`` (ISO 8601, with its offset), ``level``, ``request_id``, ``thread``, ``method``, ``line``,
    ``message``, and, where there is such, ``trace_id`` and ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        second, offset = _local_time(int(record.created))
        fields: dict[str, object] = {
            "time": f"{second}.{int(record.msecs):03d}{offset}",
            "level": record.levelname,
            "request_id": call_id.get(),
            "thread": threading.get_native_id(),
            # A record may name another place than where it was logged.
            "method": getattr(record, "method", record.funcName),
            "line": getattr(record, "line", record.lineno),
            "message": record.getMessage(),
        }
        if trace_id.get():
            fields["trace_id"] = trace_id.get()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
