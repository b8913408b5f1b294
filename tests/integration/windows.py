"""Readers that take no more than they read."""

from __future__ import annotations

from typing import Any

from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.rpc import TIMEOUT
from tests.support.servers import Login

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024))
"""Options of a client; by default one takes megabytes in advance."""


def begin_to_read(stub: Any, guid: str, login: Login) -> Any:
    """Open a stream, take its first message, and return the call."""
    call = stub.GetImageContent(pb.GetImageContentRequest(guid=guid), metadata=login.metadata, timeout=TIMEOUT)
    assert next(call).info.guid == guid
    return call
