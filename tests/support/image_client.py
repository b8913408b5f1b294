"""The image service as one caller sees it, without the ceremony of requests, metadata and time limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.rpc import TIMEOUT, Refusal, refusal
from tests.support.servers import Login, RunningServer

SMALL = pb.GenerationOptions(size="64x64")
"""Options for pictures that are made in no time."""


def import_requests(data: bytes, *, piece: int = 64 * 1024, **info: Any) -> Iterator[pb.ImportImageRequest]:
    """Yield the messages that import an image."""
    yield pb.ImportImageRequest(info=pb.ImportImageInfo(**info))
    for start in range(0, len(data), piece):
        yield pb.ImportImageRequest(data=data[start : start + piece])


def without_placeholder(image: pb.ImageDetail) -> pb.ImageDetail:
    """A detail without its placeholder, which may come between two looks at an image."""
    image.ClearField("placeholder")
    return image


class ImageClient:
    """Calls a server as one caller; what is refused raises grpc.RpcError.

    Attributes:
        server: the server.
        login: whom the calls are made as, None for anybody.
        stub: the methods themselves.
        metadata: what every call sends along.
    """

    def __init__(self, server: RunningServer, login: Login | None = None) -> None:
        """Use the server's own channel."""
        self.server = server
        self.login = login
        self.stub = server.images
        self.metadata = login.metadata if login else ()

    def create(self, prompt: str = "a lighthouse", *, timeout: float = TIMEOUT, **fields: Any) -> pb.ImageDetail:
        """Make an image, a small one where the fields hold no options."""
        request = pb.CreateImageRequest(prompt=prompt, **({"options": SMALL} | fields))
        return without_placeholder(self._call("CreateImage", request, timeout).image)

    def create_public(self, prompt: str = "a lighthouse", **fields: Any) -> pb.ImageDetail:
        """Make an image that everybody sees."""
        return self.create(prompt, visibility=pb.VISIBILITY_PUBLIC, **fields)

    def import_image(self, data: bytes, *, timeout: float = TIMEOUT, **info: Any) -> pb.ImageDetail:
        """Import an image, in pieces."""
        return without_placeholder(self._call("ImportImage", import_requests(data, **info), timeout).image)

    def import_refused(self, requests: Iterable[pb.ImportImageRequest]) -> Refusal:
        """Send messages of an import that must be refused."""
        return refusal(self.stub.ImportImage, iter(requests), self.metadata)

    def get(self, guid: str) -> pb.ImageDetail:
        """Get an image's detail, without its placeholder."""
        return without_placeholder(self._call("GetImage", pb.GetImageRequest(guid=guid)).image)

    def placeholder(self, guid: str) -> bytes:
        """Get an image's placeholder, empty while there is none."""
        image: pb.ImageDetail = self._call("GetImage", pb.GetImageRequest(guid=guid)).image
        return image.placeholder

    def page(self, **fields: Any) -> pb.ListImagesResponse:
        """List a page."""
        page: pb.ListImagesResponse = self._call("ListImages", pb.ListImagesRequest(**fields))
        for image in page.images:
            without_placeholder(image)
        return page

    def pages(self, **fields: Any) -> Iterator[list[pb.ImageDetail]]:
        """List page after page to the end."""
        page = self.page(**fields)
        yield list(page.images)
        while page.next_page_token:
            page = self.page(**(fields | {"page_token": page.next_page_token}))
            yield list(page.images)

    def guids(self, **fields: Any) -> list[str]:
        """List the guids of a page."""
        return [image.guid for image in self.page(**fields).images]

    def content(self, guid: str, **fields: Any) -> tuple[pb.ContentInfo, bytes]:
        """Read the bytes of an image."""
        first, *others = self.chunks(guid, **fields)
        return first.info, b"".join(answer.data for answer in others)

    def chunks(self, guid: str, **fields: Any) -> list[pb.GetImageContentResponse]:
        """Read the bytes of an image message by message."""
        return list(self._call("GetImageContent", pb.GetImageContentRequest(guid=guid, **fields)))

    def update(self, guid: str, mask: Sequence[str] | None = None, **fields: Any) -> pb.ImageDetail:
        """Change an image; None sends no mask."""
        request = pb.UpdateImageRequest(guid=guid, **fields)
        if mask is not None:
            request.update_mask.CopyFrom(FieldMask(paths=mask))
        return without_placeholder(self._call("UpdateImage", request).image)

    def delete(self, guid: str) -> None:
        """Delete an image."""
        assert self._call("DeleteImage", pb.DeleteImageRequest(guid=guid)) == pb.DeleteImageResponse()

    def refused(self, request: Any, *, timeout: float | None = TIMEOUT) -> Refusal:
        """Send a request of any type that must be refused."""
        method = type(request).__name__.removesuffix("Request")
        return refusal(getattr(self.stub, method), request, self.metadata, timeout=timeout)

    def _call(self, method: str, request: Any, timeout: float = TIMEOUT) -> Any:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=timeout)
