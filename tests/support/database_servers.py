"""Real database servers for tests: pointed at by the environment, or private ones that are thrown away.

A private server keeps real transactions and only leaves out what protects data from a power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

# Before anything that loads OpenSSL, with which the C extension does not load on older systems.
with contextlib.suppress(ImportError):
    import _mysql_connector  # noqa: F401

import mysql.connector
from filelock import FileLock

from tests.support.database_binaries import (
    DatabaseKind,
    NoServerError,
    ServerBinary,
    check_installable,
    find_binary,
    install_binary,
    supported,
)
from tests.support.database_keeping import CommandFailedError, KeptCommand
from tests.support.leaving_out import Required, leave_out
from tests.support.waiting import wait_until

__all__ = [
    "DatabaseKind",
    "DatabaseServer",
    "NoServerError",
    "PrivateServer",
    "RunningServer",
    "execute_on",
    "fresh_database",
    "launch_server",
    "needs_install",
    "pointed_server",
    "private_server",
]

_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 60.0
_CONNECT_TIMEOUT = 10
_READ_TIMEOUT = 60
_DROP_TIMEOUT = 10
_PORT_TRIES = 10
# Below the ports that systems hand out by themselves: a client that keeps calling a stopped server's port there
# can be given this very port as its own, and then talks to itself.
_PORTS = range(15_000, 30_000)

_STORAGE_OPTIONS = {
    DatabaseKind.MYSQL: ("--innodb-redo-log-capacity=32M",),
    DatabaseKind.MARIADB: ("--innodb-log-file-size=32M",),
}
_SPEED_OPTIONS = ("--innodb-flush-method=nosync", "--skip-innodb-doublewrite")
_SERVER_OPTIONS = (
    *_SPEED_OPTIONS,
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-buffer-pool-size=64M",
    "--table-open-cache=400",
    "--max-connections=500",
    "--performance-schema=OFF",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--bind-address=127.0.0.1",
    # In the data folder, where the server runs: an absolute path may be longer than a socket's may be.
    "--socket=server.sock",
    "--pid-file=server.pid",
)
_MYSQL_OPTIONS = ("--mysqlx=OFF", "--secure-file-priv=NULL")


@dataclass(frozen=True)
class DatabaseServer:
    """A running server, and a user who may create databases and users there."""

    kind: DatabaseKind
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    version: str
    """As the server says it: "9.7.4-2", "10.11.19-MariaDB-0+deb12u1"."""

    def url(self, database: str) -> str:
        """The address of a database there, as PixyProxy's settings take it."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"mysql://{login}@{self.host}:{self.port}/{database}"


