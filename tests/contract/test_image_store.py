"""What every store of image bytes must do, and what the one in a local folder does besides."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import resource
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from obstore.store import MemoryStore

from pixyproxy.core.exceptions import (
    ConfigurationError,
    ContentDamagedError,
    ContentUnreadableError,
    PixyProxyException,
    StorageFullError,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.stores.object_image_store import ObjectImageStore
from pixyproxy.observability.store import observed_store
from tests.contract.object_stores import fresh_store
from tests.support.unusual_files import UNUSUAL, in_time, put_in_place
from tests.support.waiting import wait_until

GUID = "123e4567-e89b-42d3-a456-426614174000"
CHUNK = 64 * 1024


@pytest.fixture(params=["local", "observed", "memory", "s3", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    if request.param == "local":
        return LocalImageStore(tmp_path / "images")
    if request.param == "observed":
        return observed_store(LocalImageStore(tmp_path / "images"), lambda *_: None, lambda *_: None)
    if request.param == "memory":
        memory = MemoryStore()
        return ObjectImageStore(memory, memory)
    return fresh_store(request.getfixturevalue(f"{request.param}_server"), monkeypatch)


def picture(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read_all(store: ImageStore, guid: str) -> bytes:
    with store.open(guid) as reader:
        return reader.read(reader.size)


# --- Every store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * 1024 * 1024 + 7])
def test_bytes_come_back_as_they_were_written(store: ImageStore, size: int) -> None:
    data = picture(size)
    store.write(GUID, data)

    with store.open(GUID) as reader:
        assert reader.size == size
        chunks = []
        while chunk := reader.read(CHUNK):
            chunks.append(chunk)

    assert all(len(chunk) == CHUNK for chunk in chunks[:-1])
    assert b"".join(chunks) == data


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


@pytest.mark.parametrize("kind", [bytearray, memoryview, mapped], ids=["array", "view", "mapped"])
def test_bytes_may_come_in_any_buffer(store: ImageStore, kind: Callable[[bytes], bytes]) -> None:
    data = picture(100_000)

    store.write(GUID, kind(data))

    assert read_all(store, GUID) == data


def test_a_reader_goes_to_any_byte(store: ImageStore) -> None:
    data = picture(1000)
    store.write(GUID, data)

    with store.open(GUID) as reader:
        for offset, count in ((0, 10), (990, 10), (995, 10), (1000, 10), (5, 0), (500, 1), (0, 2000)):
            reader.seek(offset)
            assert reader.read(count) == data[offset : offset + count]
        reader.seek(100)
        assert reader.read(50) + reader.read(50) == data[100:200]


def test_images_do_not_get_in_each_others_way(store: ImageStore) -> None:
    guids = [GUID, GUID[:-1] + "1", "00" + GUID[2:], new_guid(), new_guid()]
    pictures = {guid: picture(100, seed) for seed, guid in enumerate(guids)}
    for guid, data in pictures.items():
        store.write(guid, data)

    store.delete(guids[0])

    assert {guid: read_all(store, guid) for guid in guids[1:]} == {guid: pictures[guid] for guid in guids[1:]}


def test_renditions_are_stored_beside_the_image_and_by_themselves(store: ImageStore) -> None:
    other = new_guid()
    images = {guid: picture(1000, seed) for seed, guid in enumerate((GUID, other))}
    renditions = {(guid, edge): picture(edge, edge) for guid in images for edge in (256, 512)}
    for guid, data in images.items():
        store.write(guid, data)
    for (guid, edge), data in renditions.items():
        store.write_rendition(guid, edge, b"first")
        store.write_rendition(guid, edge, data)

    def read(guid: str, edge: int) -> bytes:
        with store.open_rendition(guid, edge) as reader:
            reader.seek(0)
            return reader.read(reader.size)

    assert {key: read(*key) for key in renditions} == renditions
    for _ in range(2):
        store.delete_rendition(GUID, 256)
    with pytest.raises(ContentDamagedError):
        read(GUID, 256)
    store.delete(other)
    del renditions[GUID, 256]
    assert {key: read(*key) for key in renditions} == renditions
    assert read_all(store, GUID) == images[GUID]


def test_writing_again_takes_the_place_of_what_was_there(store: ImageStore) -> None:
    store.write(GUID, b"the longer first one")
    store.write(GUID, b"the second")

    assert read_all(store, GUID) == b"the second"


def test_a_reader_keeps_what_it_has_opened(store: ImageStore) -> None:
    store.write(GUID, b"first")
    with store.open(GUID) as before:
        store.write(GUID, b"second one")
        assert before.read(before.size) == b"first"
    with store.open(GUID) as before:
        store.delete(GUID)
        assert before.read(before.size) == b"second one"


def test_missing_bytes_are_damage(store: ImageStore) -> None:
    store.write(new_guid(), b"another one")

    with pytest.raises(ContentDamagedError) as refused:
        store.open(GUID)

    assert GUID not in refused.value.message
    assert "/" not in refused.value.message


def test_deleted_bytes_are_gone(store: ImageStore) -> None:
    store.write(GUID, b"bytes")

    store.delete(GUID)

    with pytest.raises(ContentDamagedError):
        store.open(GUID)
    store.write(GUID, b"new bytes")
    assert read_all(store, GUID) == b"new bytes"


def test_deleting_what_is_not_there_is_no_error(store: ImageStore) -> None:
    store.delete(GUID)
    store.write(GUID, b"bytes")
    store.delete(GUID)
    store.delete(GUID)

    with pytest.raises(ContentDamagedError):
        store.open(GUID)


def test_there_is_room(store: ImageStore) -> None:
    store.require_room(1)
    store.write(GUID, picture(1000))
    store.require_room(1)

    assert read_all(store, GUID) == picture(1000)


def test_a_reader_that_failed_gives_back_what_it_holds(store: ImageStore) -> None:
    store.write(GUID, b"bytes")

    with pytest.raises(RuntimeError), store.open(GUID) as reader:
        raise RuntimeError

    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_many_threads_write_read_and_delete_at_once(store: ImageStore) -> None:
    threads = 8
    barrier = threading.Barrier(threads)

    def work(seed: int) -> None:
        barrier.wait(timeout=30)
        for number in range(10):
            # The guids begin alike, so that all race to make the same folders.
            guid = f"{number:02x}{number:02x}4567-e89b-42d3-a456-{seed:012x}"
            data = picture(10_000, seed)
            store.write(guid, data)
            assert read_all(store, guid) == data
            if number % 2:
                store.delete(guid)

    with ThreadPoolExecutor(threads) as executor:
        for future in [executor.submit(work, seed) for seed in range(threads)]:
            future.result()


# --- The store in a local folder -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


def files_in(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def test_a_store_makes_its_folder(folder: Path) -> None:
    LocalImageStore(folder / "some" / "levels" / "down").write(GUID, b"bytes")

    LocalImageStore(folder / "some" / "levels" / "down")  # And takes one that is there.
    assert len(files_in(folder)) == 1


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_is_no_folder(tmp_path: Path, below: str) -> None:
    path = tmp_path / "file"
    path.touch()

    with pytest.raises(ConfigurationError, match=str(path)):
        LocalImageStore(path / below)


def test_guids_are_spread_over_two_levels_of_folders(folder: Path) -> None:
    store = LocalImageStore(folder)
    store.write(GUID, b"bytes")
    store.write("ffe00000" + GUID[8:], b"bytes")

    assert files_in(folder) == [Path("12/3e") / GUID, Path("ff/e0") / ("ffe00000" + GUID[8:])]


def test_nothing_but_the_image_is_left_after_a_write(folder: Path) -> None:
    store = LocalImageStore(folder)
    for data in (picture(100_000), b"again"):
        store.write(GUID, data)

    assert files_in(folder) == [Path("12/3e") / GUID]
    store.delete(GUID)
    assert files_in(folder) == []


class Recorder:
    """Writes down what is asked of the operating system, in order, and does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.steps: list[tuple[str, ...]] = []
        self._folder = folder
        fsync, mkdir, replace = os.fsync, os.mkdir, os.replace
        self._paths: Callable[[int], str] = lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}")

        def recording_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._note("fsync", self._paths(descriptor))

        def recording_mkdir(path: Path, mode: int = 0o777) -> None:
            mkdir(path, mode)
            self._note("mkdir", path)

        def recording_replace(source: Path, target: Path) -> None:
            replace(source, target)
            self._note("replace", source, target)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(os, "mkdir", recording_mkdir)
        monkeypatch.setattr(os, "replace", recording_replace)

    def _note(self, name: str, *paths: Path | str) -> None:
        relative = (Path(path).relative_to(self._folder) for path in paths)
        # A part has a name that is used once.
        self.steps.append((name, *(str(".parts/*" if path.parent.name == ".parts" else path) for path in relative)))


