"""The image service as gRPC methods: map in, call, map out."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from pixyproxy.core.request_context import caller
from pixyproxy.resource import mapping
from pixyproxy.resource.call_scope import call_scope_of
from pixyproxy.service.interfaces import ImageServiceInterface


class ImageServicer(pb_grpc.ImageServiceServicer):
    """Serves images; the proto file documents the methods. Errors are left to the exception interceptor."""

    def __init__(self, images: ImageServiceInterface) -> None:
        self._images = images

    def CreateImage(  # noqa: D102
        self, request: pb.CreateImageRequest, context: grpc.ServicerContext
    ) -> pb.CreateImageResponse:
        creation = mapping.to_image_creation(request)
        image = self._images.create_image(creation, caller.get(), call_scope_of(context))
        return pb.CreateImageResponse(image=mapping.from_image(image))

    def ImportImage(  # noqa: D102
        self, request_iterator: Iterator[pb.ImportImageRequest], context: grpc.ServicerContext
    ) -> pb.ImportImageResponse:
        asked, data = mapping.to_image_import(request_iterator)
        image = self._images.import_image(asked, data, caller.get())
        return pb.ImportImageResponse(image=mapping.from_image(image))

    def GetImage(self, request: pb.GetImageRequest, context: grpc.ServicerContext) -> pb.GetImageResponse:  # noqa: D102
        image = self._images.get_image_by_guid(request.guid, caller.get())
        return pb.GetImageResponse(image=mapping.from_image(image))

    def ListImages(self, request: pb.ListImagesRequest, context: grpc.ServicerContext) -> pb.ListImagesResponse:  # noqa: D102
        page = self._images.get_all_images(mapping.to_image_page_request(request), caller.get())
        return mapping.from_image_page(page)

    def GetImageContent(  # noqa: D102
        self, request: pb.GetImageContentRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetImageContentResponse | bytes]:
        wanted = mapping.to_content_request(request)
        with self._images.get_image_file(wanted, caller.get(), call_scope_of(context)) as content:
            yield from mapping.from_content(content)

    def BatchGetThumbnails(  # noqa: D102
        self, request: pb.BatchGetThumbnailsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetThumbnailsResponse:
        wanted = mapping.to_thumbnails_request(request)
        return mapping.from_thumbnails(self._images.get_thumbnails(wanted, caller.get(), call_scope_of(context)))

    def UpdateImage(self, request: pb.UpdateImageRequest, context: grpc.ServicerContext) -> pb.UpdateImageResponse:  # noqa: D102
        image = self._images.update_image(mapping.to_image_changes(request), caller.get())
        return pb.UpdateImageResponse(image=mapping.from_image(image))

    def DeleteImage(self, request: pb.DeleteImageRequest, context: grpc.ServicerContext) -> pb.DeleteImageResponse:  # noqa: D102
        self._images.delete_image(request.guid, caller.get())
        return pb.DeleteImageResponse()