class RunningServer:
    """A server of our own, with its data; both are gone at the end of this process at the latest.

    Data in a folder that was given stays.
    """

    def __init__(
        self,
        binary: ServerBinary,
        data: Path | None = None,
        options: tuple[str, ...] = (),
        *,
        password: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the data; `start` starts it.

        Args:
            binary: its program.
            data: a folder inside of `binary.work` for data that is to stay, in place of one that is removed.
            options: more options for the program, which come after all others.
            password: of root; by default one of its own.
            environment: variables for the program, beside those of this process.
        """
        template = _template(binary)
        self._binary = binary
        self._options = options
        self._environment = environment
        self._kept = KeptCommand(binary.work / "running")
        self._data = data or self._kept.folder / "data"
        self._password = password or secrets.token_hex(16)
        self._port: int | None = None
        if not self._data.exists():
            shutil.copytree(template, self._data)
            # Servers that replicate must have different ids.
            (self._data / "auto.cnf").unlink(missing_ok=True)
        self._start_script = self._kept.folder / "start.sql"
        self._start_script.write_text(_root_account(self._password))

    def start(self, *options: str) -> DatabaseServer:
        """Start, always on the port of the first start, and wait until the server answers.

        Args:
            options: more options for this start.

        Raises:
            NoServerError: It does not start; the message holds the end of its log.
        """
        ports = [self._port] if self._port else random.sample(_PORTS, _PORT_TRIES)
        for port in filter(_is_free, ports):
            self._port = port
            self._kept.start([*self._command(port), *options], self._environment)
            try:
                return wait_until(self._answer, _START_TIMEOUT, "it to answer")
            except (ChildProcessError, TimeoutError) as error:
                # Somebody else may have taken the port meanwhile; that is no reason to give up.
                if isinstance(error, TimeoutError) or _is_free(port):
                    break
        raise NoServerError(f"{self._binary.kind} {self._binary.version} does not start: {self._kept.log_tail()}")

    def stop(self) -> None:
        """Shut the server down cleanly, as an administrator does."""
        self.thaw()
        self._kept.signal(signal.SIGTERM)
        self._kept.wait(_STOP_TIMEOUT)

    def kill(self) -> None:
        """End the server at once, as a crash does; `start` starts it again with the same data."""
        self._kept.signal(signal.SIGKILL)
        self._kept.wait(_STOP_TIMEOUT)

    def freeze(self) -> None:
        """Stop the server in its tracks: its port still takes connections, and nothing answers."""
        self._kept.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._kept.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and remove its data."""
        self._kept.close()

    def _command(self, port: int) -> list[str]:
        kind, inside = self._binary.kind, self._binary.inside
        return [
            *self._binary.command,
            f"--datadir={inside(self._data)}",
            f"--tmpdir={inside(self._kept.folder)}",
            f"--init-file={inside(self._start_script)}",
            f"--port={port}",
            *_SERVER_OPTIONS,
            *_STORAGE_OPTIONS[kind],
            *(_MYSQL_OPTIONS if kind is DatabaseKind.MYSQL else ()),
            *self._options,
        ]

    def _answer(self) -> DatabaseServer | None:
        assert self._port is not None
        if self._kept.poll() is not None:
            raise ChildProcessError
        with contextlib.suppress(mysql.connector.Error):
            return _identify(self._binary.kind, "127.0.0.1", self._port, "root", self._password)
        return None


@dataclass(frozen=True)
class PrivateServer(DatabaseServer):
    """A server for one test, which may do with it what it likes."""

    running: RunningServer = field(repr=False, compare=False)

    def stop(self) -> None:
        """Shut it down cleanly."""
        self.running.stop()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.running.kill()

    def start(self) -> None:
        """Start it after `stop` or `kill`, on the same port, with the same data; returns when it answers."""
        self.running.start()

    def freeze(self) -> None:
        """Stop it in its tracks: connections are taken, and nothing answers."""
        self.running.freeze()

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self.running.thaw()


def pointed_server(kind: DatabaseKind) -> DatabaseServer | None:
    """The server that the environment points at, if it does.

    Raises:
        ValueError: It points at something that is no such server. That is a mistake, no reason to skip.
    """
    if not (text := os.environ.get(kind.url_variable)):
        return None
    url = urlsplit(text)
    if url.scheme != "mysql" or not url.hostname:
        raise ValueError(f"{kind.url_variable} is not of the form mysql://user:password@host:port/")
    user, password = unquote(url.username or "root"), unquote(url.password or "")
    try:
        server = _identify(kind, url.hostname, url.port or 3306, user, password)
    except mysql.connector.Error as error:
        raise ValueError(f"the server that {kind.url_variable} points at cannot be used: {error}") from error
    if ("MariaDB" in server.version) != (kind is DatabaseKind.MARIADB) or not supported(kind, server.version):
        raise ValueError(f"{kind.url_variable} points at version {server.version}, which is not supported there")
    return server


def needs_install(kind: DatabaseKind) -> bool:
    """Whether having a server takes an install first, one that may be made."""
    if os.environ.get(kind.url_variable):
        return False
    try:
        if find_binary(kind):
            return False
        check_installable(kind)
    except NoServerError:
        return False
    return True


def launch_server(kind: DatabaseKind) -> tuple[RunningServer, DatabaseServer]:
    """Start a server of our own, after an install where there is none and one may be installed.

    Raises:
        NoServerError: There is none to be had.
    """
    binary = find_binary(kind) or install_binary(kind)
    try:
        running = RunningServer(binary)
    except (CommandFailedError, OSError) as error:
        raise NoServerError(f"data for {kind} {binary.version} cannot be made: {error}") from error
    try:
        return running, running.start()
    except BaseException:
        running.close()
        raise


@contextlib.contextmanager
def private_server(kind: DatabaseKind) -> Iterator[PrivateServer]:
    """A server that nobody else uses; the test is skipped where there is none to be had."""
    reason = ""
    try:
        running, server = launch_server(kind)
    except NoServerError as error:
        reason = str(error)
    # Outside of the handler, so that the report shows the reason once.
    if reason:
        leave_out(kind.label, reason, Required.DATABASES)
    with contextlib.closing(running):
        yield PrivateServer(**vars(server), running=running)


@contextlib.contextmanager
def fresh_database(server: DatabaseServer) -> Iterator[str]:
    """An empty database: gives its URL, and drops it at the end.

    Dropping waits for open transactions a few seconds, and then fails: a test must close its connections.
    A private server keeps its databases: it may be stopped, and its data goes with it.
    """
    name = f"pixyproxy_test_{secrets.token_hex(8)}"
    with _cursor(server) as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    try:
        yield server.url(name)
    finally:
        if not isinstance(server, PrivateServer):
            with _cursor(server) as cursor:
                cursor.execute(f"SET SESSION lock_wait_timeout = {_DROP_TIMEOUT}")
                cursor.execute(f"DROP DATABASE {name}")


def execute_on(server: DatabaseServer, *statements: str) -> list[Any]:
    """Run statements on a server, and return the rows of the last one."""
    rows: list[Any] = []
    with _cursor(server) as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = list(cursor.fetchall()) if cursor.description else []
    return rows


def _identify(kind: DatabaseKind, host: str, port: int, user: str, password: str) -> DatabaseServer:
    server = DatabaseServer(kind, host, port, user, password, version="")
    with _cursor(server) as cursor:
        cursor.execute("SELECT VERSION()")
        (version,) = cursor.fetchone()
    return replace(server, version=version)


@contextlib.contextmanager
def _cursor(server: DatabaseServer) -> Iterator[Any]:
    connection = mysql.connector.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        connection_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
    )
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        yield cursor


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port with connections on their way out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _root_account(password: str) -> str:
    """What makes an account out of a template's data, at every start; one statement a line."""
    return (
        # Each member of a replicated group makes it.
        "SET sql_log_bin = 0;\n"
        f"CREATE USER IF NOT EXISTS 'root'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        # Data that stayed knows an earlier one.
        f"ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
        "DROP USER IF EXISTS 'root'@'localhost';\n"
    )


