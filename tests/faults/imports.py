"""Servers that are killed while they import an image: at every named point."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence

from tests.faults.audit import Expected, audit
from tests.faults.crashes import add_at, at_each
from tests.faults.crashing_server import IMPORT_COMMITTED, IMPORT_OBJECT_STORE_POINTS, IMPORT_POINTS
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, answer_to
from tests.support.image_client import import_requests
from tests.support.image_files import encode
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

ALL_POINTS = tuple(IMPORT_POINTS)
ALL_OBJECT_STORE_POINTS = tuple(IMPORT_OBJECT_STORE_POINTS)
_SIZE = (400, 300)


def crash_points(bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int) -> Outcome:
    """Kill a server at each point, on a site of its own on each database, and import the same again on another one."""
    fault = "kill -9 during an import" + (", object store" if bench.object_store else "")
    return at_each(bench, database_urls, points, at_once, _crash_at, fault)


def _crash_at(site: Site, point: str, outcome: Outcome) -> None:
    one = Outcome(outcome.fault, injected=1)
    data, key = encode("png", _SIZE), str(uuid.uuid4())
    with site.server(crash_at=point) as server:
        answer = _import(site, server, data, key)
        is_answered = answer.is_ok and point == IMPORT_COMMITTED
        one.expect(answer.code == "UNAVAILABLE" or is_answered, f"killed, and the call ended with {answer.as_told}")
        server.process.wait(WAIT_TIMEOUT)
    killed_at = time.monotonic()
    with site.server() as server:
        # Nobody has asked again by then: recovery alone deletes what was left.
        expected = 1 if point == IMPORT_COMMITTED else 0
        wait_until(lambda: len(server.image_files()) == expected, WAIT_TIMEOUT, "recovery")
        audit(site, server, one, Expected())
        again = wait_until(lambda: _imported(site, server, data, key), WAIT_TIMEOUT, "the import")
        one.recovered(time.monotonic() - killed_at)
        content = site.content(server, again.value.image.guid)
        one.expect(content.data == data, "other bytes")
        once_more = _import(site, server, data, key)
        one.expect(
            once_more.is_ok and once_more.value.image.guid == again.value.image.guid, f"again: {once_more.as_told}"
        )
        one.expect(len(server.image_files()) == 1, f"{len(server.image_files())} images are stored")
        one.acknowledged += 1
        audit(site, server, one, Expected())
    add_at(outcome, one, point)


def _import(site: Site, server: RunningServer, data: bytes, key: str) -> Answer:
    return answer_to(
        lambda: server.images.ImportImage(
            import_requests(data, request_id=key), metadata=site.login.metadata, timeout=WAIT_TIMEOUT
        )
    )


def _imported(site: Site, server: RunningServer, data: bytes, key: str) -> Answer | None:
    """Import, and return the answer; None where the short time for it was not enough."""
    answer = _import(site, server, data, key)
    return answer if answer.is_ok else None
