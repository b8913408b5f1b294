"""How log lines look, and where they go."""

from __future__ import annotations

import logging
import sys
import threading
import time

from pixyproxy.core.request_context import request_id
from pixyproxy.observability.json_logs import JsonFormatter

# At INFO these write the address of every call that they make, or how they work inside.
_TALKATIVE = ("httpx2", "httpcore2", "openai", "mysql.connector", "PIL")
_GRPC_CORE = "grpc._cython.cygrpc"
_ESCAPES = {number: repr(chr(number))[1:-1] for number in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class RequestFormatter(logging.Formatter):
    """Writes ``YYYY-MM-DD HH:MM:SS,mmm LEVEL request-id [thread-id] [method:line] message``.

    A record with the attributes ``method`` and ``line`` is written with these in place of where it was logged.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record on one line, but for a traceback."""
        method = getattr(record, "method", record.funcName)
        line = getattr(record, "line", record.lineno)
        # Whoever sends a line break, as the name of a method too, must not be able to write a line of one's own.
        text = (
            f"{self._time(record)} {record.levelname} {request_id.get()} [{threading.get_native_id()}] "
            f"[{method}:{line}] {record.getMessage()}"
        ).translate(_ESCAPES)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text

    def _time(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{seconds},{int(record.msecs):03d}"


def set_up_logging(level: str, log_format: str = "text") -> None:
    """Send all log lines from ``level`` on to standard error, as ``text`` or as ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else RequestFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(_GRPC_CORE).addFilter(_is_no_metadata)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _is_no_metadata(record: logging.LogRecord) -> bool:
    """Leave out what gRPC writes, with a traceback, of metadata that is not UTF-8: it may be a credential."""
    return not str(record.msg).startswith("Invalid encoding on ")
