"""The commands for backups in docs/operations.md: run under load, everything destroyed, restored, and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mysql.connector
import pytest

from pixyproxy.core.models import ImageCreation, ImageDetailCreate
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Site, Wish, wait_until_submitted
from tests.support.backup_programs import dump_programs, program_folder
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import ImageClient
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn, start_stand_in
from tests.support.servers import OBJECT_STORE_FOLDER, RunningServer
from tests.support.threads import at_work
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("### Backups\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", SECTION, flags=re.MULTILINE | re.DOTALL)
# The rights of the user pixyproxy, with which backups are made.
GRANT = re.search(r"GRANT ([A-Z, ]+)\n", (ROOT / "sql/mysql/002_create_user.sql").read_text(encoding="utf-8"))

_CALLERS = 1
_OLD = 8
_DOOMED = 4
_FOR_TOMORROW = "for tomorrow"


def block(*words: str) -> str:
    """The one block with all these words."""
    found: list[str] = [text for text in BLOCKS if all(word in text for word in words)]
    assert len(found) == 1, words
    return found[0]


# --- What is backed up -----------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A database and a store, and how they are backed up and restored.

    Attributes:
        settings: of servers there.
        database: what the commands call the database.
        images: what they call the store.
        path: where their programs are.
        files: what the configuration files hold that they name.
        back_up: the blocks of a backup, and `restore` those of a restore.
        destroy: destroys everything.
    """

    settings: dict[str, str]
    database: str
    images: str
    path: list[Path]
    files: Mapping[str, str]
    back_up: list[str]
    restore: list[str]
    destroy: Callable[[], None]


def login_file(server: DatabaseServer) -> str:
    """A file with options that leads a client program to a server."""
    login = f"user={server.user}\npassword={server.password}\n"
    return f"[client]\nhost={server.host}\nport={server.port}\n{login}"


@contextlib.contextmanager
def administrator(server: DatabaseServer) -> Iterator[Any]:
    """A cursor of somebody who may do everything."""
    connection = mysql.connector.connect(host=server.host, port=server.port, user=server.user, password=server.password)
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        yield cursor


@contextlib.contextmanager
def as_pixyproxy(server: DatabaseServer, database: str) -> Iterator[DatabaseServer]:
    """The server as a user has it who has the rights of PixyProxy's."""
    assert GRANT is not None
    user = dataclasses.replace(server, user=f"u_{uuid.uuid4().hex[:12]}", password="secret")
    with administrator(server) as cursor:
        cursor.execute(f"CREATE USER {user.user}@'%' IDENTIFIED BY '{user.password}'")
        cursor.execute(f"GRANT {GRANT[1]} ON {database}.* TO {user.user}@'%'")
    try:
        yield user
    finally:
        with administrator(server) as cursor:
            cursor.execute(f"DROP USER {user.user}@'%'")


@contextlib.contextmanager
def on_server(server: DatabaseServer, folder: Path) -> Iterator[Place]:
    """A database on a server, and a folder."""
    with fresh_database(server) as url:
        name = url.rpartition("/")[2]

        def destroy() -> None:
            with administrator(server) as cursor:
                cursor.execute(f"DROP DATABASE {name}")
                cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
            shutil.rmtree(folder)

        dump = {"mysql": "mysqldump", "mariadb": "mariadb-dump"}[server.kind]
        client = {"mysql": "| mysql ", "mariadb": "| mariadb "}[server.kind]
        with as_pixyproxy(server, name) as user:
            yield Place(
                settings={"PIXYPROXY_DATABASE_URL": user.url(name), "PIXYPROXY_IMAGE_STORE": str(folder)},
                database=name,
                images=str(folder),
                path=[dump_programs(server.kind), program_folder("rsync")],
                files={
                    "/etc/pixyproxy/backup.cnf": login_file(user),
                    "/etc/pixyproxy/administrator.cnf": login_file(server),
                },
                back_up=[block("back_up_database() {", f" {dump} "), block("back_up_images() {", "|| [")],
                restore=[block("gunzip", client), block('rsync --archive "$BACKUP'), block("pixyproxy db init\n")],
                destroy=destroy,
            )


@contextlib.contextmanager
def on_sqlite(folder: Path) -> Iterator[Place]:
    """A database in a file, and a folder."""
    database = folder.with_name("pixyproxy.db")

    def destroy() -> None:
        for file in folder.parent.glob("pixyproxy.db*"):
            file.unlink()
        shutil.rmtree(folder)

    yield Place(
        settings={"PIXYPROXY_DATABASE_URL": f"sqlite:///{database}", "PIXYPROXY_IMAGE_STORE": str(folder)},
        database=str(database),
        images=str(folder),
        path=[program_folder("sqlite3"), program_folder("rsync")],
        files={},
        back_up=[block("back_up_database() {", "sqlite3"), block("back_up_images() {", "|| [")],
        restore=[block('cp "$BACKUP/'), block('rsync --archive "$BACKUP'), block("pixyproxy db init\n")],
        destroy=destroy,
    )


