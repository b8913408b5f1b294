"""A servicer that answers from constants, for baselines that leave out all work but gRPC's."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from benchmarks.dataset import CONTENT_BYTES, constant_detail, content

_CHUNK_BYTES = 64 * 1024


class ConstantServicer(pb_grpc.ImageServiceServicer):
    """Answers each GetImage with the same detail, and each GetImageContent with the same bytes from memory."""

    def __init__(self, *_: object) -> None:
        detail = constant_detail()
        self._answer = pb.GetImageResponse(image=detail)
        self._info = pb.ContentInfo(guid=detail.guid, size_bytes=CONTENT_BYTES, sha256=detail.sha256)
        self._data = content()

    def GetImage(self, request: pb.GetImageRequest, context: grpc.ServicerContext) -> pb.GetImageResponse:
        return self._answer

    def GetImageContent(
        self, request: pb.GetImageContentRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetImageContentResponse]:
        yield pb.GetImageContentResponse(info=self._info)
        for start in range(0, CONTENT_BYTES, _CHUNK_BYTES):
            yield pb.GetImageContentResponse(data=self._data[start : start + _CHUNK_BYTES])
