"""Reads small renditions of several images for one call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ContentUnreadableError, ImageNotFoundError, TooBusyError
from pixyproxy.core.models import MAX_PAGE_BYTES, Caller, Thumbnail, Thumbnails, ThumbnailsRequest
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import Rendition, RenditionState
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.service.renditions.requesting import RenditionRequests, error_of

# The size of a thumbnail in a serialized answer without its data: at most 93 bytes, or 40 for a guid in next_guids.
_FIXED_BYTES = 96


class ThumbnailReader:
    """Reads thumbnails."""

    def __init__(
        self, database: Database, store: ImageStore, renditions: RenditionRequests, *, longest_wait: float = 2.0
    ) -> None:
        """Wait at most ``longest_wait`` seconds for thumbnails that are not made yet, if there are others to return."""
        self._database = database
        self._store = store
        self._renditions = renditions
        self._longest_wait = longest_wait

    def read(self, request: ThumbnailsRequest, caller: Caller | None, call: CallScope) -> Thumbnails:
        """Return thumbnails. Raises as ``ImageServiceInterface.get_thumbnails``."""
        guids = tuple(dict.fromkeys(request.guids))
        with self._database.reading() as context:
            found = ImageRepository(context).get_files([(guid, caller) for guid in guids]) if guids else []
        wanted = [file.guid for file in found if file is not None]
        renditions = self._renditions.get_several(wanted, request.rendition, call, self._longest_wait)
        answer = self._answer(request, renditions)
        if not answer.thumbnails and answer.next_guids:
            # All are being made, perhaps again because their bytes are missing: the first one is worth a longer wait.
            first = answer.next_guids[0]
            del renditions[first]
            renditions.update(self._renditions.get_several([first], request.rendition, call))
            answer = self._answer(request, renditions)
        if not answer.thumbnails and answer.next_guids:
            raise TooBusyError("The thumbnails are not made yet; try again.")
        return answer

    def _answer(self, request: ThumbnailsRequest, renditions: Mapping[str, Rendition]) -> Thumbnails:
        thumbnails: list[Thumbnail] = []
        next_guids: list[str] = []
        room = MAX_PAGE_BYTES - _FIXED_BYTES * len(request.guids)
        for guid in request.guids:
            rendition = renditions.get(guid)
            if rendition is None:
                thumbnails.append(Thumbnail(guid, error=ImageNotFoundError(guid)))
            elif rendition.state is RenditionState.FAILED:
                thumbnails.append(Thumbnail(guid, error=error_of(rendition)))
            elif rendition.state is not RenditionState.MADE or (rendition.size_bytes or 0) > room:
                next_guids.append(guid)
            elif (data := self._read(rendition)) is None:
                self._renditions.request_again(rendition)
                next_guids.append(guid)
            else:
                room -= len(data)
                thumbnails.append(Thumbnail(guid, data, rendition.width or 0, rendition.height or 0))
        return Thumbnails(thumbnails, next_guids)

    def _read(self, rendition: Rendition) -> bytes | None:
        """Return the bytes of a rendition that is made, or None if they cannot be read."""
        try:
            with self._store.open_rendition(rendition.image_guid, rendition.edge) as reader:
                data = reader.read(reader.size)
        except ContentUnreadableError:
            return None
        return data if hashlib.sha256(data).hexdigest() == rendition.sha256 else None
