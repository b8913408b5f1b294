"""Requests renditions, each once, and waits until workers have made them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from pixyproxy.core.call import CallScope
from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import (
    ConstraintViolationError,
    ContentUnreadableError,
    ImageNotFoundError,
    PixyProxyException,
    TooBusyError,
)
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.renditions import Rendition, RenditionRepository, RenditionState
from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.data.transactions import in_transaction

RENDITION_TYPE = "image/webp"
"""The media type of all renditions."""

# Between two queries while calls wait.
_INTERVAL_SECONDS = 0.02
# While nobody waits. The next one who does wakes the thread.
_IDLE_SECONDS = 3600.0


class _Wait:
    """A call that waits until no rendition of some ids is to be made any more."""

    def __init__(self, ids: Collection[int]) -> None:
        self.ids = set(ids)
        self.is_over = threading.Event()


class RenditionRequests:
    """Requests renditions, and waits for them, with one query for all waiting calls of a process."""

    def __init__(
        self,
        database: Database,
        *,
        on_request: Callable[[], object],
        longest_wait: float = 60.0,
    ) -> None:
        """Initialize without querying anything.

        ``on_request`` is called when a rendition is requested. A call stops waiting after ``longest_wait`` seconds,
        even before its deadline.
        """
        self._database = database
        self._on_request = on_request
        self._longest_wait = longest_wait
        self._waits: set[_Wait] = set()
        self._lock = threading.Lock()
        self._task = PeriodicTask("rendition requests", self._query, retry_interval=0.5)

    def start(self) -> None:
        """Start the thread that queries."""
        self._task.start()

    def close(self) -> None:
        """Stop the thread."""
        self._task.close()

    def get(self, image_guid: str, edge: int, call: CallScope) -> Rendition:
        """Return a rendition once it is made.

        Raises:
            ImageNotFoundError: the image was deleted meanwhile.
            TooBusyError: it is not made in time.
            PixyProxyException: it cannot be made; a ContentUnreadableError if the image is damaged or unreadable.
        """
        rendition = self.get_several([image_guid], edge, call).get(image_guid)
        if rendition is None:
            raise ImageNotFoundError(image_guid)
        if rendition.state is RenditionState.FAILED:
            raise error_of(rendition)
        if rendition.state is not RenditionState.MADE:
            raise TooBusyError("The rendition is not made yet; try again.")
        return rendition

    def get_several(
        self, image_guids: Sequence[str], edge: int, call: CallScope, longest_wait: float | None = None
    ) -> dict[str, Rendition]:
        """Return renditions, by the guids of their images, once all are made or cannot be made, or as they are then.

        Args:
            image_guids: the images; those that were deleted meanwhile may be missing in the result.
            edge: the edge of the renditions in pixels.
            call: the call, whose end ends the wait.
            longest_wait: the most seconds to wait, by default those of ``get``.
        """
        renditions = self._requested(image_guids, edge)
        pending = [rendition.id for rendition in renditions.values() if not rendition.is_final]
        if not pending:
            return renditions
        self._wait_for(pending, call, self._longest_wait if longest_wait is None else longest_wait)
        with self._database.reading() as context:
            # By their ids: after a deletion of the image, another call may have requested the rendition again.
            found = RenditionRepository(context).get_several([rendition.id for rendition in renditions.values()])
        return {rendition.image_guid: rendition for rendition in found.values()}

    def get_again(self, damaged: Rendition, call: CallScope) -> Rendition:
        """Return a rendition whose bytes were missing or damaged once it is made again. Raises as ``get``."""
        self.request_again(damaged)
        return self.get(damaged.image_guid, damaged.edge, call)

    def request_again(self, damaged: Rendition) -> None:
        """Have a rendition made again whose bytes are missing or damaged."""
        in_transaction(self._database, lambda context: RenditionRepository(context).request_again(damaged))
        self._on_request()

    def _requested(self, image_guids: Sequence[str], edge: int) -> dict[str, Rendition]:
        """Return renditions after requesting those that are not made, each once."""

        def request(context: DatabaseContext) -> None:
            renditions = RenditionRepository(context)
            for rendition in to_repeat:
                renditions.request_again(rendition)
            renditions.prefer([rendition.id for rendition in planned])
            renditions.request(missing, edge)

        while True:
            with self._database.reading() as context:
                found = RenditionRepository(context).get(image_guids, edge)
            now = datetime.now(UTC)
            missing = [guid for guid in image_guids if guid not in found]
            planned = [rendition for rendition in found.values() if rendition.state is RenditionState.PLANNED]
            to_repeat = [
                rendition
                for rendition in found.values()
                if rendition.state is RenditionState.FAILED and rendition.due_at <= now
            ]
            if not (missing or planned or to_repeat):
                return found
            try:
                in_transaction(self._database, request)
            except ConstraintViolationError:
                continue  # Another call was faster.
            self._on_request()

    def _wait_for(self, ids: Collection[int], call: CallScope, longest_wait: float) -> None:
        wait = _Wait(ids)
        with self._lock:
            self._waits.add(wait)
        self._task.wake()
        try:
            call.on_leaving(wait.is_over.set)
            remaining = call.remaining()
            wait.is_over.wait(longest_wait if remaining is None else min(remaining, longest_wait))
        finally:
            with self._lock:
                self._waits.remove(wait)

    def _query(self) -> float:
        with self._lock:
            waits = list(self._waits)
        if not waits:
            return _IDLE_SECONDS
        started = time.monotonic()
        try:
            with self._database.reading() as context:
                pending = RenditionRepository(context).get_pending(set().union(*(wait.ids for wait in waits)))
        except PixyProxyException:
            # Each call reads for itself, and gets the error.
            for wait in waits:
                wait.is_over.set()
            raise
        for wait in waits:
            wait.ids &= pending
            if not wait.ids:
                wait.is_over.set()
        # Calls may wait for 200 each: half of the time is left to other threads.
        return max(_INTERVAL_SECONDS, time.monotonic() - started)


def open_rendition(store: ImageStore, rendition: Rendition) -> ContentReader | None:
    """Open the bytes of a rendition that is made; return None if they are missing, unreadable or of another size."""
    try:
        reader = store.open_rendition(rendition.image_guid, rendition.edge)
    except ContentUnreadableError:
        return None
    if reader.size != rendition.size_bytes:
        reader.close()
        return None
    return reader


def error_of(rendition: Rendition) -> PixyProxyException:
    """Return why a rendition could not be made."""
    return from_record(rendition.error or "{}")
