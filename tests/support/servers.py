"""Real `pixyproxy` processes for tests: a server on a port of its own, and commands that run to their end."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import grpc
from argon2 import PasswordHasher
from pixyproxy_pb.v1.image_service_pb2_grpc import ImageServiceStub
from pydantic import SecretStr

from pixyproxy.bootstrap import open_current_database, open_database
from pixyproxy.core.exceptions import ConflictError, DBConnectionError
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller, ImageCreation, ImageDetailCreate, UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.serving.workers import GENERATION_WORKER_NAME
from pixyproxy.settings import Settings
from tests.support.processes import Process, is_stopped, start_process
from tests.support.waiting import wait_until

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 60.0
_COMMAND_TIMEOUT = 60.0
_COMMAND = (sys.executable, "-m", "pixyproxy")
_SERVE = (*_COMMAND, "serve")
COMMAND_ANEW = (str(Path(sys.executable).with_name("pixyproxy")),)
"""The command line in a process that is not forked from one which has imported everything."""
SERVE_ANEW = (*COMMAND_ANEW, "serve")
"""The command for a server that is not forked from a process which has imported everything."""
_LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)
_FIRST_USER = re.compile(r"^first user: (\S+)\npassword: (\S+)", re.MULTILINE)
_ADMIN = "admin"
_ADMIN_PASSWORD = "the-password-of-the-admin"
_OPTIONS = (
    # A channel of its own for each test, even for the same address: tests count and close connections.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

Metadata = tuple[tuple[str, str], ...]


def basic(username: str, password: str) -> Metadata:
    """The metadata that signs a call in with HTTP Basic credentials."""
    token = base64.b64encode(f"{username}:{password}".encode()).decode()
    return (("authorization", f"Basic {token}"),)


@dataclass(frozen=True)
class Login:
    """A user who can sign in."""

    username: str
    password: str

    @property
    def metadata(self) -> Metadata:
        """What to send along with a call."""
        return basic(self.username, self.password)


ANYBODY: Metadata = ()
"""The metadata of a caller who does not sign in."""


NO_SETTINGS: Mapping[str, str] = {}
OBJECT_STORE_FOLDER = "TEST_OBJECT_STORE_FOLDER"
"""The variable that tells tests, and nobody else, where an object store keeps what a server puts into it."""


def environment(folder: Path, settings: Mapping[str, str] = NO_SETTINGS) -> dict[str, str]:
    """The whole environment of a process that keeps everything in `folder`; nothing of the tests' own leaks in."""
    defaults = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PIXYPROXY_LISTEN": "127.0.0.1:0",
        # The process that is started is then the one that serves, which many tests look into.
        "PIXYPROXY_WORKERS": "1",
        "PIXYPROXY_DATABASE_URL": f"sqlite:///{folder / 'pixyproxy.db'}",
        "PIXYPROXY_IMAGE_STORE": str(folder / "images"),
    }
    return defaults | dict(settings)


@dataclass(frozen=True)
class Finished:
    """A command that has run to its end."""

    status: int
    stdout: str
    stderr: str