@contextlib.contextmanager
def on_object_store(server: DatabaseServer, store: RunningObjectStore, folder: Path) -> Iterator[Place]:
    """A database on a server, and a prefix of a bucket."""
    prefix = uuid.uuid4().hex
    assert store.folder is not None
    objects = store.folder / prefix
    with on_server(server, folder) as place:
        folder.mkdir(parents=True)  # It is destroyed with the database.

        def destroy() -> None:
            destroy_database()
            shutil.rmtree(objects)

        destroy_database = place.destroy
        place.destroy = destroy
        place.images = f"{store.url}/{prefix}"
        place.settings |= store.env | {"PIXYPROXY_IMAGE_STORE": place.images, OBJECT_STORE_FOLDER: str(objects)}
        place.back_up[1] = block("back_up_images() {", "images copy")
        place.restore[1:] = [block("pixyproxy db init\n"), block('images copy --from "$BACKUP/')]
        yield place


@pytest.fixture(params=["mysql", "mariadb", "sqlite", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "data" / "images"
    folder.parent.mkdir()
    match request.param:
        case "sqlite":
            context = on_sqlite(folder)
        case "object store":
            servers = request.getfixturevalue("mysql_server"), request.getfixturevalue("s3_server")
            context = on_object_store(*servers, folder)
        case kind:
            context = on_server(request.getfixturevalue(f"{kind}_server"), folder)
    with context as found:
        yield found


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass
class Operator:
    """Somebody at a shell, who types what the document says."""

    place: Place
    folder: Path

    def back_up(self, before_database: Callable[[], object], after_database: Callable[[], object]) -> Path:
        """Make a backup, and do something between its steps; return its folder."""
        pauses = [self.folder / "before", self.folder / "after"]
        for pause in pauses:
            os.mkfifo(pause)
        steps = block("back_up_database\n").split("back_up_database\n")
        steps[1:1] = [f"cat {pauses[0]}\nback_up_database\ncat {pauses[1]}\n"]
        script = "".join([block("BACKUP=$BACKUPS/"), *self.place.back_up, *steps])
        with self._typing(script) as process:
            for pause, work in zip(pauses, (before_database, after_database), strict=True):
                with _reached(pause, process):
                    work()
        for pause in pauses:
            pause.unlink()
        return (self.folder / "latest").resolve(strict=True)

    def restore(self, backup: Path) -> None:
        """Restore a backup."""
        lines = block("BACKUP=$BACKUPS/").splitlines(keepends=True)
        variables = [line for line in lines if not line.startswith(("BACKUP=", "mkdir"))]
        with self._typing("".join([*variables, f"BACKUP={backup}\n", *self.place.restore])):
            pass

    @contextlib.contextmanager
    def _typing(self, script: str) -> Iterator[subprocess.Popen[str]]:
        """Run a script with the values of this place; it must succeed."""
        values = {"IMAGES": self.place.images, "DATABASE": self.place.database, "BACKUPS": str(self.folder)}
        for name, value in values.items():
            script, count = re.subn(rf"^{name}=.*$", f"{name}={value}", script, flags=re.MULTILINE)
            assert count == 1
        for name, text in self.place.files.items():
            file = self.folder / Path(name).name
            file.write_text(text)
            file.chmod(0o600)
            script = script.replace(name, str(file))
        assert "/etc/" not in script
        path = [*self.place.path, Path(sys.executable).parent, *os.get_exec_path()]
        with subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.folder,
            env={"PATH": ":".join(map(str, path)), "LANG": "C.UTF-8", "HOME": str(self.folder)} | self.place.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            yield process
            said, _ = process.communicate()
        assert process.returncode == 0, f"{script}\n{said}"


@contextlib.contextmanager
def _reached(pause: Path, process: subprocess.Popen[str]) -> Iterator[None]:
    """Wait until a script reads from a pipe, and let it go on at the end; one that ended before is left to others."""

    def writer() -> int | None:
        with contextlib.suppress(OSError):  # Nobody reads yet.
            return os.open(pause, os.O_WRONLY | os.O_NONBLOCK)
        return None if process.poll() is None else os.open(os.devnull, os.O_WRONLY)

    descriptor = wait_until(writer, WAIT_TIMEOUT, f"the backup to come to {pause.name}")
    try:
        yield
    finally:
        os.close(descriptor)


# --- Those who make images meanwhile ---------------------------------------------------------------------------------


@dataclass
class Load:
    """Callers who make and change images until they are told to stop."""

    site: Site
    server: RunningServer
    made: list[Wish] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def running(self) -> contextlib.AbstractContextManager[None]:
        return at_work(self._call_on, _CALLERS, self._stopping)

    def wait_for(self, count: int) -> None:
        """Wait for so many more images."""
        wanted = len(self.made) + count
        wait_until(lambda: len(self.made) >= wanted, WAIT_TIMEOUT, "more images")

    def _call_on(self) -> None:
        while not self._stopping.is_set():
            wish = self.site.wish()
            assert self.site.create(self.server, wish).is_ok
            self.site.update(self.server, wish, ["used"])
            self.made.append(wish)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[RunningStandIn]:
    with start_stand_in() as running:
        yield running


def test_all_that_was_there_when_a_backup_began_is_restored(
    place: Place, stand_in: RunningStandIn, tmp_path: Path
) -> None:
    provider = {"OPENAI_API_KEY": stand_in.api_key, "OPENAI_BASE_URL": stand_in.base_url}
    site = Site(tmp_path / "site", place.settings | provider, stand_in)
    (tmp_path / "backups").mkdir()
    operator = Operator(place, tmp_path / "backups")
    old = [site.wish() for _ in range(_OLD)]
    doomed = [site.wish() for _ in range(_DOOMED)]
    never_answered = site.wish("slow=600")
    with site.server() as server:
        for wish in (*old, *doomed):
            assert site.create(server, wish).is_ok
        call = site.begin(server, never_answered)
        wait_until_submitted(site, never_answered)
        load = Load(site, server)

        before = list[Wish]()

        def record_what_is_there() -> None:
            load.wait_for(5)
            before.extend([*old, *load.made])
            _queue_for_tomorrow(server)

        def delete_doomed() -> None:
            for wish in doomed:
                assert site.delete(server, wish).is_ok
            load.wait_for(5)

        with load.running():
            operator.back_up(lambda: load.wait_for(5), lambda: load.wait_for(5))
            # Another one, which takes over what the first one has.
            began = int(time.time())
            wait_until(
                lambda: int(time.time()) > began, WAIT_TIMEOUT, "another second, of which backups have their names"
            )
            backup = operator.back_up(record_what_is_there, delete_doomed)
            load.wait_for(5)
        server.kill()
        call.cancel()
    place.destroy()
    operator.restore(backup)

    with site.server() as server:
        # It may have been generated since the backup.
        assert server.generation_states(_FOR_TOMORROW) == []
        for wish in before:
            _assert_is_there(site, server, wish)
        for wish in {*load.made} - {*before}:
            _assert_is_whole_or_absent(site, server, wish)
        for wish in doomed:
            _assert_is_there(site, server, wish)
        assert site.create(server, never_answered).reason == OUTCOME_UNKNOWN
        assert stand_in.count(never_answered.prompt) == 1
        # The index was restored with them.
        pages = ImageClient(server, site.login).pages(prompt=site.folder.name, page_size=200)
        found = {image.guid for page in pages for image in page}
        assert {wish.image.guid for wish in before if wish.image} <= found
        assert site.create(server, site.wish()).is_ok


def _queue_for_tomorrow(server: RunningServer) -> None:
    """Record a request that no generation worker claims before the end of the test."""
    creation = ImageCreation(detail=ImageDetailCreate(prompt=_FOR_TOMORROW))
    author_id, tomorrow = server.caller(server.admin).user_id, datetime.now(UTC) + timedelta(days=1)
    with server.database() as database, database.transaction() as context:
        queued = GenerationRepository(context).insert(creation, author_id, "", RequestContext())
        context.execute(
            "UPDATE generations SET not_before_at = :tomorrow WHERE id = :id", {"tomorrow": tomorrow, "id": queued.id}
        )
        context.commit()


def _assert_is_there(site: Site, server: RunningServer, wish: Wish) -> None:
    """Whole, as it was, and fetched, not paid, by its request id."""
    assert wish.image is not None
    again = site.create(server, wish)
    assert again.is_ok, again.as_told
    assert again.value.image.guid == wish.image.guid
    assert site.stand_in.count(wish.prompt) == 1
    assert _is_whole(site, server, wish)


def _assert_is_whole_or_absent(site: Site, server: RunningServer, wish: Wish) -> None:
    assert wish.image is not None
    detail = site.get(server, wish.image.guid)
    assert _is_whole(site, server, wish) if detail.is_ok else detail.reason == "IMAGE_NOT_FOUND"


def _is_whole(site: Site, server: RunningServer, wish: Wish) -> bool:
    assert wish.image is not None
    content = site.content(server, wish.image.guid)
    data = b"".join(message.data for message in content.value)
    return content.is_ok and hashlib.sha256(data).hexdigest() == wish.image.sha256
