"""A real gRPC server that speaks the contract, refuses calls as it is told, and keeps what it was sent."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import generation_service_pb2_grpc, image_service_pb2_grpc, usage_service_pb2_grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

PICTURE = bytes(range(256)) * 1000
PARTIAL_IMAGES = (PICTURE[:1000], PICTURE[:100_000])
GUID = "123e4567-e89b-42d3-a456-426614174000"
_CHUNK = 64 * 1024
_DETAIL = pb.ImageDetail(guid=GUID)
_QUEUED = gpb.Generation(guid=GUID, state=gpb.GENERATION_STATE_QUEUED)
_SUBMITTED = gpb.Generation(guid=GUID, state=gpb.GENERATION_STATE_SUBMITTED, attempts=1)
_SUCCEEDED = gpb.Generation(guid=GUID, state=gpb.GENERATION_STATE_SUCCEEDED, attempts=1, image=_DETAIL)


@dataclass(frozen=True)
class Refusal:
    """How calls are refused.

    Attributes:
        code: the status.
        times: how many attempts of each method are refused before the others are answered.
        after_headers: whether the initial metadata goes out first, as PixyProxy's own does.
        retry_after: seconds for RetryInfo, or None for an error without it.
    """

    code: grpc.StatusCode
    times: int = 1
    after_headers: bool = False
    retry_after: float | None = None


@dataclass
class MisbehavingServer:
    """A running one: its address, and each attempt with the method's name and the request, in the order of arrival."""

    address: str
    attempts: list[tuple[str, Any]] = field(default_factory=list)

    def requests(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.attempts if name == method]

    @property
    def counts(self) -> dict[str, int]:
        """How often each method was called."""
        return dict(Counter(name for name, _ in self.attempts))


@contextmanager
def misbehaving(refusal: Refusal) -> Iterator[MisbehavingServer]:
    """Run a server on a free port that refuses calls in this way."""
    server = grpc.server(ThreadPoolExecutor(8))
    running = MisbehavingServer(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    servicer = _Servicer(refusal, running.attempts)
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.start()
    try:
        yield running
    finally:
        server.stop(0).wait()


class _Servicer(
    image_service_pb2_grpc.ImageServiceServicer,
    generation_service_pb2_grpc.GenerationServiceServicer,
    usage_service_pb2_grpc.UsageServiceServicer,
):
    def __init__(self, refusal: Refusal, attempts: list[tuple[str, Any]]) -> None:
        self._refusal = refusal
        self._attempts = attempts

    def CreateImage(self, request: Any, context: grpc.ServicerContext) -> pb.CreateImageResponse:
        self._take("CreateImage", request, context)
        return pb.CreateImageResponse(image=_DETAIL)

    def GetImage(self, request: Any, context: grpc.ServicerContext) -> pb.GetImageResponse:
        self._take("GetImage", request, context)
        return pb.GetImageResponse(image=_DETAIL)

    def ListImages(self, request: Any, context: grpc.ServicerContext) -> pb.ListImagesResponse:
        self._take("ListImages", request, context)
        return pb.ListImagesResponse()

    def GetImageContent(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.GetImageContentResponse]:
        is_first_part = request.read_offset == 0
        self._take("GetImageContent", request, context)
        yield pb.GetImageContentResponse(
            info=pb.ContentInfo(size_bytes=len(PICTURE), sha256=hashlib.sha256(PICTURE).hexdigest())
        )
        rest = PICTURE[request.read_offset :]
        if is_first_part and self._refusal.after_headers:
            yield pb.GetImageContentResponse(data=rest[:_CHUNK])
            context.abort(grpc.StatusCode.UNAVAILABLE, "in the middle")
        for start in range(0, len(rest), _CHUNK):
            yield pb.GetImageContentResponse(data=rest[start : start + _CHUNK])

    def UpdateImage(self, request: Any, context: grpc.ServicerContext) -> pb.UpdateImageResponse:
        self._take("UpdateImage", request, context)
        return pb.UpdateImageResponse(image=_DETAIL)

    def DeleteImage(self, request: Any, context: grpc.ServicerContext) -> pb.DeleteImageResponse:
        self._take("DeleteImage", request, context)
        return pb.DeleteImageResponse()

    def ImportImage(self, requests: Iterator[Any], context: grpc.ServicerContext) -> pb.ImportImageResponse:
        self._take("ImportImage", list(requests), context)
        return pb.ImportImageResponse(image=_DETAIL)

    def BatchGetThumbnails(self, request: Any, context: grpc.ServicerContext) -> pb.BatchGetThumbnailsResponse:
        self._take("BatchGetThumbnails", request, context)
        return pb.BatchGetThumbnailsResponse()

    def CreateGeneration(self, request: Any, context: grpc.ServicerContext) -> gpb.CreateGenerationResponse:
        self._take("CreateGeneration", request, context)
        return gpb.CreateGenerationResponse(generation=_QUEUED)

    def GetGeneration(self, request: Any, context: grpc.ServicerContext) -> gpb.GetGenerationResponse:
        self._take("GetGeneration", request, context)
        return gpb.GetGenerationResponse(generation=_QUEUED)

    def ListGenerations(self, request: Any, context: grpc.ServicerContext) -> gpb.ListGenerationsResponse:
        self._take("ListGenerations", request, context)
        return gpb.ListGenerationsResponse()

    def WatchGeneration(self, request: Any, context: grpc.ServicerContext) -> Iterator[gpb.WatchGenerationResponse]:
        number = self._take("WatchGeneration", request, context)
        breaks = self._refusal.after_headers and number == self._refusal.times + 1
        if breaks:
            yield gpb.WatchGenerationResponse(generation=_QUEUED)
        yield gpb.WatchGenerationResponse(generation=_SUBMITTED)
        for index, data in enumerate(PARTIAL_IMAGES):
            announced = gpb.PartialImage(index=index, content_type="image/png", size_bytes=len(data))
            yield gpb.WatchGenerationResponse(partial_image=announced)
            yield gpb.WatchGenerationResponse(data=data[:_CHUNK])
            if breaks and index == len(PARTIAL_IMAGES) - 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "in the middle")
            if data[_CHUNK:]:
                yield gpb.WatchGenerationResponse(data=data[_CHUNK:])
        yield gpb.WatchGenerationResponse(generation=_SUCCEEDED)

    def CancelGeneration(self, request: Any, context: grpc.ServicerContext) -> gpb.CancelGenerationResponse:
        self._take("CancelGeneration", request, context)
        return gpb.CancelGenerationResponse(generation=_QUEUED)

    def SummarizeUsage(self, request: Any, context: grpc.ServicerContext) -> upb.SummarizeUsageResponse:
        self._take("SummarizeUsage", request, context)
        return upb.SummarizeUsageResponse()

    def GetQuota(self, request: Any, context: grpc.ServicerContext) -> upb.GetQuotaResponse:
        self._take("GetQuota", request, context)
        return upb.GetQuotaResponse()

    def _take(self, method: str, request: Any, context: grpc.ServicerContext) -> int:
        """Refuse the attempt, or return its number."""
        self._attempts.append((method, request))
        number = sum(name == method for name, _ in self._attempts)
        if number > self._refusal.times:
            return number
        if self._refusal.after_headers:
            context.send_initial_metadata((("x-request-id", "one"),))
        context.abort_with_status(rpc_status.to_status(self._status()))
        raise AssertionError("not reached")

    def _status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self._refusal.code.value[0], message="not now")
        if self._refusal.retry_after is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMilliseconds(int(self._refusal.retry_after * 1000))
            packed = any_pb2.Any()
            packed.Pack(info)
            status.details.append(packed)
        return status
