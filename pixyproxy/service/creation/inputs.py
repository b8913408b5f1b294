"""The inputs of edits: pinned by their SHA-256 when a request is recorded, and read when it is submitted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    DBConnectionError,
    FieldViolation,
    ImageNotFoundError,
    InputUnreadableError,
    InvalidFieldError,
    PixyProxyException,
)
from pixyproxy.core.models import Caller, Image, ImageCreation, ImageInput
from pixyproxy.core.provider_limits import input_problem, mask_problem
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.generation.interfaces import GenerationRequest
from pixyproxy.service.content import damaged

_MASK = "mask"


def pin_inputs(database: Database, creation: ImageCreation, author: Caller) -> ImageCreation:
    """Check the inputs and the mask of a request, and return the request with their SHA-256.

    Raises:
        ImageNotFoundError: one does not exist, or the author may not see it.
        InvalidFieldError: the provider takes none like it.
    """
    named = _named(creation)
    if not named:
        return creation
    with database.reading() as context:
        found = ImageRepository(context).get_several([(source.guid, author) for _, source in named])
    images: dict[str, Image] = {}
    for (field, source), image in zip(named, found, strict=True):
        if image is None:
            raise ImageNotFoundError(source.guid, field)
        images[field] = image
    violations = [FieldViolation(field, problem) for field, problem in _problems(images)]
    if violations:
        raise InvalidFieldError(violations)
    pinned = {field: ImageInput(guid=image.guid, sha256=image.sha256) for field, image in images.items()}
    mask = pinned.pop(_MASK, None)
    return creation.model_copy(update={"inputs": tuple(pinned.values()), "mask": mask})


def _named(creation: ImageCreation) -> list[tuple[str, ImageInput]]:
    """Return all inputs and the mask with their fields of the request."""
    named = [(f"inputs[{number}]", source) for number, source in enumerate(creation.inputs)]
    return named if creation.mask is None else [*named, (_MASK, creation.mask)]


def _problems(images: dict[str, Image]) -> Iterator[tuple[str, str]]:
    for field, image in images.items():
        is_mask = field == _MASK
        problem = mask_problem(image.content_type, image.size_bytes) if is_mask else input_problem(image.size_bytes)
        if problem is not None:
            yield field, problem
    first, mask = images["inputs[0]"], images.get(_MASK)
    if mask is not None and (mask.width, mask.height) != (first.width, first.height):
        yield _MASK, f"must be as large as the first input, {first.width}x{first.height} pixels"


class EditInputs:
    """Opens the inputs of recorded requests."""

    def __init__(self, find: Callable[[Collection[str]], Mapping[str, Image]], store: ImageStore) -> None:
        """Use ``find``, which returns images by guid, whether or not a caller may see them."""
        self._find = find
        self._store = store

    @contextmanager
    def opened(self, request: GenerationRequest, creation: ImageCreation) -> Iterator[GenerationRequest]:
        """Yield the request with the inputs of the recorded one, which are open until the end of the context.

        Raises:
            InputUnreadableError: one was deleted, is damaged, or cannot be opened.
        """
        named = _named(creation)
        if not named:
            yield request
            return
        with ExitStack() as stack:
            try:
                images = self._find({source.guid for _, source in named})
                files = [stack.enter_context(closing(self._open(*one, images))) for one in named]
            except PixyProxyException as error:
                raise InputUnreadableError(error) from error
            mask = files.pop() if creation.mask is not None else None
            yield replace(request, inputs=tuple(files), mask=mask)

    def _open(self, field: str, source: ImageInput, images: Mapping[str, Image]) -> PinnedInput:
        # Also an image whose bytes are not deleted yet: who has deleted an image does not want it to be sent.
        image = images.get(source.guid)
        if image is None:
            raise _deleted(field, source)
        explain = partial(self._explain, field, source)
        try:
            reader = self._store.open(source.guid)
        except PixyProxyException as error:
            raise explain(error) from error
        return PinnedInput(reader, image.content_type, source.sha256, name=field, explain=explain)

    def _explain(self, field: str, source: ImageInput, error: PixyProxyException) -> PixyProxyException:
        """Return the error for callers: bytes may be missing because the image was deleted meanwhile."""
        if not isinstance(error, ContentDamagedError):
            return error
        with suppress(DBConnectionError):
            if not self._find([source.guid]):
                return _deleted(field, source)
        return ContentDamagedError("The stored bytes of the image are damaged; nothing was generated.", field=field)


class PinnedInput:
    """An ``InputFile``: the bytes of an input, which are compared with the recorded SHA-256."""

    def __init__(
        self,
        reader: ContentReader,
        content_type: str,
        sha256: str | None,
        *,
        name: str,
        explain: Callable[[PixyProxyException], PixyProxyException],
    ) -> None:
        """Read from ``reader``, which is closed with this object.

        Args:
            reader: the stored bytes.
            content_type: their media type.
            sha256: their SHA-256 when the generation was recorded.
            name: the field of the request, from which the file name is made.
            explain: returns the error for callers.
        """
        self.name = f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.{content_type.removeprefix('image/')}"
        self.content_type = content_type
        self.size = reader.size
        self._sha256 = sha256
        self._explain = explain
        self._reader: ContentReader | None = reader
        self._left = reader.size
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Return up to ``count`` of the next bytes, and none at the end. Raises as ``InputFile.read``."""
        if self._reader is None:
            return b""
        try:
            chunk = self._reader.read(min(count, self._left))
            self._left -= len(chunk)
            self._digest.update(chunk)
            if not self._left or not chunk:
                self._finish()
        except PixyProxyException as error:
            raise InputUnreadableError(self._explain(error)) from error
        return chunk

    def _finish(self) -> None:
        self.close()
        if self._left or self._digest.hexdigest() != self._sha256:
            raise damaged()

    def close(self) -> None:
        """Close the reader."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def _deleted(field: str, source: ImageInput) -> ImageNotFoundError:
    return ImageNotFoundError(
        source.guid, field, "The image was deleted before the request was submitted; nothing was generated."
    )