def test_a_write_lasts_once_it_returns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalImageStore(folder)
    recorder = Recorder(monkeypatch, folder)
    # First the bytes, then the name that shows them, then the folder that holds the name.
    part, final = ".parts/*", f"12/3e/{GUID}"
    lasting_write = [("fsync", part), ("replace", part, final), ("fsync", "12/3e")]

    store.write(GUID, b"bytes")
    assert recorder.steps == [
        ("mkdir", ".parts"),
        ("fsync", "."),
        ("mkdir", "12"),
        ("fsync", "."),
        ("mkdir", "12/3e"),
        ("fsync", "12"),
        *lasting_write,
    ]

    recorder.steps.clear()
    store.write(GUID, b"again")
    assert recorder.steps == lasting_write


def test_half_an_image_is_never_visible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalImageStore(folder)
    seen: list[bytes | None] = []

    def look(result: object = None) -> None:
        try:
            seen.append(read_all(store, GUID))
        except ContentDamagedError:
            seen.append(None)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: look(fsync(descriptor)))

    store.write(GUID, b"first")
    assert None in seen
    assert seen[-1] == b"first"
    assert set(seen) == {None, b"first"}

    seen.clear()
    store.write(GUID, b"second")
    assert seen == [b"first", b"second"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageFullError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageFullError),
        (OSError(errno.EROFS, "Read-only file system"), StorageMisconfiguredError),
        (OSError(errno.EACCES, "Permission denied"), StorageMisconfiguredError),
        (OSError(errno.EIO, "Input/output error"), StorageUnavailableError),
        (OSError(errno.ESTALE, "Stale file handle"), StorageUnavailableError),
        (OSError(errno.EMFILE, "Too many open files"), StorageUnavailableError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["no space", "quota", "read-only", "denied", "broken disk", "stale", "too many open files", "interrupted"],
)
def test_a_write_that_fails_late_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, expected: type[BaseException]
) -> None:
    store = LocalImageStore(folder)
    store.write("123e0000" + GUID[8:], b"there before")  # So that the folders are there.
    store.write(GUID, b"the earlier one")

    def fail(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(expected) as refused:
            store.write(GUID, b"never stored")

    assert type(refused.value) is expected
    assert read_all(store, GUID) == b"the earlier one"
    assert files_in(folder) == [Path("12/3e") / ("123e0000" + GUID[8:]), Path("12/3e") / GUID]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_cannot_be_opened_for_now_is_not_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = LocalImageStore(folder)
    store.write(GUID, b"bytes")
    store.write_manifest(GUID, "manifest")

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        patched.setattr(os, "listdir", fail)
        for read in (store.open, store.read_manifest, lambda _: store.list_manifests()):
            with pytest.raises(StorageUnavailableError) as refused:
                read(GUID)
            assert type(refused.value) is StorageUnavailableError

    assert read_all(store, GUID) == b"bytes"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system of its own on a folder; only root may."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def can_mount(tmp_path_factory: pytest.TempPathFactory) -> bool:
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    try:
        with mounted(tmp_path_factory.mktemp("mount") / "trial", "size=64k"):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes; anybody may, and the error is that of a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with room for 100,000 bytes and not for 300,000: a full disk where that can be had, or a limit."""
    if can_mount(tmp_path_factory):
        with mounted(folder, "size=256k"):
            yield folder
    else:
        with file_size_limit(256 * 1024):
            yield folder


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(full_folder: Path) -> None:
    store = LocalImageStore(full_folder)
    store.write(GUID, picture(100_000))

    for guid in (GUID, new_guid()):
        with pytest.raises(StorageFullError) as refused:
            store.write(guid, picture(300_000))
        assert str(full_folder) not in refused.value.message

    assert files_in(full_folder) == [Path("12/3e") / GUID]
    assert read_all(store, GUID) == picture(100_000)
    store.delete(GUID)
    store.write(GUID, picture(90_000, seed=1))
    assert read_all(store, GUID) == picture(90_000, seed=1)


def free_bytes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the disk have ``count`` bytes left for those who are not root."""
    real = os.statvfs(".")
    fields = list(real)
    fields[1], fields[4] = 4096, count // 4096  # f_frsize, f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))


@pytest.mark.parametrize("images", [1, 5])
def test_room_is_required_before_anything_is_paid_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    store = LocalImageStore(folder)
    free_bytes(monkeypatch, images * 16 * 1024**2)
    store.require_room(images)
    free_bytes(monkeypatch, images * 16 * 1024**2 - 4096)

    with pytest.raises(StorageFullError) as refused:
        store.require_room(images)

    assert str(folder) not in refused.value.message


def test_a_nearly_full_disk_has_no_room(full_folder: Path) -> None:
    if not full_folder.is_mount():
        pytest.skip("only root can mount a small file system")

    with pytest.raises(StorageFullError):
        LocalImageStore(full_folder).require_room(1)


def test_a_folder_that_is_read_only_takes_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store: LocalImageStore
    if os.geteuid() == 0:
        if not can_mount(tmp_path_factory):
            pytest.skip("root may write everywhere, and a read-only file system cannot be mounted")
        with mounted(folder, "size=100m"):
            store = LocalImageStore(folder)
            store.write(GUID, b"bytes")
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True, capture_output=True)
            check_takes_nothing(store)
    else:
        store = LocalImageStore(folder)
        store.write(GUID, b"bytes")
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            check_takes_nothing(store)
        finally:
            for path in folders:
                path.chmod(stat.S_IRWXU)


