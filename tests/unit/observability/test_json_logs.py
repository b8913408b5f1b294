"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import Any

from pixyproxy.core.request_context import call_id, trace_id
from pixyproxy.observability.json_logs import JsonFormatter


def _written(message: str, *, with_error: bool = False, **attributes: Any) -> dict[str, Any]:
    try:
        raise ValueError("of what went wrong")
    except ValueError:
        error = sys.exc_info() if with_error else None
    record = logging.LogRecord("a.logger", logging.ERROR, "file.py", 7, message, (), error, "a_function")
    record.__dict__.update(attributes)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields: dict[str, Any] = json.loads(line)
    return fields | {"created": record.created}


def test_the_place_is_that_of_the_method_where_there_is_one() -> None:
    assert [_written("x")[key] for key in ("method", "line", "level")] == ["a_function", 7, "ERROR"]
    assert [_written("x", method="GetImage", line=31)[key] for key in ("method", "line")] == ["GetImage", 31]


def test_the_time_has_its_offset() -> None:
    fields = _written("x")
    time = datetime.fromisoformat(fields["time"])
    assert time.tzinfo is not None
    assert 0 <= fields["created"] - time.timestamp() < 0.001


def test_whoever_sends_a_line_break_writes_no_line() -> None:
    assert _written('x"}\n{"level": "INFO"')["message"] == 'x"}\n{"level": "INFO"'


def test_an_error_is_on_the_same_line() -> None:
    assert "ValueError: of what went wrong" in _written("x", with_error=True)["exception"]


def test_ids() -> None:
    assert (_written("x")["request_id"], "trace_id" in _written("x")) == ("-", False)
    tokens = call_id.set("an-id"), trace_id.set("a" * 32)
    try:
        fields = _written("x")
    finally:
        call_id.reset(tokens[0])
        trace_id.reset(tokens[1])
    assert (fields["request_id"], fields["trace_id"]) == ("an-id", "a" * 32)
