"""Statements and rows in the form of the driver of MySQL and MariaDB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import mysql.connector
from mysql.connector.constants import FieldType

from pixyproxy.data.database import Parameters, Row


def with_names(columns: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> list[Row]:
    """Return the rows of a result by column, with the offset of UTC added to times."""
    names = [column[0] for column in columns]
    times = [column[0] for column in columns if column[1] == FieldType.DATETIME]
    named = [dict(zip(names, row, strict=True)) for row in rows]
    for row in named:
        for name in times:
            row[name] = row[name].replace(tzinfo=UTC) if row[name] else None
    return named


def bound(connection: Any, sql: str, parameters: Parameters) -> bytes:
    """Return a statement with the values of its parameters, as the driver escapes them for a connection."""
    texts, names = _parts_of(sql)
    literals = _literals(connection, _to_mysql(parameters))
    parts = [texts[0]]
    for name, text in zip(names, texts[1:], strict=True):
        parts += (literals[name], text)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _parts_of(sql: str) -> tuple[list[bytes], list[bytes]]:
    """Return the texts of a statement around its parameters, and the names of these, each after a colon."""
    parts = [part.encode() for part in re.split(r":([a-z_][a-z0-9_]*)", sql)]
    return parts[::2], parts[1::2]


def _literals(connection: Any, parameters: dict[str, Any]) -> dict[bytes, bytes]:
    """Return values as they stand in a statement, by name."""
    if mysql.connector.HAVE_CEXT:
        literals: dict[bytes, bytes] = connection.prepare_for_mysql(parameters)
        return literals
    converter, sql_mode = connection.converter, connection.sql_mode
    return {
        name.encode(): converter.quote(converter.escape(converter.to_mysql(value), sql_mode))
        for name, value in parameters.items()
    }


def _to_mysql(parameters: Parameters) -> dict[str, Any]:
    """Convert times to UTC without an offset; the driver would drop the offset without applying it."""
    return {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in parameters.items()
    }
