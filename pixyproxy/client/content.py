"""Streams of image bytes that resume after an interruption."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client.calls import Call
from pixyproxy.client.errors import ContentDamagedError, error_of
from pixyproxy.client.models import ContentInfo
from pixyproxy.client.retry import Attempts

# Starts an attempt of a call with a request.
Invoke = Callable[[Call[ContentInfo], pb.GetImageContentRequest, Attempts], Any]


class BaseContentStream:
    """The common parts of both streams.

    Attributes:
        info: the image.
    """

    info: ContentInfo

    def __init__(self, call: Call[ContentInfo], invoke: Invoke, attempts: Attempts) -> None:
        """Start no call yet."""
        self._call = call
        self._invoke = invoke
        self._attempts = attempts
        self._messages: Any = None
        self._received = 0
        self._hash = hashlib.sha256()

    def close(self) -> None:
        """Cancel the call."""
        self._messages.cancel()

    def _ask(self) -> None:
        """Start a call for the remaining bytes."""
        request = pb.GetImageContentRequest()
        request.CopyFrom(self._call.request)
        request.read_offset += self._received
        if request.read_limit:
            request.read_limit -= self._received
        self._messages = self._invoke(self._call, request, self._attempts)

    def _begin(self, first: pb.GetImageContentResponse) -> None:
        """Process the first message of a call."""
        info = self._call.read(first)
        if self._received and info.sha256 != self.info.sha256:
            raise ContentDamagedError("The image's bytes changed while the connection was broken.")
        self.info = info
        self._attempts.succeeded()

    def _take(self, message: pb.GetImageContentResponse) -> bytes:
        """Process a further message, and return its bytes."""
        self._received += len(message.data)
        self._hash.update(message.data)
        return message.data

    def _pause_after(self, error: grpc.RpcError) -> float:
        return self._attempts.pause_after(error_of(error))

    @property
    def _expected(self) -> int:
        """The number of bytes to receive."""
        if self.info.not_modified:
            return 0
        request: pb.GetImageContentRequest = self._call.request
        rest = self.info.size_bytes - request.read_offset
        return min(rest, request.read_limit) if request.read_limit else rest

    @property
    def _is_complete(self) -> bool:
        return self._received >= self._expected

    def _check(self) -> None:
        is_whole = self._received == self.info.size_bytes
        if self._received != self._expected or (is_whole and self._hash.hexdigest() != self.info.sha256):
            raise ContentDamagedError("The received bytes are not those of the image.")


class ContentStream(BaseContentStream):
    """The bytes of an image, or of a part of it; iterate over it once.

    After an interruption, it continues where it stopped. A whole image is verified with its SHA-256; if it does not
    match, the iteration raises an error at the end.

    Attributes:
        info: the image.
    """

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive.

        Raises:
            ContentDamagedError: the bytes are incomplete, or are not those of the image.
            PixyProxyClientError: the call failed.
        """
        while not self._is_complete:
            try:
                for message in self._messages:
                    yield self._take(message)
                break
            except grpc.RpcError as error:
                if not self._is_complete:
                    time.sleep(self._pause_after(error))
                    self._open()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Self:
        """Start the call, and wait for ``info``."""
        while True:
            try:
                self._ask()
                self._begin(next(self._messages, pb.GetImageContentResponse()))
            except grpc.RpcError as error:
                time.sleep(self._pause_after(error))
            else:
                return self
