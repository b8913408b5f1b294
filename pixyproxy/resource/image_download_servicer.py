"""The download service as a gRPC method: map in, call, map out."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.api.httpbody_pb2 import HttpBody
from pixyproxy_pb.v1 import image_download_service_pb2 as pb
from pixyproxy_pb.v1 import image_download_service_pb2_grpc as pb_grpc

from pixyproxy.core.exceptions import OffsetOutOfRangeError
from pixyproxy.core.request_context import call_id, caller
from pixyproxy.resource import mapping
from pixyproxy.resource.call_scope import call_scope_of
from pixyproxy.resource.interceptors.request_log import send_call_id
from pixyproxy.service.interfaces import ImageServiceInterface


class ImageDownloadServicer(pb_grpc.ImageDownloadServiceServicer):
    """Serves HTTP bodies; the proto file documents the method. Errors are left to the exception interceptor."""

    def __init__(self, images: ImageServiceInterface) -> None:
        self._images = images

    def DownloadImage(  # noqa: D102
        self, request: pb.DownloadImageRequest, context: grpc.ServicerContext
    ) -> Iterator[HttpBody | bytes]:
        wanted = mapping.to_content_request(request)
        try:
            with self._images.get_image_file(wanted, caller.get(), call_scope_of(context)) as content:
                messages = mapping.from_download(content)
                # Read before the headers are sent: the first chunk of a small image that is damaged fails.
                first = next(messages)
                send_call_id(context, call_id.get(), *mapping.from_content_to_headers(content, wanted))
                yield first
                yield from messages
        except OffsetOutOfRangeError as error:
            send_call_id(context, call_id.get(), *mapping.from_offset_error_to_headers(error))
            raise
