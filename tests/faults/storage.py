"""An image folder that is full, read-only, or whose files are damaged."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Bench, Site, Wish, wait_until_submitted
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_MEGABYTE = 1024 * 1024
# The product begins no generation below 64 MiB.
_DISK = 80 * _MEGABYTE
_LARGE_IMAGE = 3 * _MEGABYTE
_FULL = "RESOURCE_EXHAUSTED STORAGE_FULL"
_REFUSED = "FAILED_PRECONDITION STORAGE_MISCONFIGURED"
_NOT_STORED = "cannot be stored yet"
_DAMAGED = "DATA_LOSS CONTENT_DAMAGED"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system of its own at a folder; skipped where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or _mount("-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)) != 0:
        pytest.skip("left out: a disk that fills up (only root can mount a small file system)")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


# --- Full and read-only ----------------------------------------------------------------------------------------------


def full_disk(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Fill the disk before a request, and make room again."""

    def fill(site: Site) -> Callable[[], None]:
        filler = site.store / "filler"
        _fill(filler, leave=_LARGE_IMAGE)
        return filler.unlink

    return _refused_before(bench, database_url, "disk full", _FULL, fill, times)


def read_only(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Make the folder read-only before a request, and writable again."""

    def forbid(site: Site) -> Callable[[], None]:
        assert _mount("-o", "remount,ro", str(site.store)) == 0
        return lambda: _allow(site)

    return _refused_before(bench, database_url, "image folder read-only", _REFUSED, forbid, times)


def _allow(site: Site) -> None:
    assert _mount("-o", "remount,rw", str(site.store)) == 0


def _refused_before(
    bench: Bench,
    database_url: str | None,
    fault: str,
    expected: str,
    begin: Callable[[Site], Callable[[], None]],
    times: int,
) -> Outcome:
    outcome = Outcome(fault)
    site = bench.site(database_url)
    with small_disk(site.store), site.server() as server:
        made = site.wish()
        outcome.expect(site.create(server, made).is_ok, "made before")
        for _ in range(times):
            wish = site.wish()
            end = begin(site)
            answer = site.create(server, wish)
            outcome.injected += 1
            outcome.expect(answer.as_told == expected, f"[{fault}] {answer.as_told}")
            outcome.expect(site.stand_in.count(wish.prompt) == 0, f"[{fault}] and the provider was asked")
            assert made.image is not None
            outcome.expect(site.content(server, made.image.guid).is_ok, f"[{fault}] what is there can be read")
            end()
            _expect_service(site, server, wish, outcome)
        audit(site, server, outcome, Expected())
    return outcome


def full_after_answer(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Fill the disk while the provider works: the image waits until there is room again."""
    outcome = Outcome("disk full when the image comes")
    site = bench.site(database_url)
    with small_disk(site.store), site.server() as server:
        for _ in range(times):
            wish = site.wish("hold")
            call = site.begin(server, wish)
            wait_until_submitted(site, wish)
            filler = site.store / "filler"
            _fill(filler, leave=0)
            site.stand_in.release(wish.prompt)
            _wait_until_not_stored(server, outcome.injected + 1)
            outcome.injected += 1
            filler.unlink()
            room_at = time.monotonic()
            answer = site.end(wish, call)
            outcome.recovered(time.monotonic() - room_at)
            outcome.expect(answer.is_ok, f"there is room again: {answer.as_told}")
            outcome.expect(site.stand_in.count(wish.prompt) == 1, f"submitted again: {wish}")
        audit(site, server, outcome, Expected())
    return outcome


def _wait_until_not_stored(server: RunningServer, images: int) -> None:
    wait_until(lambda: server.log.count(_NOT_STORED) == images, WAIT_TIMEOUT, "the image to be refused")


def _expect_service(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    room_at = time.monotonic()
    answer = site.create(server, wish)
    outcome.recovered(time.monotonic() - room_at)
    outcome.expect(answer.is_ok, f"there is room again: {answer.as_told}")


def _fill(filler: Path, *, leave: int) -> None:
    room = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)


# --- Damaged bytes ---------------------------------------------------------------------------------------------------


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


_DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": _flip,
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0",
    "others of the same length": lambda data: bytes(len(data)),
    "missing": lambda _: None,
}
_SIZES = (300, 64 * 1024, 64 * 1024 + 1, 300_000)
"""Of one chunk of the stream, exactly one, and more."""


def damaged_bytes(bench: Bench, database_url: str | None) -> Outcome:
    """Damage stored bytes in every way, read them, and restore them."""
    outcome = Outcome("stored bytes damaged")
    site = bench.site(database_url)
    with site.server() as server:
        for size in _SIZES:
            wish = site.wish("" if size == _SIZES[0] else f"large={size}")
            outcome.expect(site.create(server, wish).is_ok, f"{size} bytes")
            for name, damage in _DAMAGES.items():
                _damage_and_read(site, server, wish, (name, damage), outcome)
        audit(site, server, outcome, Expected())
    return outcome


def _damage_and_read(
    site: Site,
    server: RunningServer,
    wish: Wish,
    damage: tuple[str, Callable[[bytes], bytes | None]],
    outcome: Outcome,
) -> None:
    assert wish.image is not None
    guid, (name, change) = wish.image.guid, damage
    path = server.image_file(guid)
    whole = path.read_bytes()
    changed = change(whole)
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    answer = site.content(server, guid)
    count = sum(len(message.data) for message in answer.value)
    outcome.injected += 1
    outcome.expect(answer.as_told == _DAMAGED, f"[{name}] {answer.as_told}")
    outcome.expect(count < len(whole), f"[{name}] {count} of {len(whole)} bytes were given out")
    outcome.expect(site.get(server, guid).is_ok, f"[{name}] the detail is there")
    path.write_bytes(whole)
    mended_at = time.monotonic()
    outcome.expect(site.content(server, guid).is_ok, f"[{name}] restored")
    outcome.recovered(time.monotonic() - mended_at)
