"""The image service."""

from __future__ import annotations

from pixyproxy.data.database import Database
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.importing.importer import ImageImporter
from pixyproxy.service.interfaces import ImageServiceInterface
from pixyproxy.service.page_tokens import PageTokens
from pixyproxy.service.private_images import PrivateImageService
from pixyproxy.service.public_images import PublicImageService
from pixyproxy.service.renditions.requesting import RenditionRequests


class ImageService(PublicImageService, PrivateImageService, ImageServiceInterface):
    """Reads, generates, imports, changes and deletes images."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        storing: ImageStoring,
        creator: ImageCreator,
        importer: ImageImporter,
        page_tokens: PageTokens,
        renditions: RenditionRequests,
    ) -> None:
        PublicImageService.__init__(self, database, store, page_tokens, renditions)
        PrivateImageService.__init__(self, database, storing, creator, importer)
