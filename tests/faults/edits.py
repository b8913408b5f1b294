"""Inputs of edits that are deleted or damaged at every moment between the record and the submission."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import cast

from pixyproxy.bootstrap import open_current_database
from pixyproxy.core.exceptions import ConflictError
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.importing.importer import ImageImporter
from pixyproxy.service.private_images import PrivateImageService
from tests.faults.audit import Expected, audit
from tests.faults.crashes import is_asleep
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, Wish
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_DELETED, _DAMAGED = "NOT_FOUND IMAGE_NOT_FOUND", "DATA_LOSS CONTENT_DAMAGED"
# Read in many pieces, of which only the last has the damage.
_LARGE = "large=3000000"
_BEFORE_OPENING = ("recorded", "before the claim", "before the inputs are opened")
MOMENTS = (
    *_BEFORE_OPENING,
    "an input is opened",
    "submitted, the provider not asked",
    "a part of an input is read",
    "an input is read",
    "the mask is read",
)


def inputs_change(
    bench: Bench, new_database: Callable[[], str | None], *, at_once: int, moments: Sequence[str] = MOMENTS
) -> Outcome:
    """Stop a server at each moment, change the first input in each way, and let the server go on."""
    outcome = Outcome("an input of an edit is deleted or damaged before it is sent")
    # A lease that ends meanwhile is another fault's matter.
    bench = replace(bench, lease=None)
    jobs = [(new_database(), moment, how) for moment, how in itertools.product(moments, _CHANGES)]

    def change(job: tuple[str | None, str, str]) -> None:
        while not _change_at(bench.site(job[0]), job[1], job[2], outcome):
            pass

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(change, jobs))
    return outcome


def _change_at(site: Site, moment: str, how: str, outcome: Outcome) -> bool:
    """Change an input at a moment; return False if the stopped server locked the database, and nothing was tried."""
    one = Outcome(outcome.fault, injected=1)
    sources = [site.wish(_LARGE), site.wish(), site.wish(_LARGE)]
    with site.server() as server:
        for source in sources:
            one.expect(site.create(server, source).is_ok, "a source")
    edit = site.wish(inputs=sources[:2], mask=sources[2])
    with site.server(pause_at=moment) as server:
        call = site.begin(server, edit)
        wait_until(lambda: is_asleep(server), WAIT_TIMEOUT, "the server to stop")
        try:
            undo, told = _CHANGES[how](site, server, sources[0])
        except ConflictError:  # Another thread of the server was stopped while it held SQLite's only lock.
            server.process.send_signal(signal.SIGCONT)
            site.end(edit, call)
            return False
        server.process.send_signal(signal.SIGCONT)
        went_on_at = time.monotonic()
        answer = site.end(edit, call)
        one.recovered(time.monotonic() - went_on_at)
        one.expect(not (answer.is_ok and moment in _BEFORE_OPENING), "an input that had changed was used")
        _check(site, edit, answer, told, one)
        undo()
        audit(site, server, one, Expected(refused=frozenset({"IMAGE_NOT_FOUND"})))
    for complaints in (one.problems, one.lost, one.billed_twice):
        complaints[:] = [f"[{moment}, {how}] {complaint}" for complaint in complaints]
    outcome.add(one)
    return True


def _check(site: Site, edit: Wish, answer: Answer, told: str, outcome: Outcome) -> None:
    """Check that the provider was sent all that was recorded, or that nothing was executed."""
    submitted = site.stand_in.submissions(edit.prompt)["requests"]
    if not answer.is_ok:
        outcome.expect(answer.as_told == told, f"{answer.as_told} in place of {told}")
        outcome.expect(not submitted, "failed, and was submitted")
        return
    sums = [source.image.sha256 for source in edit.inputs if source.image]
    received = [[one["sha256"] for one in request["image"]] for request in submitted]
    outcome.expect(received == [sums], f"submitted {received} in place of {sums}")


Undo = Callable[[], object]


def _delete(_: Site, server: RunningServer, source: Wish) -> tuple[Undo, str]:
    """Delete an image as another server does: the one that is stopped cannot be asked."""
    assert source.image is not None
    settings = server.settings.model_copy(update={"audit_log": server.env["PIXYPROXY_AUDIT_LOG"]})
    with open_current_database(settings) as database:
        storing = ImageStoring(database, LocalImageStore(server.image_folder), lease=timedelta(seconds=1))
        images = PrivateImageService(database, storing, cast(ImageCreator, None), cast(ImageImporter, None))
        images.delete_image(source.image.guid, server.caller(server.admin))
    source.may_be_deleted = source.is_deleted = True
    return lambda: None, _DELETED


def _damage(_: Site, server: RunningServer, source: Wish) -> tuple[Undo, str]:
    assert source.image is not None
    path = server.image_file(source.image.guid)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([whole[-1] ^ 1]))
    return lambda: path.write_bytes(whole), _DAMAGED


def _shorten(_: Site, server: RunningServer, source: Wish) -> tuple[Undo, str]:
    assert source.image is not None
    path = server.image_file(source.image.guid)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(whole) - 1)
    return lambda: path.write_bytes(whole), _DAMAGED


_CHANGES = {"deleted": _delete, "damaged": _damage, "shortened": _shorten}