def check_takes_nothing(store: LocalImageStore) -> None:
    with pytest.raises(StorageMisconfiguredError):
        store.require_room(1)
    for guid in (GUID, new_guid()):
        with pytest.raises(StorageMisconfiguredError):
            store.write(guid, b"never stored")
    assert read_all(store, GUID) == b"bytes"


def test_a_folder_that_is_gone_is_an_error_without_details(folder: Path) -> None:
    store = LocalImageStore(folder)
    folder.rmdir()

    with pytest.raises(PixyProxyException) as refused:
        store.require_room(1)

    assert str(folder) not in refused.value.message


def test_what_is_no_readable_file_is_an_error_without_details(folder: Path) -> None:
    store = LocalImageStore(folder)
    (folder / "12" / "3e" / GUID).mkdir(parents=True)

    for use in (store.open, store.delete):
        with pytest.raises(PixyProxyException) as refused:
            use(GUID)
        assert str(folder) not in refused.value.message


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_no_regular_file_is_damage(folder: Path, kind: str) -> None:
    store = LocalImageStore(folder)
    store.write(GUID, b"bytes")
    put_in_place(kind, folder / "12" / "3e" / GUID)

    with pytest.raises(ContentDamagedError) as refused:
        in_time(lambda: store.open(GUID))

    assert str(folder) not in refused.value.message
    if kind != "folder":
        store.write(GUID, b"new bytes")
        assert read_all(store, GUID) == b"new bytes"


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_manifest_that_is_no_regular_file_is_damage(folder: Path, kind: str) -> None:
    store = LocalImageStore(folder)
    other = "ffe00000" + GUID[8:]
    store.write_manifest(GUID, "manifest")
    store.write_manifest(other, "another")
    put_in_place(kind, folder / ".notes" / GUID)

    with pytest.raises(ContentDamagedError) as refused:
        in_time(lambda: store.read_manifest(GUID))

    assert str(folder) not in refused.value.message
    assert store.read_manifest(other) == "another"
    assert sorted(store.list_manifests()) == sorted([GUID, other])


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_part_that_is_no_regular_file_is_left_alone(folder: Path, kind: str) -> None:
    store = LocalImageStore(folder)
    parts = folder / ".parts"
    for name in ("a", "b", "c"):
        put_in_place(kind, parts / f"{name}-unusual")
        (parts / f"{name}-abandoned").write_bytes(b"half")

    in_time(store.delete_partial_writes)

    assert sorted(path.name for path in parts.iterdir()) == ["a-unusual", "b-unusual", "c-unusual"]
    store.write(GUID, b"bytes")
    assert read_all(store, GUID) == b"bytes"


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_store_s_own_guid_is_read_from_a_regular_file(folder: Path, kind: str) -> None:
    store = LocalImageStore(folder)
    store.guid()
    put_in_place(kind, folder / ".guid")

    with pytest.raises(ContentDamagedError):
        in_time(store.guid)


