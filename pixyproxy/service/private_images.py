"""Generating, importing, changing and deleting images, which needs credentials."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import CredentialsMissingError, NotYoursError, PixyProxyException
from pixyproxy.core.models import Caller, Image, ImageChanges, ImageCreation, ImageImport
from pixyproxy.core.validation import validated, validated_guid
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.audit_outbox import AuditOutboxRepository
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.importing.importer import ImageImporter

_logger = logging.getLogger(__name__)


class PrivateImageService:
    """The writing methods of ``ImageServiceInterface``, which documents them."""

    def __init__(
        self, database: Database, storing: ImageStoring, creator: ImageCreator, importer: ImageImporter
    ) -> None:
        self._database = database
        self._storing = storing
        self._creator = creator
        self._importer = importer

    def create_image(self, creation: ImageCreation, caller: Caller | None, call: CallScope) -> Image:  # noqa: D102
        return self._creator.create(validated(ImageCreation, creation), signed_in(caller), call)

    def import_image(self, asked: ImageImport, data: Iterator[bytes], caller: Caller | None) -> Image:  # noqa: D102
        return self._importer.import_image(validated(ImageImport, asked), data, signed_in(caller))

    def update_image(self, changes: ImageChanges, caller: Caller | None) -> Image:  # noqa: D102
        changes = validated(ImageChanges, changes)
        author = signed_in(caller)

        def change(context: DatabaseContext) -> Image:
            image = self._lock_own(context, changes.guid, author)
            now = max(datetime.now(UTC), image.created_at)
            image = image.model_copy(update={**changes.changed_fields(), "updated_at": now})
            ImageRepository(context).update(image)
            AuditOutboxRepository(context).add(
                "image.updated",
                author.username,
                image.guid,
                author=image.author,
                fields=sorted(changes.changed_fields()),
            )
            return image

        return in_transaction(self._database, change)

    def delete_image(self, guid: str, caller: Caller | None) -> None:  # noqa: D102
        guid = validated_guid(guid)
        author = signed_in(caller)

        def delete(context: DatabaseContext) -> None:
            image = self._lock_own(context, guid, author)
            ImageRepository(context).delete(image.id)
            DeletionRepository(context).insert(guid)
            GenerationDetailRepository(context).forget_request(guid)
            AuditOutboxRepository(context).add("image.deleted", author.username, guid, author=image.author)

        in_transaction(self._database, delete)
        try:
            # After the detail: bytes without a detail only take space, a detail without bytes is an error.
            self._storing.delete_bytes(guid)
        except PixyProxyException as error:
            _logger.warning("The bytes of the deleted image %s are left to recovery: %s", guid, error.message)

    def _lock_own(self, context: DatabaseContext, guid: str, caller: Caller) -> Image:
        """Lock an image, and return it if the caller may change it."""
        images = ImageRepository(context)
        images.lock(guid)
        image = images.get(guid, caller)
        if image.author_id != caller.user_id and not caller.is_admin:
            raise NotYoursError("This image belongs to another user; only its author and admins may change it.")
        return image


def signed_in(caller: Caller | None) -> Caller:
    """Return who is signed in.

    Raises:
        CredentialsMissingError: nobody is.
    """
    if caller is None:
        raise CredentialsMissingError
    return caller