def run_command(
    *arguments: str,
    env: Mapping[str, str],
    text: str = "",
    cwd: Path | None = None,
    program: Sequence[str] = _COMMAND,
) -> Finished:
    """Run `pixyproxy` with these arguments to its end, with `text` as its standard input."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(text.encode())
        stdin.seek(0)
        command = [*program, *arguments]
        process = start_process(command, env=env, cwd=cwd or Path.cwd(), stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            status = process.wait(_COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Finished(status, _text_in(stdout), _text_in(stderr))


def _text_in(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class ServerFailedError(Exception):
    """The server process ended before it served; the message holds what it said."""


@dataclass
class RunningServer:
    """A `pixyproxy serve` process that is ready.

    Attributes:
        address: host:port.
        env: its whole environment.
        folder: where it keeps everything.
        process: the process itself.
        admin: who may do everything.
    """

    address: str
    env: dict[str, str]
    folder: Path
    process: Process
    admin: Login
    _stdout: Path
    _stderr: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    # --- Talking to it -------------------------------------------------------------------------------------------

    @cached_property
    def channel(self) -> grpc.Channel:
        """A channel that lives as long as this object."""
        return self._closing.enter_context(self.new_channel())

    @cached_property
    def images(self) -> ImageServiceStub:
        """The image service over `channel`."""
        return image_stub(self.channel)

    def new_channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A further connection, which the caller closes."""
        return grpc.insecure_channel(self.address, options=(*_OPTIONS, *options))

    def new_login(self, class_key: UserClass = UserClass.USER, *, username: str = "", password: str = "") -> Login:
        """Add a user; without a name, one that nobody else has."""
        name = username or f"user-{next(self._numbers)}-{secrets.token_hex(3)}"
        login = Login(name, password or secrets.token_urlsafe(9))
        with self.database() as database:
            _add_user(database, login, class_key)
        return login

    # --- Looking behind it ---------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Its database settings, for tests that look into the database."""
        return settings_in(self.env)

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """Its database, opened beside it."""
        with open_current_database(self.settings) as database:
            yield database

    def caller(self, login: Login) -> Caller:
        """A user as the services know it."""
        with self.database() as database, database.reading() as context:
            user = UserRepository(context).get(login.username)
        return Caller(user_id=user.id, guid=user.guid, username=user.username, class_key=user.class_key)

    def generation_states(self, prompt: str) -> list[str]:
        """The states in the database of all generations for exactly this prompt, the oldest first."""
        with self.database() as database, database.reading() as context:
            rows = context.fetch_all("SELECT request, state FROM generations ORDER BY id", {})
        return [row["state"] for row in rows if json.loads(row["request"])["detail"]["prompt"] == prompt]

    def has_generations_under_way(self) -> bool:
        """Tell whether any generation has not ended yet."""
        sql = "SELECT COUNT(*) FROM generations WHERE state IN ('recorded', 'queued', 'sent')"
        with self.database() as database, database.reading() as context:
            return bool(context.fetch_value(sql, {}))

    def is_settled(self) -> bool:
        """Tell whether no generation is under way, nor a manifest left, which goes a moment after callers are told."""
        return not self.has_generations_under_way() and not any(self.image_folder.glob(".notes/*"))

    @property
    def image_folder(self) -> Path:
        """Where the bytes of images lie in the end; of an object store, where that keeps what was put into it."""
        return Path(self.env.get(OBJECT_STORE_FOLDER) or self.env["PIXYPROXY_IMAGE_STORE"])

    def image_file(self, guid: str) -> Path:
        """Where the bytes of an image lie."""
        return self.image_folder / guid[0:2] / guid[2:4] / guid

    def image_files(self) -> set[Path]:
        """All files with bytes of images, without those of renditions."""
        return {path for path in self.stored_files() if path == self.image_file(path.stem)}

    def stored_files(self) -> set[Path]:
        """All files in the image store, those that stand there for a moment included."""
        # Unlike rglob, it tolerates folders that are removed meanwhile.
        return {Path(folder, name) for folder, _, names in os.walk(self.image_folder) for name in names}

    @property
    def output(self) -> str:
        """What it wrote to its standard output so far."""
        return self._stdout.read_text(encoding="utf-8")

    @property
    def log(self) -> str:
        """What it wrote to its standard error so far."""
        return self._stderr.read_text(encoding="utf-8")

    @property
    def log_lines(self) -> list[str]:
        """The log's lines so far; one that is being written is left out."""
        return self.log.split("\n")[:-1]

    def lines_of(self, call_id: str) -> list[str]:
        """The log's lines of one request so far."""
        return [line for line in self.log_lines if f" {call_id} " in line]

    def wait_for_end_of(self, call_id: str) -> list[str]:
        """Wait until a request has ended, and return its log lines."""
        wait_until(lambda: any("REQUEST END" in line for line in self.lines_of(call_id)), 30, f"the end of {call_id}")
        return self.lines_of(call_id)

    @property
    def rpc_workers(self) -> set[int]:
        """The RPC workers that the process has started."""
        return self._children - self.generation_workers

    @property
    def generation_worker(self) -> int:
        """The only generation worker that it has started."""
        (worker,) = self.generation_workers
        return worker

    @property
    def generation_workers(self) -> set[int]:
        """All of them, and those that have died until that is noticed."""
        found = set()
        for pid in self._children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It has ended by now.
                if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == GENERATION_WORKER_NAME:
                    found.add(pid)
        return found

    @property
    def _children(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return {int(pid) for pid in children.split()}

    def stop_generation_worker(self) -> int:
        """Stop the generation worker until SIGCONT, and return which one it is.

        It is stopped between two transactions: with the locks of one it would stop all others too.
        """
        worker, author_id = self.generation_worker, self.caller(self.admin).user_id
        creation = ImageCreation(detail=ImageDetailCreate(prompt="rolled back"))

        def holds_no_locks() -> bool:
            os.kill(worker, signal.SIGSTOP)
            # Until then, a thread may end the system call that takes a lock.
            wait_until(lambda: is_stopped(worker), _STOP_TIMEOUT, "all threads of the generation worker to stop")
            try:
                with database.transaction() as context:
                    GenerationRepository(context).insert(creation, author_id, "", RequestContext())
            except (ConflictError, DBConnectionError):
                os.kill(worker, signal.SIGCONT)
                return False
            return True

        with self.database() as database:
            wait_until(holds_no_locks, _STOP_TIMEOUT, "the generation worker to hold no locks")
        return worker

    def rpc_worker_of(self, call_id: str) -> int:
        """The RPC worker that a request was made to, by the thread that its id names."""
        thread = call_id.split("-")[-2]
        (pid,) = (pid for pid in self.rpc_workers if Path(f"/proc/{pid}/task/{thread}").exists())
        return pid

    @property
    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    @property
    def open_images(self) -> list[Path]:
        """The image files that the process has open."""
        targets = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # Closed meanwhile.
                targets.append(link.readlink())
        return [target for target in targets if target.is_relative_to(self.env["PIXYPROXY_IMAGE_STORE"])]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes until the end of the context."""
        pids = {self.process.pid, *self._children}
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # --- Ending it -----------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Ask it to end, as a service manager does."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """End it cleanly, and return its exit status."""
        self.terminate()
        return self.process.wait(_STOP_TIMEOUT)

    def kill(self) -> None:
        """End it at once, in whatever it is doing."""
        self.process.kill()
        self.process.wait(_STOP_TIMEOUT)

    def close(self) -> None:
        """Close the channel and make sure that the process is gone."""
        self._closing.close()
        if self.process.poll() is None:
            self.kill()


def image_stub(channel: grpc.Channel) -> ImageServiceStub:
    """The image service over a channel."""
    return ImageServiceStub(channel)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def running_server(
    folder: Path,
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    tracebacks: bool = False,
    command: Sequence[str] = _SERVE,
    makes_first_user: bool = False,
) -> Iterator[RunningServer]:
    """Run a server that keeps everything in `folder`, and stop it at the end.

    At the end it must have stopped cleanly, unless the test stopped it itself, and have logged no traceback,
    unless `tracebacks` allows that.

    Args:
        folder: may hold the data of an earlier server.
        settings: environment variables beyond, or in place of, those of `environment`.
        tracebacks: whether tracebacks may be logged.
        command: what to run, for a server that is made to go wrong.
        makes_first_user: whether it makes the tables of SQLite and the first user itself, which takes it a while.

    Raises:
        ServerFailedError: it did not come to serve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(folder, settings)
    path = settings_in(env).sqlite_path
    # The file of an earlier server is left to this one, which may have to repair it.
    is_prepared_here = path is None or not (makes_first_user or path.exists())
    admin = prepare_database(env) if is_prepared_here else None
    server = _start(folder, env, admin, command)
    try:
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, f"the server ended with an error:\n{server.log}"
        assert tracebacks or "Traceback" not in server.log, f"tracebacks in the log:\n{server.log}"
    finally:
        server.close()


def settings_in(env: Mapping[str, str]) -> Settings:
    """The settings in an environment that say where everything is kept."""
    return Settings.model_validate(
        {"database_url": env["PIXYPROXY_DATABASE_URL"], "image_store": env["PIXYPROXY_IMAGE_STORE"]}
    )


def prepare_database(env: Mapping[str, str]) -> Login:
    """Make the tables of a database server, and an admin, where that was not done before.

    It does here, and so in a fraction of the time, what `pixyproxy db init` and `pixyproxy user add` do.
    """
    login = Login(_ADMIN, _ADMIN_PASSWORD)
    with open_database(settings_in(env)) as database:
        init.upgrade(database)
        with database.reading() as context:
            is_new = not UserRepository(context).has_any()
        if is_new:
            _add_user(database, login, UserClass.ADMIN)
    return login


def _add_user(database: Database, login: Login, class_key: UserClass) -> None:
    """Add a user whose password is as quick to hash and to check as Argon2 allows: tests sign in very often."""
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(login.password)
    with database.transaction() as context:
        UserRepository(context).insert(
            UserCreate(username=login.username, password=SecretStr(hashed), class_key=class_key)
        )
        context.commit()


def _start(folder: Path, env: dict[str, str], admin: Login | None, command: Sequence[str]) -> RunningServer:
    # A server that is started anew in the same folder has output of its own.
    number = next(number for number in itertools.count(1) if not (folder / f"stdout-{number}").exists())
    stdout, stderr = folder / f"stdout-{number}", folder / f"stderr-{number}"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = start_process(command, env=env, cwd=folder, stdout=out, stderr=err)
    try:
        address = wait_until(_address_in(process, stdout, stderr), _START_TIMEOUT, "the server to listen")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return RunningServer(address, env, folder, process, admin or _first_user(folder, stdout), stdout, stderr)


def _address_in(process: Process, stdout: Path, stderr: Path) -> Callable[[], str | None]:
    def look() -> str | None:
        ended = process.poll() is not None
        found = _LISTENING.search(stdout.read_text(encoding="utf-8"))
        if found is None and ended:
            raise ServerFailedError(stderr.read_text(encoding="utf-8"))
        return found[1] if found else None

    return look


def _first_user(folder: Path, stdout: Path) -> Login:
    """The user that was made at the first start, whose password that start printed where the server made it."""
    texts = [path.read_text(encoding="utf-8") for path in (stdout, *folder.glob("stdout-*"))]
    found = next((match for match in map(_FIRST_USER.search, texts) if match), None)
    return Login(found[1], found[2]) if found else Login(_ADMIN, _ADMIN_PASSWORD)
