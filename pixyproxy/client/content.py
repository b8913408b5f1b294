"""Streams of image bytes that resume after an interruption."""

from __future__ import annotations

import hashlib
from typing import Any, Generic, TypeVar

from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client.base import BaseClient
from pixyproxy.client.calls import Call
from pixyproxy.client.errors import ContentDamagedError
from pixyproxy.client.models import ContentInfo
from pixyproxy.client.retry import Attempts

AnyClient = TypeVar("AnyClient", bound=BaseClient[Any])


class BaseContentStream(Generic[AnyClient]):
    """The common parts of both streams.

    Attributes:
        info: the image.
    """

    info: ContentInfo

    def __init__(self, client: AnyClient, call: Call[ContentInfo], attempts: Attempts) -> None:
        """Start no call yet."""
        self._client = client
        self._call = call
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
        self._messages = self._client._invoke(self._call, request, self._attempts)

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
