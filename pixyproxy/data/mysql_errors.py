"""The errors of MySQL and MariaDB as exceptions of PixyProxy, and what they mean for the operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import mysql.connector

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    PixyProxyException,
    StorageFullError,
)

Result = TypeVar("Result")

# Error numbers of the server and of the client library; the manual's "Error Message Reference" lists them.
_CONSTRAINT_ERRORS = frozenset({1022, 1048, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 3819, 4025})
# 3101: Group Replication could not certify the transaction.
_CONFLICT_ERRORS = frozenset({1205, 1213, 1020, 3101, 3572})
_FULL_ERRORS = frozenset({1021, 1041, 1114})
_CONNECTION_ERRORS = frozenset(
    {1040, 1042, 1043, 1044, 1045, 1049, 1053, 1077, 1129, 1130, 1152, 1158, 1159, 1160, 1161, 1203, 1226, 1290}
    | {1317, 1792, 1836, 1927, 3024, 3168, 3169, 4031}
    # Of a node of a cluster: not ready or without the others (Galera), the same (Group Replication).
    | {1047, 1180, 3100, 3796, 3797, 3798, 3799}
)
# Galera reports with this number whatever prevents a commit: also a conflict, which the text says.
_COMMIT_ERROR = 1180
_COMMIT_CONFLICT = re.compile(r"\b149\b|deadlock", re.IGNORECASE)
_CLIENT_ERRORS = range(2000, 3000)
_DENIED_ERRORS = frozenset({1142, 1143, 1227})
_WRONG_USER = (
    "The database server at {host}:{port} refuses the user {user} or the password. Check PIXYPROXY_DATABASE_USER and "
    "PIXYPROXY_DATABASE_PASSWORD, or PIXYPROXY_DATABASE_URL."
)
_MISSING_RIGHTS = (
    "The database user lacks rights on the database. Check PIXYPROXY_DATABASE_USER and PIXYPROXY_DATABASE_NAME, or "
    "PIXYPROXY_DATABASE_URL; sql/mysql/002 grants the rights."
)
_NO_CONNECTION_LEFT = (
    "The database server at {host}:{port} allows no further connection. Raise its max_connections, or lower "
    "PIXYPROXY_DATABASE_POOL_SIZE."
)
_NO_ANSWER = (
    "No database server answers at {host}:{port}. Check that it runs, and PIXYPROXY_DATABASE_HOST and "
    "PIXYPROXY_DATABASE_PORT, or PIXYPROXY_DATABASE_URL."
)
_DIAGNOSES = {
    1040: _NO_CONNECTION_LEFT,
    1044: _MISSING_RIGHTS,
    1045: _WRONG_USER,
    1047: "The Galera node at {host}:{port} is not ready: it has lost most of the cluster, or is still joining.",
    1049: "The database server at {host}:{port} has no database {name}. Check PIXYPROXY_DATABASE_NAME, or "
    "PIXYPROXY_DATABASE_URL; sql/mysql/001 creates the database.",
    1130: "The database server at {host}:{port} does not allow connections from this host.",
    1203: _NO_CONNECTION_LEFT,
    1226: _NO_CONNECTION_LEFT,
    1698: _WRONG_USER,
    2002: _NO_ANSWER,
    2003: _NO_ANSWER,
    2005: "The host name of the database server, {host}, cannot be resolved. Check PIXYPROXY_DATABASE_HOST, or "
    "PIXYPROXY_DATABASE_URL.",
    2013: _NO_ANSWER,
    2055: _NO_ANSWER,
}
_OTHER_REFUSAL = "The database server at {host}:{port} cannot be used: it or its client library reports error {number}."


def guarded(work: Callable[[], Result]) -> Result:
    """Call ``work``; raise an error of the driver as an exception of PixyProxy."""
    try:
        return work()
    except mysql.connector.Error as error:
        raise _translated(error) from error


def refusal_of(error: mysql.connector.Error, **names: object) -> PixyProxyException:
    """Return the exception for a connection that could not be opened.

    Its diagnosis has ``names``: the host and port of the server, the user, and the name of the database.
    """
    refusal = _translated(error)
    refusal.diagnosis = _DIAGNOSES.get(error.errno, _OTHER_REFUSAL).format(number=error.errno, **names)
    return refusal


def _translated(error: mysql.connector.Error) -> PixyProxyException:
    number = error.errno or 0
    if number in _CONSTRAINT_ERRORS:
        return ConstraintViolationError("The record breaks a rule of the database.")
    if number in _CONFLICT_ERRORS or (number == _COMMIT_ERROR and _COMMIT_CONFLICT.search(error.msg or "")):
        return ConflictError("The change conflicted with another one; nothing was changed. Try again.", retry_after=0.1)
    if number in _FULL_ERRORS:
        return StorageFullError("There is no room left for the details of images.")
    # Errors of the driver itself have no number, such as "MySQL Connection not available" for a dead connection.
    is_drivers = number <= 0 and isinstance(error, (mysql.connector.InterfaceError, mysql.connector.OperationalError))
    if number in _CONNECTION_ERRORS or number in _CLIENT_ERRORS or is_drivers:
        return away()
    diagnosis = _MISSING_RIGHTS if number in _DENIED_ERRORS else f"The database refused a statement: error {number}."
    return PixyProxyException("The database refused a statement.", diagnosis=diagnosis)


def away(diagnosis: str = "") -> DBConnectionError:
    """Return the exception for a database that cannot be reached."""
    return DBConnectionError("The database cannot be reached; try again.", retry_after=1.0, diagnosis=diagnosis)
