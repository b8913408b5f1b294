"""The format of log lines, and their output."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from pixyproxy.core.request_context import call_id
from pixyproxy.observability.json_logs import JsonFormatter

# At INFO these log the URL of every request that they make, or internals.
_TALKATIVE = ("httpx2", "httpcore2", "openai", "mysql.connector", "PIL")
_GRPC_CORE = "grpc._cython.cygrpc"
_ESCAPES = {number: repr(chr(number))[1:-1] for number in (*range(32), *range(127, 160), 0x2028, 0x2029)}

# A thread that writes releases the interpreter's lock and waits for it again, which costs more than the line itself.
_GATHER_SECONDS = 0.02
_MAX_GATHERED = 1000


class RequestFormatter(logging.Formatter):
    """Writes ``YYYY-MM-DD HH:MM:SS,mmm LEVEL call-id [thread-id] [method:line] message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record on one line; a traceback follows on further lines."""
        text = (
            f"{_local_time(int(record.created))},{int(record.msecs):03d} {record.levelname} {call_id.get()} "
            f"[{threading.get_native_id()}] [{record.funcName}:{record.lineno}] {record.getMessage()}"
        )
        # Clients must not write log lines of their own by line breaks, such as in the name of a method.
        if not text.isprintable():
            text = text.translate(_ESCAPES)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class GatheringHandler(logging.Handler):
    """Writes the lines of up to 20 ms together; lines from ERROR on, and the last ones of a process, at once."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._has_lines = threading.Event()
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line for writing. The caller holds the handler's lock."""
        try:
            self._lines.append(self.format(record) + "\n")
        except Exception:  # As every handler does: an error of the log must not end a call.
            self.handleError(record)
        if record.levelno >= logging.ERROR or len(self._lines) >= _MAX_GATHERED:
            self.flush()
        elif not self._has_lines.is_set():
            self._has_lines.set()
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="log", daemon=True)
                self._writer.start()

    def flush(self) -> None:
        """Write all queued lines."""
        with self._writing, suppress(OSError):  # An error of the log cannot be logged.
            lines = "".join([self._lines.popleft() for _ in range(len(self._lines))])
            for block in _blocks(lines.encode(errors="backslashreplace")):
                os.write(self._descriptor, block)

    def _write_on(self) -> None:
        while True:
            self._has_lines.wait()
            time.sleep(_GATHER_SECONDS)
            self._has_lines.clear()
            self.flush()


def set_up_logging(level: str, log_format: str = "text", *, gathers: bool = False) -> None:
    """Log to standard error.

    Args:
        level: the lowest level to log.
        log_format: ``text`` or ``json``.
        gathers: whether a thread writes several lines together; not for a process that forks later.
    """
    handler = GatheringHandler(sys.stderr.fileno()) if gathers else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else RequestFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # No line shows them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger(_GRPC_CORE).addFilter(_is_no_metadata)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def flush_output() -> None:
    """Write what is buffered. A forked process would write it again, and ``os._exit`` would drop it."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()


@lru_cache(maxsize=2)
def _local_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _blocks(data: bytes) -> Iterator[bytes]:
    """Cut at line ends into blocks that a pipe takes atomically, so that several processes may write to one."""
    start = 0
    while len(data) - start > select.PIPE_BUF:
        # Only a line that is longer than a block exceeds it.
        end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or data.index(b"\n", start) + 1
        yield data[start:end]
        start = end
    yield data[start:]


def _is_no_metadata(record: logging.LogRecord) -> bool:
    """Drop gRPC's records of metadata that is not UTF-8: it may be a credential."""
    return not str(record.msg).startswith("Invalid encoding on ")
