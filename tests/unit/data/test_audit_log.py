"""The file of the audit log: what it has after every kind of failure."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixyproxy.core.exceptions import ConfigurationError, PixyProxyException, for_log
from pixyproxy.data.audit_log import AuditLog, _write_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writes beyond this size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_are_appended(path: Path) -> None:
    path.write_bytes(b"earlier\n")
    log = AuditLog(str(path))
    assert log.append([b"one", b"two"]) == 2
    assert AuditLog(str(path)).append([b"three"]) == 1
    assert path.read_bytes() == b"earlier\none\ntwo\nthree\n"


def test_only_its_user_may_read_the_file(path: Path) -> None:
    umask = os.umask(0)
    try:
        AuditLog(str(path))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_renamed_file_is_followed_by_a_new_one(path: Path) -> None:
    log = AuditLog(str(path))
    log.append([b"one"])
    path.rename(path.with_suffix(".1"))
    log.append([b"two"])
    assert path.with_suffix(".1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_that_was_cut_off_gets_an_end(path: Path) -> None:
    path.write_bytes(b'one\n{"half of')
    AuditLog(str(path)).append([b"two"])
    assert path.read_bytes() == b'one\n{"half of\ntwo\n'


def test_what_fits_on_a_full_disk_is_not_appended_again(path: Path) -> None:
    log = AuditLog(str(path))
    lines = [b"a" * 100, b"b" * 100, b"c" * 100]
    with files_of_at_most(250):
        assert log.append(lines) == 2
        with pytest.raises(PixyProxyException) as caught:
            log.append(lines[2:])
    assert "cannot be written; its lines stay in the database. ([Errno 27] File too large)" in for_log(caught.value)
    assert log.append(lines[2:]) == 1
    whole = [line for line in path.read_bytes().splitlines() if len(line) == 100]
    assert whole == lines


def test_lines_of_several_writers_stay_whole(path: Path) -> None:
    logs = [AuditLog(str(path)) for _ in range(4)]
    lines = [[f"{writer}-{number} {'x' * 3000}".encode() for number in range(50)] for writer in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda log, own: [log.append([line]) for line in own], logs, lines)) == [[1] * 50] * 4
    assert sorted(path.read_bytes().splitlines()) == sorted(line for own in lines for line in own)


def test_a_pipe_whose_reader_stops_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    lines = [str(number).encode() + b"x" * 1000 for number in range(1000)]
    try:
        count = _write_all(writer, lines)
        assert 0 < count < len(lines)
        with pytest.raises(BlockingIOError):
            _write_all(writer, lines[count:])
        taken = os.read(reader, 2**20)
        assert taken.splitlines() == lines[:count]
        assert taken.endswith(b"\n")
        assert _write_all(writer, lines[count : count + 3]) == 3
    finally:
        os.close(reader)
    with pytest.raises(BrokenPipeError):
        _write_all(writer, lines)
    os.close(writer)


def _folder_is_missing(path: Path) -> str:
    path.parent.rmdir()
    return f"there is no folder {path.parent}"


def _it_is_a_folder(path: Path) -> str:
    path.mkdir()
    return f"{path} cannot be written: Is a directory"


def _it_is_a_fifo(path: Path) -> str:
    os.mkfifo(path)
    return f"{path} cannot be written: it is no regular file"


@pytest.mark.parametrize("spoil", [_folder_is_missing, _it_is_a_folder, _it_is_a_fifo])
def test_what_cannot_be_written_is_refused(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    problem = spoil(path)
    with pytest.raises(ConfigurationError) as caught:
        AuditLog(str(path))
    assert problem in caught.value.message


def test_a_file_that_becomes_unwritable_is_an_error(path: Path) -> None:
    log = AuditLog(str(path))
    path.parent.rename(path.parent.with_suffix(".away"))
    with pytest.raises(PixyProxyException):
        log.append([b"one"])
    path.parent.with_suffix(".away").rename(path.parent)
    assert log.append([b"one"]) == 1
    assert path.read_bytes() == b"one\n"
