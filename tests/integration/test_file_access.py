"""Who on the machine may read what a server writes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixyproxy.core.fields import new_guid
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.serving.file_access import protect_new_files
from pixyproxy.settings import Settings
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, environment, run_command, running_server
from tests.support.waiting import wait_until

_GROUP = {"PIXYPROXY_ALLOW_GROUP_ACCESS": "true"}
_DATABASE = "pixyproxy.db"


def _serve_with(umask: int, *before: str) -> list[str]:
    """`pixyproxy serve` as a shell starts it that leaves so much to others."""
    command = f'umask {umask:03o}; exec {" ".join(before)} "$0" -m pixyproxy serve'
    return ["sh", "-c", command, sys.executable]


def _modes(server: RunningServer) -> dict[str, int]:
    """The rights to everything that the server has made, when nothing of it goes any more."""
    wait_until(server.is_settled, TIMEOUT, "the server to have nothing to do")
    made = [server.image_folder, *server.image_folder.rglob("*"), *server.folder.glob(f"{_DATABASE}*")]
    return {str(path.relative_to(server.folder)): _mode_of(path) for path in made}


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _expected(paths: dict[str, int], server: RunningServer, file: int, folder: int) -> dict[str, int]:
    return {path: folder if (server.folder / path).is_dir() else file for path in paths}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("settings", "umask", "file", "folder"),
    [({}, 0o000, 0o600, 0o700), ({}, 0o022, 0o600, 0o700), (_GROUP, 0o077, 0o660, 0o770)],
    ids=["open umask", "usual umask", "group"],
)
def test_what_is_written_is_for_its_user_or_its_group(
    tmp_path: Path, workers: str, settings: dict[str, str], umask: int, file: int, folder: int
) -> None:
    settings = settings | {"PIXYPROXY_WORKERS": workers}
    with running_server(tmp_path / "server", settings, command=_serve_with(umask), makes_first_user=True) as server:
        ImageClient(server, server.admin).create()
        modes = _modes(server)
        database = {_DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm"}
        assert database | {"images", "images/.notes", "images/.parts"} <= set(modes)
        assert server.image_files()
        assert modes == _expected(modes, server, file, folder)


def test_what_others_could_read_is_tightened_at_the_start(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        made = ImageClient(server, server.admin).create()
        # As a server that is killed leaves it.
        server.kill()
    left = [server.folder / _DATABASE, server.folder / f"{_DATABASE}-wal", server.folder / f"{_DATABASE}-shm"]
    for path in left:
        path.chmod(0o644)
    server.image_folder.chmod(0o2755)
    server.image_file(made.guid).chmod(0o644)

    with running_server(tmp_path / "server") as again:
        modes = _modes(again)
        assert {modes[path.name] for path in left} == {0o600}
        assert modes["images"] == 0o2700, "what else a folder's mode says stays as it is"
        assert "may read" not in again.log
        # Beneath a folder that others cannot access, nothing needs to be checked; there may be a million files.
        assert _mode_of(again.image_file(made.guid)) == 0o644


def test_a_group_keeps_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    (folder / "images").mkdir(parents=True)
    (folder / "images").chmod(0o2775)
    (folder / _DATABASE).touch()
    (folder / _DATABASE).chmod(0o664)

    with running_server(folder, _GROUP) as server:
        modes = _modes(server)
        assert modes["images"] == 0o2770
        assert {mode for path, mode in modes.items() if path.startswith(_DATABASE)} == {0o660}


def _not_owned(path: Path) -> None:
    os.chown(path, 12345, 12345)
    path.chmod(0o777)


def _shared_by_all(path: Path) -> None:
    path.chmod(0o1777)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_that_cannot_be_written_to_is_warned_of_once(tmp_path: Path, workers: str) -> None:
    images = tmp_path / "server" / "images"
    images.mkdir(parents=True, mode=0o500)
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere")
        before = ("setpriv --bounding-set=-dac_override",)

    settings = {"PIXYPROXY_WORKERS": workers}
    with running_server(tmp_path / "server", settings, command=_serve_with(0o022, *before)) as server:
        warnings = [line for line in server.log_lines if "may not write to the image folder" in line]
        assert len(warnings) == 1
        assert " WARNING " in warnings[0]
        assert str(images) in warnings[0]
        assert ImageClient(server, server.admin).guids() == [], "what is there can be read"


@pytest.mark.parametrize("prepare", [_not_owned, _shared_by_all])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_tightened_is_warned_of_once(
    tmp_path: Path, prepare: Callable[[Path], None], workers: str
) -> None:
    """A folder of another user, and one like /tmp that is meant for all."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give a folder to another user")
    images = tmp_path / "server" / "images"
    images.mkdir(parents=True)
    prepare(images)
    mode = _mode_of(images)
    command = _serve_with(0o022, "setpriv --bounding-set=-fowner")

    with running_server(tmp_path / "server", {"PIXYPROXY_WORKERS": workers}, command=command) as server:
        warnings = [line for line in server.log_lines if "may read" in line]
        assert len(warnings) == 1
        assert " WARNING " in warnings[0]
        assert str(images) in warnings[0]
        assert _mode_of(images) == mode
        made = ImageClient(server, server.admin).create()
        assert _mode_of(server.image_file(made.guid)) == 0o600


def test_commands_write_for_their_user_alone(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    assert _mode_of(tmp_path / _DATABASE) == 0o600
    source = tmp_path / "images"
    LocalImageStore(source)

    done = run_command("images", "copy", "--from", str(source), "--to", str(tmp_path / "copy"), env=env)

    assert done.status == 0
    assert {_mode_of(path) for path in (tmp_path / "copy").rglob("*") if path.is_file()} == {0o600}
    assert _mode_of(tmp_path / "copy") == 0o700


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users can access, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def test_servers_of_one_group_share_a_folder(reachable: Path) -> None:
    """Each user reads, replaces and deletes what the other has written, beneath folders that the other has made."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = reachable / "images"
    folder.mkdir()
    os.chown(folder, 0, 4242)
    folder.chmod(0o2770)
    guids = [f"{number:02x}{number:02x}" + new_guid()[4:] for number in range(4)]

    def write() -> None:
        store = LocalImageStore(folder)
        for guid in guids:
            store.write_manifest(guid, "manifest")
            store.write(guid, b"first")

    def replace_and_delete() -> None:
        store = LocalImageStore(folder)
        for guid in guids:
            with store.open(guid) as reader:
                assert reader.read(10) == b"first"
            store.write(guid, b"second")
            store.delete_manifest(guid)
            store.delete(guid)

    assert _as_user(10001, 4242, write)
    assert _as_user(10002, 4242, replace_and_delete)
    assert _as_user(10001, 4242, write)
    assert not _as_user(10003, 4243, replace_and_delete)


def _as_user(user: int, group: int, work: Callable[[], None]) -> bool:
    """Work in a process of another user, as a server does that lets its group in; return whether it went well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            protect_new_files(Settings(allow_group_access=True))
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