def test_a_file_that_may_not_be_read_is_neither_damage_nor_an_outage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalImageStore(folder)
    store.write(GUID, b"bytes")

    def deny(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "open", deny)  # Root may read every file.
    with pytest.raises(ContentUnreadableError) as refused:
        store.open(GUID)

    assert type(refused.value) is ContentUnreadableError
    assert str(folder) not in refused.value.message


# --- Manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_until_it_is_deleted(store: ImageStore) -> None:
    other = "ffe00000" + GUID[8:]
    assert store.read_manifest(GUID) is None
    assert store.list_manifests() == []

    store.write_manifest(GUID, "first")
    store.write_manifest(GUID, "ein Bild 🏰\n")
    store.write_manifest(other, "another")
    assert store.read_manifest(GUID) == "ein Bild 🏰\n"
    assert sorted(store.list_manifests()) == sorted([GUID, other])

    for _ in range(2):
        store.delete_manifest(GUID)
        assert store.read_manifest(GUID) is None
    assert store.list_manifests() == [other]


def test_manifests_and_bytes_are_independent(store: ImageStore) -> None:
    store.write(GUID, b"bytes")
    store.write_manifest(GUID, "manifest")

    store.delete(GUID)
    assert store.read_manifest(GUID) == "manifest"
    store.write(GUID, b"bytes")
    store.delete_manifest(GUID)
    assert read_all(store, GUID) == b"bytes"


