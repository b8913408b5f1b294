"""The file of a download, on other systems too."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixyproxy.client import ContentInfo, TryLaterError
from pixyproxy.client.download import Download
from tests.unit.client.test_client import DATA, INFO, part_of
from tests.unit.resource.fakes import GUID

CONTENT = ContentInfo(GUID, "x.png", "image/png", len(DATA), INFO.sha256, not_modified=False)


class LockingByByteRange:
    """What Windows has in place of fcntl."""

    LK_NBLCK = 2

    def locking(self, descriptor: int, mode: int, length: int) -> None:
        assert mode == self.LK_NBLCK
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > len(DATA)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None


def _stands_for(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.samefile(path)
    except FileNotFoundError:  # Another thread has closed it.
        return False


def refusing_open_files(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operation on a file fail where it is open, as Windows does."""

    def refusing(path: Path, *arguments: Any, **named: Any) -> Any:
        if any(_stands_for(descriptor, path) for descriptor in Path("/proc/self/fd").iterdir()):
            raise PermissionError(13, "The process cannot access the file")
        return operation(path, *arguments, **named)

    return refusing


@pytest.fixture(params=["posix", "windows"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This system; and Windows, played as far as it differs here."""
    if request.param == "windows":
        monkeypatch.setattr("pixyproxy.client.download.sys", SimpleNamespace(platform="win32"))
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", LockingByByteRange())
        monkeypatch.setattr(Path, "replace", refusing_open_files(Path.replace))
        monkeypatch.setattr(Path, "unlink", refusing_open_files(Path.unlink))


def save(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    with Download(GUID, path, overwrite=overwrite) as download:
        download.begin()
        download.write(data)
        download.finish(CONTENT)


def test_a_file_gets_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with suppress(KeyboardInterrupt), Download(GUID, path, overwrite=False) as download:
        download.begin()
        download.write(DATA[:1000])
        raise KeyboardInterrupt
    assert part_of(tmp_path).read_bytes() == DATA[:1000]

    save(path, DATA[1000:])
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]


def test_one_download_at_a_time(tmp_path: Path) -> None:
    with Download(GUID, tmp_path / "one.png", overwrite=False), pytest.raises(TryLaterError, match="in progress"):
        Download(GUID, tmp_path / "two.png", overwrite=False)
    save(tmp_path / "two.png", DATA)


def test_what_has_not_begun_leaves_nothing(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), Download(GUID, tmp_path / "picture.png", overwrite=False):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "target.png").write_text("before")
    (tmp_path / "link.png").symlink_to("target.png")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(FileExistsError, match="not a regular file"):
            Download(GUID, path, overwrite=True)

    save(tmp_path / "link.png", DATA, overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "target.png").read_bytes() == DATA

    with Download(GUID, tmp_path / "late", overwrite=True) as download, suppress(FileExistsError):
        download.begin()
        download.write(DATA)
        os.mkfifo(tmp_path / "late")
        download.finish(CONTENT)
    assert (tmp_path / "late").is_fifo()
