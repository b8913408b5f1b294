"""The generation service as gRPC methods: map in, call, map out."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from pixyproxy_pb.v1 import generation_service_pb2 as pb
from pixyproxy_pb.v1 import generation_service_pb2_grpc as pb_grpc

from pixyproxy.core.request_context import caller
from pixyproxy.core.validation import fields_within
from pixyproxy.resource import mapping
from pixyproxy.resource.call_scope import call_scope_of
from pixyproxy.service.generations import GenerationService


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Serves generations; the proto file documents the methods. Errors are left to the exception interceptor."""

    def __init__(self, generations: GenerationService) -> None:
        self._generations = generations

    def CreateGeneration(  # noqa: D102
        self, request: pb.CreateGenerationRequest, context: grpc.ServicerContext
    ) -> pb.CreateGenerationResponse:
        with fields_within("request"):
            generation = self._generations.create_generation(mapping.to_image_creation(request.request), caller.get())
        return pb.CreateGenerationResponse(generation=mapping.from_generation(generation))

    def GetGeneration(  # noqa: D102
        self, request: pb.GetGenerationRequest, context: grpc.ServicerContext
    ) -> pb.GetGenerationResponse:
        generation = self._generations.get_generation(mapping.to_generation_key(request), caller.get())
        return pb.GetGenerationResponse(generation=mapping.from_generation(generation))

    def ListGenerations(  # noqa: D102
        self, request: pb.ListGenerationsRequest, context: grpc.ServicerContext
    ) -> pb.ListGenerationsResponse:
        page = self._generations.get_all_generations(mapping.to_generation_page_request(request), caller.get())
        return mapping.from_generation_page(page)

    def WatchGeneration(  # noqa: D102
        self, request: pb.WatchGenerationRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchGenerationResponse]:
        key, call = mapping.to_generation_key(request), call_scope_of(context)
        for event in self._generations.watch_generation(key, caller.get(), call):
            yield from mapping.from_generation_event(event)

    def CancelGeneration(  # noqa: D102
        self, request: pb.CancelGenerationRequest, context: grpc.ServicerContext
    ) -> pb.CancelGenerationResponse:
        generation = self._generations.cancel_generation(request.guid, caller.get())
        return pb.CancelGenerationResponse(generation=mapping.from_generation(generation))
