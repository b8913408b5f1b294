"""A pytest plugin with the fixtures `mysql_server` and `mariadb_server`.

One server of each kind serves a whole run. It belongs to pytest's main process, which starts it in the background as
soon as collected tests turn out to need it; the workers of pytest-xdist ask the main process for it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol

import pytest

from tests.support.database_servers import (
    DatabaseKind,
    DatabaseServer,
    NoServerError,
    RunningServer,
    launch_server,
    needs_install,
    pointed_server,
)
from tests.support.leaving_out import Required, leave_out
from tests.support.needs import needs_of
from tests.support.programs import INSTALL_VARIABLE

_WORKER_INPUT = "pixyproxy_database_servers"


@dataclass(frozen=True)
class Absence:
    """Why there is no server."""

    reason: str
    mistaken: bool
    """Whether something is wrong that should fail the tests, and not merely a server missing."""


class Provider(Protocol):
    """Where the servers of this run come from."""

    def request(self, kind: DatabaseKind) -> None:
        """Have a server started, without waiting for it; asking again changes nothing."""

    def get(self, kind: DatabaseKind) -> DatabaseServer | Absence:
        """The server, after waiting for it as long as its start takes."""

    def close(self) -> None:
        """Give up what this process holds; servers of its own are stopped."""


class OwnServers:
    """The servers of the main process; its methods may be called by any thread."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        """Start nothing yet. `announce` tells the user what takes long."""
        self._announce = announce
        self._lock = threading.Lock()
        self._starts: dict[DatabaseKind, threading.Event] = {}
        self._outcomes: dict[DatabaseKind, DatabaseServer | Absence] = {}
        self._running: list[RunningServer] = []

    def request(self, kind: DatabaseKind) -> None:
        """Start a server in the background, the first time."""
        with self._lock:
            if kind in self._starts:
                return
            self._starts[kind] = threading.Event()
        if needs_install(kind):
            self._announce(
                f"installing {kind.label} for the tests (once: {kind.size}; {INSTALL_VARIABLE}=0 leaves it out) …"
            )
        # A daemon, so that Ctrl-C does not wait for an install; what that runs dies with this process.
        threading.Thread(target=self._start, args=(kind,), name=f"start {kind}", daemon=True).start()

    def get(self, kind: DatabaseKind) -> DatabaseServer | Absence:
        """The server, or why there is none."""
        self.request(kind)
        self._starts[kind].wait()
        return self._outcomes[kind]

    def close(self) -> None:
        """Stop the servers."""
        for running in self._running:
            running.close()

    def _start(self, kind: DatabaseKind) -> None:
        try:
            self._outcomes[kind] = pointed_server(kind) or self._launch(kind)
        except NoServerError as error:
            self._outcomes[kind] = Absence(str(error), mistaken=False)
        except Exception as error:  # Whatever it is, tests are waiting for an answer.
            self._outcomes[kind] = Absence(f"{type(error).__name__}: {error}", mistaken=True)
        finally:
            self._starts[kind].set()

    def _launch(self, kind: DatabaseKind) -> DatabaseServer:
        running, server = launch_server(kind)
        self._running.append(running)
        return server


class ServerDesk:
    """Answers the workers' questions for servers, in threads of the main process."""

    def __init__(self, servers: OwnServers) -> None:
        """Listen on a port of this machine."""
        self._servers = servers
        self._key = secrets.token_bytes(16)
        self._listener = Listener(("127.0.0.1", 0), authkey=self._key)
        threading.Thread(target=self._listen, name="database servers", daemon=True).start()

    @property
    def address(self) -> tuple[str, int, bytes]:
        """Host, port and key, for `AskedServers`."""
        host, port = self._listener.address
        return host, port, self._key

    def _listen(self) -> None:
        while True:
            # A caller who is not ours, or who is gone already, is none of our concern.
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                caller = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: Connection[Any, Any]) -> None:
        with caller, contextlib.suppress(OSError, EOFError):
            caller.send(self._servers.get(caller.recv()))


class AskedServers:
    """The main process's servers, as a worker sees them."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        """Ask nothing yet."""
        self._address, self._key = (host, port), key
        self._calls: dict[DatabaseKind, Connection[Any, Any]] = {}

    def request(self, kind: DatabaseKind) -> None:
        """Ask the main process, and leave the answer for later."""
        if kind not in self._calls:
            self._calls[kind] = Client(self._address, authkey=self._key)
            self._calls[kind].send(kind)

    def get(self, kind: DatabaseKind) -> DatabaseServer | Absence:
        """The main process's answer."""
        self.request(kind)
        with self._calls.pop(kind) as call:
            answer: DatabaseServer | Absence = call.recv()
        return answer

    def close(self) -> None:
        """Drop the questions whose answers were not needed."""
        for call in self._calls.values():
            call.close()


_PROVIDER = pytest.StashKey[Provider]()
_DESK = pytest.StashKey[ServerDesk]()


def pytest_configure(config: pytest.Config) -> None:
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[_PROVIDER] = AskedServers(*worker_input[_WORKER_INPUT])
    else:
        config.stash[_PROVIDER] = OwnServers(lambda text: _write_line(config, text))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist, before it starts, where to ask."""
    stash = node.config.stash
    if _DESK not in stash:
        stash[_DESK] = ServerDesk(stash[_PROVIDER])
    node.workerinput[_WORKER_INPUT] = stash[_DESK].address


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have servers started for the tests that will run, so that they are ready when needed."""
    if not session.config.option.collectonly:
        for kind in DatabaseKind:
            if any(kind in needs_of(item) for item in session.items):
                session.config.stash[_PROVIDER].request(kind)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers."""
    config.stash[_PROVIDER].close()


@pytest.fixture(scope="session")
def mysql_server(request: pytest.FixtureRequest) -> DatabaseServer:
    """A MySQL server for the whole run; tests are skipped where there is none."""
    return _server(request.config, DatabaseKind.MYSQL)


@pytest.fixture(scope="session")
def mariadb_server(request: pytest.FixtureRequest) -> DatabaseServer:
    """A MariaDB server for the whole run; tests are skipped where there is none."""
    return _server(request.config, DatabaseKind.MARIADB)


def _server(config: pytest.Config, kind: DatabaseKind) -> DatabaseServer:
    answer = config.stash[_PROVIDER].get(kind)
    if isinstance(answer, Absence):
        if answer.mistaken:
            pytest.fail(f"{kind.label}: {answer.reason}", pytrace=False)
        leave_out(kind.label, answer.reason, Required.DATABASES)
    return answer


def _write_line(config: pytest.Config, text: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            reporter.ensure_newline()
            reporter.write_line(text)
