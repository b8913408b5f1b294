"""The client itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1.image_service_pb2_grpc import ImageServiceStub

from pixyproxy.client.connection import TLS, is_loopback, open_channel, sign_in, tls_for, watch_for_failure
from pixyproxy.client.content import ContentStream
from pixyproxy.client.download import OnProgress, download
from pixyproxy.client.errors import PixyProxyClientError, error_of
from pixyproxy.client.models import ContentInfo, ImageDetail, ImagePage, Visibility, to_detail, to_page
from pixyproxy.client.retry import Reach, Retry

DEFAULT_ADDRESS = "127.0.0.1:50051"
_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ImageService"].full_name


class Filters(TypedDict, total=False):
    """Which images to list; all that is given must hold.

    Attributes:
        prompt: words to find in the prompt; the last one may be the beginning of a word.
        filename: a part of the filename, whatever its case.
        guid: the image's guid.
        tags: tags that the image must all carry.
        author: the username of its creator.
        visibility: who may read it.
        created_after: it was created later than this; aware.
        created_before: it was created earlier than this; aware.
    """

    prompt: str
    filename: str
    guid: str
    tags: Sequence[str]
    author: str
    visibility: Visibility | None
    created_after: datetime | None
    created_before: datetime | None


class PixyProxyClient:
    """Calls a server; threads may share it.

    Every method takes a ``timeout``, in seconds for everything that it does, attempts after a failure included; without
    one it takes the client's. Calls are made again where that cannot do or cost anything twice. All methods raise
    PixyProxyClientError.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TLS | bool | None = None,
        allow_plaintext: bool = False,
        timeout: float | None = 30.0,
        long_timeout: float | None = 600.0,
        channel: grpc.Channel | None = None,
        on_unreachable: Callable[[], object] | None = None,
    ) -> None:
        """Connect at the first call.

        Args:
            address: host:port.
            username: whom to sign in as; without, only public images are there, to be read.
            password: that user's password.
            tls: how to encrypt; True for the usual authorities, False for plain text; by default plain text to this
                machine itself, and the usual authorities beyond.
            allow_plaintext: whether the password may cross a network in plain text.
            timeout: the seconds that a call is given; None for no limit.
            long_timeout: the same for making an image, and for reading all of its bytes.
            channel: a channel of your own, in place of ``address`` and ``tls``; closing it stays yours, and so does
                what it encrypts.
            on_unreachable: is called, once and from another thread, when no connection comes about; calls go on trying
                for some seconds.

        Raises:
            ValueError: the arguments do not go together; or the password would cross a network in plain text, and
                nobody has allowed that.
        """
        self._metadata = sign_in(username, password)
        self._reach = Reach()
        self._timeout = timeout
        self._long_timeout = long_timeout
        self._own_channel: grpc.Channel | None = None
        if channel is None:
            encryption = tls_for(address, tls)
            if self._metadata and encryption is None and not is_loopback(address) and not allow_plaintext:
                raise ValueError(
                    f"The password would cross the network to {address} in plain text: use TLS, or allow_plaintext."
                )
            channel = self._own_channel = open_channel(address, encryption)
        if on_unreachable is not None:
            watch_for_failure(channel, on_unreachable)
        self._stub: Any = ImageServiceStub(channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls, and the connection."""
        if self._own_channel is not None:
            self._own_channel.close()

    # --- Making and changing -------------------------------------------------------------------------------------

    def create_image(
        self,
        prompt: str,
        *,
        tags: Sequence[str] = (),
        visibility: Visibility = Visibility.PRIVATE,
        filename: str = "",
        model: str = "",
        size: str = "",
        quality: str = "",
        output_format: str = "",
        background: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> ImageDetail:
        """Make an image. What is left empty takes the server's default.

        Where the connection breaks or the server is busy it is asked for again with the same ``request_id``: the image
        is made, and paid for, once. An error's ``creation_request_id`` is what to ask for it again with later.

        Args:
            prompt: what to draw.
            tags: tags to find it by.
            visibility: who may read it.
            filename: a name to show; by default one is made from the prompt.
            model: the provider's model.
            size: ``auto`` or ``WIDTHxHEIGHT`` in pixels.
            quality: one of auto, low, medium, high, xhigh, max.
            output_format: one of png, webp, jpeg.
            background: one of auto, opaque, transparent.
            request_id: a UUID, one for each image that is wanted; by default a new one.
            timeout: in seconds; by default the client's ``long_timeout``.
        """
        request = pb.CreateImageRequest(
            prompt=prompt,
            tags=tags,
            visibility=_visibility(visibility),
            filename=filename,
            request_id=request_id or str(uuid.uuid4()),
            options=pb.GenerationOptions(
                model=model, size=size, quality=quality, output_format=output_format, background=background
            ),
        )
        seconds = self._long_timeout if timeout is None else timeout
        retry = Retry(seconds, self._reach, is_repeatable=True, is_repeated_by_grpc=False)
        try:
            return to_detail(self._call(self._stub.CreateImage, request, retry).image)
        except PixyProxyClientError as error:
            error.creation_request_id = request.request_id
            raise

    def update_image(
        self,
        guid: str,
        *,
        filename: str | None = None,
        tags: Sequence[str] | None = None,
        visibility: Visibility | None = None,
        timeout: float | None = None,
    ) -> ImageDetail:
        """Change an image; what is None stays as it is. Tags replace all the old ones."""
        request = pb.UpdateImageRequest(guid=guid)
        if filename is not None:
            request.filename = filename
            request.update_mask.paths.append("filename")
        if tags is not None:
            request.tags.extend(tags)
            request.update_mask.paths.append("tags")
        if visibility is not None:
            request.visibility = _visibility(visibility)
            request.update_mask.paths.append("visibility")
        return to_detail(self._call(self._stub.UpdateImage, request, self._retry(timeout)).image)

    def delete_image(self, guid: str, *, timeout: float | None = None) -> None:
        """Delete an image for good.

        It is not repeated where the connection breaks: the second time could only say that there is no such image,
        which is also said where there never was one.
        """
        retry = self._retry(timeout, is_repeatable=False)
        self._call(self._stub.DeleteImage, pb.DeleteImageRequest(guid=guid), retry)

    # --- Finding -------------------------------------------------------------------------------------------------

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server takes calls; that needs no credentials."""
        request = health_pb2.HealthCheckRequest(service=_SERVICE_NAME)
        answer = self._call(self._health.Check, request, self._retry(timeout))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def get_image(self, guid: str, *, timeout: float | None = None) -> ImageDetail:
        """Get what is known of an image."""
        return to_detail(self._call(self._stub.GetImage, pb.GetImageRequest(guid=guid), self._retry(timeout)).image)

    def list_page(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None, **filters: Unpack[Filters]
    ) -> ImagePage:
        """Get a page of images, newest first.

        Args:
            page_size: the most images on the page, up to 200; 0 for 50. Long prompts make a page shorter.
            page_token: the ``next_page_token`` of the page before, with the same filters; empty for the first page.
            timeout: as everywhere.
            **filters: which images; see Filters.
        """
        request = pb.ListImagesRequest(
            page_size=page_size,
            page_token=page_token,
            prompt=filters.get("prompt", ""),
            filename=filters.get("filename", ""),
            guid=filters.get("guid", ""),
            tags=filters.get("tags", ()),
            author=filters.get("author", ""),
            visibility=_visibility(filters.get("visibility")),
            created_after=_timestamp(filters.get("created_after")),
            created_before=_timestamp(filters.get("created_before")),
        )
        return to_page(self._call(self._stub.ListImages, request, self._retry(timeout)))

    def list_images(
        self, *, page_size: int = 0, timeout: float | None = None, **filters: Unpack[Filters]
    ) -> Iterator[ImageDetail]:
        """Give all images that the filters find, newest first, asking for page after page as they are needed.

        Args:
            page_size: images a page, at most 200; 0 for 50.
            timeout: for each page.
            **filters: which images; see Filters.
        """
        page = self.list_page(page_size=page_size, timeout=timeout, **filters)
        yield from page.images
        while page.next_page_token:
            page = self.list_page(page_size=page_size, page_token=page.next_page_token, timeout=timeout, **filters)
            yield from page.images

    def search_images(self, words: str, **filters: Unpack[Filters]) -> Iterator[ImageDetail]:
        """Give all images whose prompts have all these words, newest first; of the last one the beginning is enough."""
        return self.list_images(**(filters | Filters(prompt=words)))

    # --- The bytes -----------------------------------------------------------------------------------------------

    def stream_content(
        self,
        guid: str,
        *,
        read_offset: int = 0,
        read_limit: int = 0,
        if_none_match: str = "",
        timeout: float | None = None,
    ) -> ContentStream:
        """Read an image's bytes as they come.

        Args:
            guid: the image's guid.
            read_offset: the first byte wanted.
            read_limit: the most bytes wanted; 0 for all to the end.
            if_none_match: the SHA-256 of what you hold; where it is the image's, no bytes come.
            timeout: for all of them, in seconds; by default the client's ``long_timeout``.
        """
        request = pb.GetImageContentRequest(
            guid=guid, read_offset=read_offset, read_limit=read_limit, if_none_match=if_none_match
        )
        return ContentStream(
            self._ask_for_content,
            request,
            Retry(self._long_timeout if timeout is None else timeout, self._reach, is_repeatable=True),
        )

    def fetch_content(
        self,
        guid: str,
        path: str | Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> ContentInfo:
        """Save an image's bytes as a file, which is there whole and checked, or not at all.

        Where it breaks off, the next call goes on where it stopped.

        Args:
            guid: the image's guid.
            path: the file to make, in a folder that is there.
            overwrite: whether it may replace one.
            on_progress: is called with the number of bytes that are there, and of all.
            timeout: for all bytes, in seconds; by default the client's ``long_timeout``.

        Raises:
            FileExistsError: there is such a file already, and ``overwrite`` is not set.
            OSError: it cannot be written.
        """
        retry_timeout = self._long_timeout if timeout is None else timeout
        return download(
            lambda offset: self.stream_content(guid, read_offset=offset, timeout=retry_timeout),
            guid,
            Path(path),
            overwrite=overwrite,
            on_progress=on_progress,
        )

    # --- Calling -------------------------------------------------------------------------------------------------

    def _retry(self, timeout: float | None, *, is_repeatable: bool = True) -> Retry:
        return Retry(self._timeout if timeout is None else timeout, self._reach, is_repeatable=is_repeatable)

    def _call(self, method: Any, request: Any, retry: Retry) -> Any:
        while True:
            try:
                answer = method(request, timeout=retry.remaining, metadata=self._metadata)
            except grpc.RpcError as error:
                retry.wait_after(error_of(error))
            else:
                self._reach.is_proven = True
                return answer

    def _ask_for_content(self, request: pb.GetImageContentRequest, timeout: float | None) -> Any:
        return self._stub.GetImageContent(request, timeout=timeout, metadata=self._metadata)


def _visibility(visibility: Visibility | None) -> pb.Visibility:
    return pb.VISIBILITY_UNSPECIFIED if visibility is None else cast("pb.Visibility", visibility.value)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone.")
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
