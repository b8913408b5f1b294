"""The interfaces of the services for images and users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pixyproxy.core.call import CallScope
from pixyproxy.core.models import (
    Caller,
    ContentRequest,
    Image,
    ImageChanges,
    ImageCreation,
    ImageImport,
    ImagePage,
    ImagePageRequest,
    QuotaLimits,
    Thumbnails,
    ThumbnailsRequest,
    User,
    UserCreate,
)
from pixyproxy.service.content import ImageContent


class ImageServiceInterface(ABC):
    """Everything that callers can do with images. All requests are validated again.

    ``caller`` is None without credentials. Every method may raise ``InvalidFieldError`` and ``DBConnectionError``, and
    ``ImageNotFoundError`` if there is no such image or the caller may not see it.
    """

    @abstractmethod
    def create_image(self, creation: ImageCreation, caller: Caller | None, call: CallScope) -> Image:
        """Generate an image, store it, and return it.

        Raises:
            CredentialsMissingError: there is no caller.
            CredentialsInvalidError: the user was removed meanwhile.
            ImageNotFoundError: an input does not exist, or the caller may not see it.
            QuotaExhaustedError: a quota of the caller is used up.
            PriceUnknownError: the costs of the caller are limited, and that of the request is unknown.
            RequestIdReusedError: the request id was used for another request.
            OutcomeUnknownError: it is unknown whether an earlier request with that id was executed.
            TooBusyError: too many generations are queued.
            StorageFullError: there is no space for the image.
            ProviderError: the provider did not return an image.
        """

    @abstractmethod
    def import_image(self, asked: ImageImport, data: Iterator[bytes], caller: Caller | None) -> Image:
        """Store an image of the caller's own, whose bytes come in pieces, and return it.

        Raises:
            InvalidFieldError: the bytes are no whole PNG, WebP or JPEG, are too many, or have another SHA-256.
            CredentialsMissingError: there is no caller.
            CredentialsInvalidError: the user was removed meanwhile.
            RequestIdReusedError: the request id was used for another request.
            StorageFullError: there is no space for the image.
            StorageUnavailableError: the store is unavailable, or the import took too long.
        """

    @abstractmethod
    def get_image_by_guid(self, guid: str, caller: Caller | None) -> Image:
        """Return one image."""

    @abstractmethod
    def get_all_images(self, request: ImagePageRequest, caller: Caller | None) -> ImagePage:
        """Return a page of the images that match a filter, newest first."""

    @abstractmethod
    def get_image_file(self, request: ContentRequest, caller: Caller | None, call: CallScope) -> ImageContent:
        """Return the bytes of an image or of a rendition, to be read once, in chunks.

        The first call for a rendition waits until it is made.

        Raises:
            OffsetOutOfRangeError: the offset is beyond the last byte.
            ContentDamagedError: the bytes are missing or damaged; for a rendition, those of the original.
            TooBusyError: the rendition was not made in time.
            StorageFullError: there is no space for the rendition.
        """

    @abstractmethod
    def get_thumbnails(self, request: ThumbnailsRequest, caller: Caller | None, call: CallScope) -> Thumbnails:
        """Return small renditions of several images; an image that cannot be shown has an error of its own.

        Raises:
            TooBusyError: none of them was made in time.
        """

    @abstractmethod
    def update_image(self, changes: ImageChanges, caller: Caller | None) -> Image:
        """Change the filename, tags or visibility of an image, and return it.

        Raises:
            CredentialsMissingError: there is no caller.
            NotYoursError: the caller may see the image but not change it.
        """

    @abstractmethod
    def delete_image(self, guid: str, caller: Caller | None) -> None:
        """Delete an image for good. Raises as ``update_image``."""


class UserServiceInterface(ABC):
    """Manages and authenticates users."""

    @abstractmethod
    def authenticate_user(self, username: str, password: str, address: str) -> Caller:
        """Check credentials from a client at ``address``.

        Raises:
            CredentialsInvalidError: the name or the password is wrong.
            TooManySignInsError: too many sign-ins with this name or from this address have failed; not checked.
            TooBusyError: too many sign-ins are waiting; not checked.
        """

    @abstractmethod
    def create_user(self, user: UserCreate) -> User:
        """Add a user.

        Raises:
            ConstraintViolationError: the name is taken.
        """

    @abstractmethod
    def get_all_users(self) -> list[User]:
        """Return all users, sorted by name."""

    @abstractmethod
    def has_users(self) -> bool:
        """Return whether there is, or ever was, a user."""

    @abstractmethod
    def change_password(self, username: str, password: str) -> None:
        """Change the password of a user.

        Raises:
            RecordNotFoundError: there is no such user.
        """

    @abstractmethod
    def remove_user(self, username: str) -> bool:
        """Remove a user, and cancel the user's queued generations, but leave the images.

        Return whether the name stays taken because of them.

        Raises:
            RecordNotFoundError: there is no such user.
        """

    @abstractmethod
    def get_limits(self, username: str) -> QuotaLimits:
        """Return the stored limits of a user.

        Raises:
            RecordNotFoundError: there is no such user.
        """

    @abstractmethod
    def set_limits(self, username: str, limits: QuotaLimits) -> QuotaLimits:
        """Store those limits of a user whose fields are set, perhaps to None, and return all; the others stay.

        Raises:
            RecordNotFoundError: there is no such user.
        """