def _template(binary: ServerBinary) -> Path:
    """A data folder as a first start leaves it: made once for each version, because it takes seconds."""
    options = (*_SPEED_OPTIONS, *_STORAGE_OPTIONS[binary.kind])
    fingerprint = hashlib.sha256(repr((binary, options)).encode()).hexdigest()[:12]
    templates = binary.work / "templates"
    template = templates / f"{binary.kind}-{fingerprint}"
    templates.mkdir(parents=True, exist_ok=True)
    with FileLock(templates / f"{template.name}.lock"):
        if not template.exists():
            with KeptCommand(binary.work / "preparing") as kept:
                data = kept.folder / "data"
                data.mkdir(mode=0o700)
                _INITIALISERS[binary.kind](binary, kept, data, options)
                # Last, so that what bears the name is whole.
                data.rename(template)
    return template


def _initialise_mysql(binary: ServerBinary, kept: KeptCommand, data: Path, options: tuple[str, ...]) -> None:
    folder = f"--datadir={binary.inside(data)}"
    kept.run([*binary.command, folder, *options, "--initialize-insecure"], _START_TIMEOUT)


def _initialise_mariadb(binary: ServerBinary, kept: KeptCommand, data: Path, options: tuple[str, ...]) -> None:
    # What mariadb-install-db does. That script needs a program which Debian puts into the client's package.
    folders = f"--datadir={binary.inside(data)}", f"--tmpdir={binary.inside(kept.folder)}"
    kept.run([*binary.command, *folders, *options, "--bootstrap"], _START_TIMEOUT, text=_mariadb_tables(binary))


def _mariadb_tables(binary: ServerBinary) -> str:
    """The statements that make MariaDB's own tables, without any account."""
    with KeptCommand(binary.work / "preparing") as asking:
        asking.run([*binary.command, "--verbose", "--help"], _START_TIMEOUT)
        settings = dict(line.split(maxsplit=1) for line in asking.log.read_text().splitlines() if " " in line.strip())
    share = Path(settings["character-sets-dir"].strip()).parent
    scripts = "mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data"
    return "\n".join(
        [
            "CREATE DATABASE mysql;",
            "USE mysql;",
            "SET @auth_root_socket = NULL;",
            *((share / f"{script}.sql").read_text() for script in scripts),
            "DELETE FROM global_priv WHERE User <> 'mariadb.sys';",
            "DELETE FROM proxies_priv;",
            "",
        ]
    )


_INITIALISERS: dict[DatabaseKind, Callable[[ServerBinary, KeptCommand, Path, tuple[str, ...]], None]] = {
    DatabaseKind.MYSQL: _initialise_mysql,
    DatabaseKind.MARIADB: _initialise_mariadb,
}
