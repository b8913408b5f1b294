"""Renditions whose worker is killed, or whose image is deleted, at every named point of making them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.data.repositories.renditions import RenditionRepository
from tests.faults.audit import Expected, audit
from tests.faults.crashes import add_at, at_each
from tests.faults.crashing_server import RENDITION_OBJECT_STORE_POINTS, RENDITION_POINTS
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, Wish
from tests.support.processes import is_stopped
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

ALL_POINTS = tuple(RENDITION_POINTS)
ALL_OBJECT_STORE_POINTS = tuple(RENDITION_OBJECT_STORE_POINTS)
_CALLERS = 6
_EDGE = 256
_GONE = "NOT_FOUND IMAGE_NOT_FOUND"
# The process may stop within a transaction.
_LOCKED = "ABORTED CONFLICT"
# The process that makes renditions is another one than those that take calls.
_PROCESSES = {"PIXYPROXY_WORKERS": "2"}


def worker_killed(bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int) -> Outcome:
    """Kill a worker at each point of making a rendition; all who wait for it must get it from the next worker."""
    fault = "kill -9 of a worker that makes a rendition" + (", object store" if bench.object_store else "")
    return at_each(bench, database_urls, points, at_once, _kill_at, fault)


def image_deleted(bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int) -> Outcome:
    """Stop a worker at each point, delete the image, and let the worker go on; nothing of the image may be left."""
    fault = "an image is deleted while a rendition is made" + (", object store" if bench.object_store else "")
    return at_each(bench, database_urls, points, at_once, _delete_at, fault)


def _kill_at(site: Site, point: str, outcome: Outcome) -> None:
    one = Outcome(outcome.fault, injected=1)
    wish, original = _stored(site)
    with site.server(crash_at=point, **_PROCESSES) as server:
        began_at = time.monotonic()
        with _waiting_callers(site, server, wish) as calls:
            answers = [call.result() for call in calls]
        one.recovered(time.monotonic() - began_at)
        wait_until(lambda: ") has died. Signal 9" in server.log, WAIT_TIMEOUT, "the worker to be killed")
        for answer in answers:
            if one.expect(answer.is_ok, f"a caller was told {answer.as_told}"):
                _check_rendition(answer, original, one)
        one.expect(len({answer.data for answer in answers}) == 1, "callers got different bytes")
        audit(site, server, one, Expected())
        left = {path.name for path in server.stored_files() - server.image_files() if _guid_of(wish) in path.name}
        one.expect(left == {f"{_guid_of(wish)}.{_EDGE}.webp"}, f"beside the image there are {left}")
    add_at(outcome, one, point)


def _delete_at(site: Site, point: str, outcome: Outcome) -> None:
    one = Outcome(outcome.fault, injected=1)
    wish, original = _stored(site)
    with site.server(pause_at=point, **_PROCESSES) as server:
        with _waiting_callers(site, server, wish) as calls:
            sleeper = wait_until(lambda: _asleep(server), WAIT_TIMEOUT, "the worker to stop")
            deleted = site.delete(server, wish)
            os.kill(sleeper, signal.SIGCONT)
            if deleted.as_told == _LOCKED:
                deleted = site.delete(server, wish)
            one.expect(deleted.is_ok, f"the deletion was told {deleted.as_told}")
            answers = [call.result() for call in calls]
        for answer in answers:
            if answer.is_ok:
                _check_rendition(answer, original, one)
            else:
                one.expect(answer.as_told in (_GONE, _LOCKED), f"a caller was told {answer.as_told}")
        began_at = time.monotonic()
        wait_until(lambda: not _left(server, wish), WAIT_TIMEOUT, "all of the image to be deleted")
        one.recovered(time.monotonic() - began_at)
        after = _read(site, server, wish)
        one.expect(after.as_told == _GONE, f"after the deletion, a caller was told {after.as_told}")
        audit(site, server, one, Expected(refused=frozenset({"IMAGE_NOT_FOUND"})))
        one.expect(not _left(server, wish), f"left behind: {_left(server, wish)}")
    add_at(outcome, one, point)


def _stored(site: Site) -> tuple[Wish, bytes]:
    """Have an image made whose placeholder is there, which would be made at the same points; return also its bytes."""
    wish = site.wish()
    with site.server() as server:
        answer = site.create(server, wish)
        assert answer.is_ok, answer.as_told
        guid = _guid_of(wish)
        wait_until(lambda: site.get(server, guid).value.image.placeholder, WAIT_TIMEOUT, "the placeholder")
        return wish, site.content(server, guid).data


@contextlib.contextmanager
def _waiting_callers(site: Site, server: RunningServer, wish: Wish) -> Iterator[list[Future[Answer]]]:
    with ThreadPoolExecutor(_CALLERS) as pool:
        yield [pool.submit(_read, site, server, wish) for _ in range(_CALLERS)]


def _read(site: Site, server: RunningServer, wish: Wish) -> Answer:
    return site.content(server, _guid_of(wish), rendition=pb.RENDITION_256)


def _check_rendition(answer: Answer, original: bytes, outcome: Outcome) -> None:
    data, info = answer.data, answer.value[0].info
    outcome.expect(data != original, "a caller got the original in place of a rendition")
    outcome.expect(hashlib.sha256(data).hexdigest() == info.sha256, "other bytes than the info says")
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        outcome.expect(image.format == "WEBP" and max(image.size) <= _EDGE, f"{image.format} of {image.size}")


def _left(server: RunningServer, wish: Wish) -> list[str]:
    guid = _guid_of(wish)
    files = [path.name for path in server.stored_files() if guid in path.name]
    with server.database() as database, database.reading() as context:
        rows = RenditionRepository(context).get_of_image(guid)
    return files + [f"row {row.edge}" for row in rows]


def _asleep(server: RunningServer) -> int | None:
    """Return the id of the worker that is stopped, or None."""
    pid = server.process.pid
    workers = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())
    return next(filter(is_stopped, workers), None)


def _guid_of(wish: Wish) -> str:
    assert wish.image is not None
    guid: str = wish.image.guid
    return guid