# --- Answers that were kept aside -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3 * 1024 * 1024 + 7])
def test_an_answer_that_was_kept_aside_comes_back_unchanged(store: ImageStore, size: int) -> None:
    other = "ffe00000" + GUID[8:]
    assert store.read_aside(GUID) is None
    assert store.list_aside() == []

    assert GUID in store.write_aside(GUID, picture(size))
    store.write_aside(other, b'{"data": [{"url": "https://example.com/"}]}')

    assert store.read_aside(GUID) == picture(size)
    assert store.read_aside(other) == b'{"data": [{"url": "https://example.com/"}]}'
    assert sorted(store.list_aside()) == sorted([GUID, other])


def test_an_answer_that_was_kept_aside_is_no_image_and_no_manifest(store: ImageStore) -> None:
    store.write_aside(GUID, b"answer")

    with pytest.raises(ContentDamagedError):
        store.open(GUID)
    assert store.read_manifest(GUID) is None
    assert store.list_manifests() == []


def test_nothing_removes_an_answer_that_was_kept_aside(store: ImageStore) -> None:
    store.write_aside(GUID, b"answer")
    store.write(GUID, b"bytes")
    store.write_manifest(GUID, "manifest")

    store.delete(GUID)
    store.delete_manifest(GUID)
    store.delete_partial_writes()

    assert store.read_aside(GUID) == b"answer"


def test_an_answer_that_was_kept_aside_is_said_to_be_where_it_is(folder: Path) -> None:
    place = Path(LocalImageStore(folder).write_aside(GUID, b"answer"))

    assert place == folder.resolve() / ".aside" / GUID
    assert place.read_bytes() == b"answer"


def test_an_answer_that_was_kept_aside_lasts_once_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalImageStore(folder)
    store.write(GUID, b"bytes")
    recorder = Recorder(monkeypatch, folder)

    store.write_aside(GUID, b"answer")

    assert recorder.steps == [
        ("mkdir", ".aside"),
        ("fsync", "."),
        ("fsync", ".parts/*"),
        ("replace", ".parts/*", f".aside/{GUID}"),
        ("fsync", ".aside"),
    ]


# --- Partial writes ---------------------------------------------------------------------------------------------------


def test_only_partial_writes_are_deleted(store: ImageStore) -> None:
    store.delete_partial_writes()
    store.write(GUID, b"bytes")
    store.write_manifest(GUID, "manifest")
    store.delete_partial_writes()

    assert read_all(store, GUID) == b"bytes"
    assert store.read_manifest(GUID) == "manifest"


def test_a_writer_whose_part_was_deleted_writes_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part is deleted after it is made and before it is locked."""
    store = LocalImageStore(folder)
    flock, deletions = fcntl.flock, iter(range(2))

    def delete_first(file: BinaryIO, operation: int) -> None:
        if operation == fcntl.LOCK_EX and next(deletions, None) is not None:
            store.delete_partial_writes()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    store.write(GUID, b"bytes")

    assert next(deletions, "used up") == "used up"
    assert read_all(store, GUID) == b"bytes"
    assert files_in(folder) == [Path("12/3e") / GUID]


def test_the_state_of_a_file_tells_that_it_was_written_to(tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path / "images")
    store.write(GUID, picture(CHUNK))
    with store.open(GUID) as reader:
        assert reader.state() is None, "what was written a moment ago may be written to unnoticed"
        before = wait_until(reader.state, 30, "the file to be old enough")
        assert reader.state() == before
        [path] = tmp_path.rglob(GUID)
        with path.open("r+b") as file:
            file.write(b"damaged")
        assert reader.state() is None
        assert wait_until(reader.state, 30, "the file to be old enough again") != before
