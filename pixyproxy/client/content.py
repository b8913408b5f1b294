"""An image's bytes as they come, and again from where they broke off."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client.errors import ContentDamagedError, error_of
from pixyproxy.client.models import ContentInfo, to_content_info
from pixyproxy.client.retry import Retry

# Makes a call, in the seconds that are given.
Ask = Callable[[pb.GetImageContentRequest, float | None], Any]


class ContentStream:
    """The bytes of an image, or of a part of it; to be iterated over once.

    A connection that breaks is made again, and the bytes go on where they broke off. The whole of an image is checked
    against its SHA-256: where it is not right, the iteration ends in an error.

    Attributes:
        info: what is being read.
    """

    def __init__(self, ask: Ask, request: pb.GetImageContentRequest, retry: Retry) -> None:
        """Make the call, and wait for what is being read."""
        self._ask = ask
        self._request = request
        self._retry = retry
        self._received = 0
        self._hash = hashlib.sha256()
        while True:
            try:
                self.info = self._begin()
                break
            except grpc.RpcError as error:
                retry.wait_after(error_of(error))

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes as they come.

        Raises:
            ContentDamagedError: they are too few, or not those that the image was stored with.
            PixyProxyClientError: the call failed.
        """
        while self._received < self._expected:
            try:
                for answer in self._call:
                    self._received += len(answer.data)
                    self._hash.update(answer.data)
                    yield answer.data
                break
            except grpc.RpcError as error:
                if self._received < self._expected:
                    self._retry.wait_after(error_of(error))
                    self._go_on()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ask for no more bytes."""
        self._call.cancel()

    @property
    def _expected(self) -> int:
        """The number of bytes that must come."""
        if self.info.not_modified:
            return 0
        rest = self.info.size_bytes - self._request.read_offset
        return min(rest, self._request.read_limit) if self._request.read_limit else rest

    def _begin(self) -> ContentInfo:
        request = pb.GetImageContentRequest()
        request.CopyFrom(self._request)
        request.read_offset += self._received
        if request.read_limit:
            request.read_limit -= self._received
        self._call = self._ask(request, self._retry.remaining)
        return to_content_info(next(self._call, pb.GetImageContentResponse()).info)

    def _go_on(self) -> None:
        while True:
            try:
                info = self._begin()
            except grpc.RpcError as error:
                self._retry.wait_after(error_of(error))
                continue
            if info.sha256 != self.info.sha256:
                raise ContentDamagedError("The image's bytes were others before the connection broke.")
            return

    def _check(self) -> None:
        is_whole = self._received == self.info.size_bytes
        if self._received != self._expected or (is_whole and self._hash.hexdigest() != self.info.sha256):
            raise ContentDamagedError("The bytes that came are not those that the image was stored with.")
