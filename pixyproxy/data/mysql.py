"""MySQL 8.4+ and MariaDB 10.11+ through mysql-connector-python."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import mysql.connector
from mysql.connector.constants import ClientFlag
from pydantic import SecretStr

from pixyproxy.core.exceptions import ConflictError, ConstraintViolationError, DBConnectionError, PixyProxyException
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row
from pixyproxy.data.hosts import Host, HostOrder
from pixyproxy.data.migration_lease import RENEWAL_SECONDS, MigrationLease
from pixyproxy.data.mysql_errors import away, guarded, refusal_of
from pixyproxy.data.mysql_statements import bound, with_names
from pixyproxy.data.pool import ConnectionPool

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_READ_ONLY = "The database server at {host}:{port} is read-only."
_ROWS_PER_INSERT = 500
# On a dead connection a statement fails at once. If it takes longer to fail, the server hangs or the network drops its
# packets, and a new connection would take as long again.
_SILENCE_SECONDS = 0.5
# With several hosts, a server that has become read-only may still be read from for so long.
_WRITABLE_SECONDS = 1.0
# A primary of Group Replication that resumes after a freeze acts as the primary until it hears from the group. With
# this consistency, the start of a transaction waits for the group; a SELECT without a table does not.
_HEAR_THE_GROUP = (
    "SET SESSION group_replication_consistency = 'BEFORE'",
    "START TRANSACTION",
    "ROLLBACK",
    "SET SESSION group_replication_consistency = DEFAULT",
)
_UNKNOWN_VARIABLE = 1193
# A machine that freezes or loses its power in a transaction keeps the locks of its rows until the server gives it up,
# by default after eight hours. MariaDB has a limit for transactions, MySQL only one for all idle connections.
# Locks must be waited for less long than answers: otherwise the server seems to be silent, and its host to have failed.
_SET_LIMITS = (
    "SET SESSION innodb_lock_wait_timeout = {lock_wait}, "
    "/*!80000 wait_timeout = {idle} *//*M! idle_transaction_timeout = {idle} */"
)
_MIGRATION_LOCK = "pixyproxy_migrations"
_MIGRATION_TIMEOUT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class MySQLAddress:
    """The address of a database on a MySQL or MariaDB server, or on the nodes of a cluster, with the credentials."""

    hosts: tuple[Host, ...]
    user: str
    password: SecretStr
    database: str


class MySQLDatabase(Database):
    """A database on a MySQL or MariaDB server."""

    kind: Literal["mysql", "sqlite"] = "mysql"

    def __init__(
        self,
        address: MySQLAddress,
        *,
        pool_size: int,
        timeout: float,
        migration_wait: float = 60.0,
        idle_limit: float = 20.0,
        is_audited: bool = False,
    ) -> None:
        """Make a database without connecting to it.

        Args:
            address: the address.
            pool_size: the most connections at a time.
            timeout: the most seconds to wait for one of them, for a new connection, for which several hosts share them,
                and for the result of a statement.
            migration_wait: the most seconds to wait for another migration.
            idle_limit: the seconds after which the server ends a transaction without statements.
            is_audited: whether changes add lines to the outbox of the audit log.
        """
        self._address = address
        self._hosts = HostOrder(address.hosts)
        self._migration_wait = migration_wait
        self._is_audited = is_audited
        self._timeout = timeout
        self._idle_limit = idle_limit
        # When the server of each connection was last seen to take writes, by time.monotonic().
        self._writable_at: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._pool = ConnectionPool(self._connect, _disconnect, size=pool_size, wait=timeout)
        if not mysql.connector.HAVE_CEXT:
            _logger.warning(
                "The C extension of mysql-connector-python is not installed: queries take about twice as long."
            )

    @contextmanager
    def migrating(self) -> Iterator[DatabaseContext]:  # noqa: D102  inherited
        # A step may take much longer than a query, and so may the wait for another migration.
        connection = self._connect(_MIGRATION_TIMEOUT_SECONDS, _MIGRATION_TIMEOUT_SECONDS)
        try:
            context = _MySQLContext(connection)
            lock = {"name": f"{_MIGRATION_LOCK}:{self._address.database}"[:64], "seconds": self._migration_wait}
            if context.fetch_value("SELECT GET_LOCK(:name, :seconds)", lock) != 1:
                raise ConflictError("Another process is changing the tables; try again in a minute.", retry_after=60)
            lease = MigrationLease()
            lease.take(context, self._migration_wait)
            try:
                with closing(self._renewing(lease)):
                    yield context
            finally:
                with suppress(PixyProxyException):  # Then it ends as that of a process that dies.
                    lease.give_back(context)
        finally:
            _disconnect(connection)  # This releases the lock.

    def _renewing(self, lease: MigrationLease) -> PeriodicTask:
        """Start renewing a lease in the background."""

        def renew() -> float:
            with self.reading() as context:
                lease.renew(context)
            return RENEWAL_SECONDS

        task = PeriodicTask("migration lease", renew, retry_interval=RENEWAL_SECONDS)
        task.start()
        return task

    def close(self) -> None:  # noqa: D102  inherited
        self._pool.close()

    def _connect(self, query_timeout: float | None = None, idle_limit: float | None = None) -> Any:
        """Connect to the first host that can be used."""
        timeout = _whole_seconds(self._timeout if query_timeout is None else query_timeout)
        limit = _whole_seconds(self._idle_limit if idle_limit is None else idle_limit)
        refusals: list[PixyProxyException] = []
        for host in self._hosts.in_order():
            try:
                return self._connect_to(host, timeout, limit)
            except PixyProxyException as refusal:
                self._hosts.report_failure(host)
                refusals.append(refusal)
        if len(refusals) == 1:
            raise refusals[0]
        raise away("\n".join(refusal.diagnosis for refusal in refusals)) from refusals[0]

    def _connect_to(self, host: Host, timeout: int, idle_limit: int) -> Any:
        connection = None
        try:
            connection = mysql.connector.connect(
                host=host.name,
                port=host.port,
                user=self._address.user,
                password=self._address.password.get_secret_value(),
                database=self._address.database,
                # MariaDB does not know the default collation of the connector.
                charset="utf8mb4",
                collation="utf8mb4_unicode_ci",
                time_zone="+00:00",
                # The driver escapes with backslashes, and a value that is too long must be an error.
                sql_mode="STRICT_TRANS_TABLES,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
                autocommit=True,
                # The row count of an UPDATE includes rows that it matches and does not change.
                client_flags=[ClientFlag.FOUND_ROWS],
                use_pure=not mysql.connector.HAVE_CEXT,
                connection_timeout=_whole_seconds(self._timeout / len(self._hosts)),
                read_timeout=timeout,
                write_timeout=timeout,
                allow_local_infile=False,
            )
            # A Galera node that has lost the others lets clients sign in, and even answers SELECT without a table.
            connection.cmd_query("DO 1")
            connection.cmd_query(_SET_LIMITS.format(lock_wait=max(1, timeout - 1), idle=idle_limit))
            if len(self._hosts) > 1 and not self._takes_writes(connection):
                raise away(_READ_ONLY.format(**self._names_at(host)))
        except mysql.connector.Error as error:
            _disconnect(connection)
            raise refusal_of(error, **self._names_at(host)) from error
        except BaseException:
            _disconnect(connection)
            raise
        return connection

    def _report_silence(self, connection: Any) -> None:
        self._hosts.report_failure(Host(connection.server_host, connection.server_port))

    def _takes_writes(self, connection: Any) -> bool:
        """Tell whether a server takes writes, unlike a secondary of Group Replication, whose data may be old."""
        _wait_for_group(connection)
        takes_writes = not _MySQLContext(connection).fetch_value("SELECT @@GLOBAL.read_only", {})
        if takes_writes:
            self._writable_at[connection] = time.monotonic()
        return takes_writes

    def _may_have_become_read_only(self, connection: Any) -> bool:
        """Tell whether to check the server again: a primary that was frozen may since have become a secondary."""
        return len(self._hosts) > 1 and time.monotonic() - self._writable_at[connection] > _WRITABLE_SECONDS

    def _names_at(self, host: Host) -> dict[str, object]:
        """Return what diagnoses name of a connection to a host."""
        return {"host": host.name, "port": host.port, "user": self._address.user, "name": self._address.database}

    @contextmanager
    def context(self, *, begin: bool) -> Iterator[DatabaseContext]:  # noqa: D102  inherited
        connection, was_used = self._pool.acquire()
        context = _MySQLContext(connection, self._pool, self._report_silence, may_be_dead=was_used)
        context.is_audited = self._is_audited
        try:
            if was_used and self._may_have_become_read_only(connection):
                context.require(self._takes_writes)
            if begin:
                context.begin()
            yield context
        finally:
            context.end()
            if context.is_connected:
                self._pool.release(context.connection, reusable=context.is_reusable)


class _MySQLContext(DatabaseContext):
    """A connection in use.

    Attributes:
        connection: the driver's connection.
        is_reusable: whether no statement on it was interrupted.
        is_connected: whether there still is a connection to release.
    """

    for_update = " FOR UPDATE"
    now_sql = "SELECT UTC_TIMESTAMP(6) AS now_at"

    def __init__(
        self,
        connection: Any,
        pool: ConnectionPool[Any] | None = None,
        on_silence: Callable[[Any], None] = lambda _: None,
        *,
        may_be_dead: bool = False,
    ) -> None:
        """Use a connection.

        Args:
            connection: the driver's connection.
            pool: replaces a connection that may be dead if its first statement fails.
            on_silence: called with a connection whose server has not answered in time.
            may_be_dead: whether the connection was used before.
        """
        self.connection = connection
        self.is_reusable = True
        self.is_connected = True
        self._pool = pool
        self._on_silence = on_silence
        self._may_be_dead = may_be_dead
        self._in_transaction = False

    def require(self, is_right: Callable[[Any], bool]) -> None:
        """Replace the connection by a new one unless ``is_right`` accepts it.

        Raises:
            DBConnectionError: the new one is not accepted either.
        """

        def check() -> None:
            if not is_right(self.connection):
                raise away()

        self._run(check)

    def begin(self) -> None:
        self._run(lambda: self.connection.cmd_query("START TRANSACTION"))
        self._in_transaction = True

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        def fetch() -> list[Row]:
            columns = self._query(sql, parameters)["columns"]
            rows, _ = self.connection.get_rows()
            return with_names(columns, rows)

        return self._run(fetch)

    def execute(self, sql: str, parameters: Parameters) -> int:
        return int(self._run(lambda: self._query(sql, parameters))["affected_rows"])

    def insert(self, sql: str, parameters: Parameters) -> int:
        return int(self._run(lambda: self._query(sql, parameters))["insert_id"])

    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        # One INSERT or REPLACE can take many rows.
        before, values, of_row = sql.rpartition("VALUES")
        rows_per_statement = _ROWS_PER_INSERT if values else 1
        for start in range(0, len(rows), rows_per_statement):
            chunk = rows[start : start + rows_per_statement]
            texts = b", ".join(bound(self.connection, of_row, row) for row in chunk)
            self._run(partial(self._send, f"{before}{values}".encode() + texts))

    def commit(self) -> None:
        # A commit that was interrupted may have happened, so it is not repeated.
        self._may_be_dead = False
        # The C client's own commit and rollback raise errors other than mysql.connector.Error.
        self._run(lambda: self.connection.cmd_query("COMMIT"))
        self._in_transaction = False

    def end(self) -> None:
        """Roll back what was not committed."""
        if self._in_transaction and self.is_reusable and self.is_connected:
            with suppress(PixyProxyException):  # Then the connection is closed, which rolls back as well.
                self._run(lambda: self.connection.cmd_query("ROLLBACK"))

    def _query(self, sql: str, parameters: Parameters) -> Mapping[str, Any]:
        """Run a statement; return its counts, or the columns of its result.

        A cursor of the driver would need half as much CPU time again; see docs/decisions/database.md.
        """
        return self._send(bound(self.connection, sql, parameters))

    def _send(self, statement: bytes) -> Mapping[str, Any]:
        result: Mapping[str, Any] = self.connection.cmd_query(statement)
        return result

    def _run(self, work: Callable[[], Result]) -> Result:
        """Run a statement; repeat the first one on a new connection if the used one was dead.

        That is safe: the first statement begins a transaction, or is a query outside of one.
        """
        may_be_dead, self._may_be_dead = self._may_be_dead, False
        self.is_reusable = False
        began = time.monotonic()
        try:
            result = guarded(work)
        except DBConnectionError:
            if self._pool is None:
                raise
            is_silent = time.monotonic() - began > _SILENCE_SECONDS
            if is_silent:
                self._on_silence(self.connection)
                self._pool.report_silence(began)
            if is_silent or not may_be_dead:
                # Its server has ended, is read-only or has left its cluster: the idle connections to it are of no use.
                self._pool.close_idle()
                raise
            self.is_connected = False
            self.connection = self._pool.renew(self.connection)
            self.is_connected = True
            result = guarded(work)
        except (ConstraintViolationError, ConflictError):
            self.is_reusable = True  # The server has answered.
            raise
        self.is_reusable = True
        return result


def _wait_for_group(connection: Any) -> None:
    """Wait until a member of Group Replication has applied the transactions of its group; return at once elsewhere.

    Raises:
        mysql.connector.Error: the server is no longer in its group.
    """
    try:
        for statement in _HEAR_THE_GROUP:
            connection.cmd_query(statement)
    except mysql.connector.Error as error:
        if error.errno != _UNKNOWN_VARIABLE:
            raise


def _whole_seconds(seconds: float) -> int:
    """Round to the whole seconds that the C client takes, for which 0 means no limit."""
    return max(1, round(seconds))


def _disconnect(connection: Any) -> None:
    with suppress(Exception):  # To close a broken connection fails in many ways.
        connection.close()
