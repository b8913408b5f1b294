"""Fuzzing at the level of bytes: requests that are nearly messages, to methods that there are and to others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from tests.fuzz.answers import CoreStatus, read_refusal
from tests.fuzz.cases import Case, Checker
from tests.fuzz.mutations import MESSAGE_MUTATIONS, mutated
from tests.fuzz.world import NOBODY, PICTURE, World

_TIMEOUT = 30.0
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_PATHS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    _REFLECTION,
    "/pixyproxy.v1.ImageService/",
    "/pixyproxy.v1.ImageService/getimage",
    "/pixyproxy.v2.ImageService/GetImage",
    "/pixyproxy.v1.ImageService/GetGeneration",
    "/pixyproxy.v1.GenerationService/",
    "/grpc.channelz.v1.Channelz/GetServers",
    "/a/b/c",
    "//",
)
# One in so many goes to a method that is not the image service's.
_OTHERS = 10
_MOST_ANSWERS = 100


def fuzz_requests(checker: Checker, number: int, inputs: int) -> int:
    """Send a batch of requests; the same number makes the same batch, as far as the server's guids allow.

    Returns:
        How many inputs were sent.

    Raises:
        AssertionError: an answer is not as it must be; its notes hold the request.
    """
    random = Random(number)
    for _ in range(inputs):
        if random.randrange(_OTHERS):
            request = random.choice(_requests(checker.world, random))
            case = Case.of(request, random.choice((*checker.world.people, NOBODY)))
            messages = [case.data, *case.more]
            at = random.randrange(len(messages))
            messages[at] = mutated(random, messages[at], MESSAGE_MUTATIONS)
            checker.check(replace(case, data=messages[0], more=tuple(messages[1:])))
        else:
            _check_other(checker, random)
    return inputs


def _requests(world: World, random: Random) -> list[Message | Sequence[Message]]:
    """A good request for each method, of one message or several."""
    guid, generation = random.choice(world.guids), random.choice(list(world.generations))
    return [
        pb.CreateImageRequest(
            prompt="a lighthouse",
            tags=["sea", "🌊"],
            visibility=pb.VISIBILITY_PUBLIC,
            filename="lighthouse.png",
            request_id=random.choice(world.guids),
            options=pb.GenerationOptions(model="m", size="64x64", quality="low", output_format="png"),
        ),
        pb.GetImageRequest(guid=guid),
        pb.ListImagesRequest(
            page_size=2,
            prompt="light",
            filename="png",
            author="ann",
            created_after=Timestamp(seconds=1_700_000_000, nanos=1000),
        ),
        pb.ListImagesRequest(page_size=3, page_token=world.tokens[-1].token if world.tokens else "", tags=["sea"]),
        pb.GetImageContentRequest(guid=guid, read_offset=5, read_limit=100, if_none_match="0" * 64),
        pb.GetImageContentRequest(guid=guid, read_limit=100, rendition=pb.RENDITION_256),
        pb.BatchGetThumbnailsRequest(guids=[guid, random.choice(world.guids)], rendition=pb.RENDITION_512),
        pb.UpdateImageRequest(
            guid=guid,
            filename="changed.png",
            tags=["changed"],
            visibility=pb.VISIBILITY_PRIVATE,
            update_mask=FieldMask(paths=["filename", "tags"]),
        ),
        pb.DeleteImageRequest(guid=guid),
        gpb.CreateGenerationRequest(
            request=pb.CreateImageRequest(
                prompt="a lighthouse", request_id=guid, options=pb.GenerationOptions(size="64x64", partial_images=2)
            )
        ),
        gpb.GetGenerationRequest(guid=generation),
        gpb.WatchGenerationRequest(request_id=random.choice(list(world.spent_ids.values()))),
        gpb.ListGenerationsRequest(
            page_size=2,
            states=["GENERATION_STATE_SUCCEEDED", "GENERATION_STATE_FAILED"],
            created_after=Timestamp(seconds=1_700_000_000),
        ),
        gpb.CancelGenerationRequest(guid=generation),
        upb.SummarizeUsageRequest(
            start=Timestamp(seconds=1_700_000_000),
            end=Timestamp(seconds=1_702_000_000),
            group_by=["USAGE_GROUPING_AUTHOR", "USAGE_GROUPING_DAY"],
            author="ann",
        ),
        upb.GetQuotaRequest(author="ann"),
        [
            pb.ImportImageRequest(
                info=pb.ImportImageInfo(prompt="a photo", tags=["sea"], filename="photo.png", request_id=guid)
            ),
            *(pb.ImportImageRequest(data=PICTURE[start : start + 100]) for start in range(0, len(PICTURE), 100)),
        ],
    ]


def _check_other(checker: Checker, random: Random) -> None:
    """Send to a method of the health or the reflection service, or to one that there is not."""
    path = random.choice(_PATHS)
    asked: Message = (
        reflection_pb2.ServerReflectionRequest(host="h", file_containing_symbol="pixyproxy.v1.ImageService")
        if path == _REFLECTION
        else health_pb2.HealthCheckRequest(service="pixyproxy.v1.ImageService")
    )
    messages = [
        mutated(random, asked.SerializeToString(), MESSAGE_MUTATIONS) for _ in range(random.choice((1, 1, 1, 0, 2, 5)))
    ]
    method: Callable[..., Any] = checker.world.server.channel.stream_stream(
        path, request_serializer=None, response_deserializer=None
    )
    try:
        for _ in itertools.islice(method(iter(messages), timeout=_TIMEOUT), _MOST_ANSWERS):
            pass
    except grpc.RpcError as error:
        try:
            refused = read_refusal(error)
        except AssertionError as unexpected:
            unexpected.add_note(f"{path}: {messages}")
            raise
        checker.statuses[f"core:{refused.code.name}" if isinstance(refused, CoreStatus) else refused.reason] += 1
    else:
        checker.statuses["OK"] += 1
