"""What models become on the wire, where the servicer's tests do not show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.core.exceptions import InvalidFieldError
from pixyproxy.resource import mapping
from pixyproxy.resource.mapping import from_content
from pixyproxy.service.content import CHUNK_SIZE, ImageContent
from tests.support.stored_images import file_of
from tests.unit.resource.fakes import FakeReader, make_image


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, CHUNK_SIZE - 1, CHUNK_SIZE])
def test_data_is_the_message_that_protobuf_would_make_of_it(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    content = ImageContent(file_of(make_image(size_bytes=size + 1)), FakeReader(data), count=size)
    _, message = from_content(content)
    assert message == pb.GetImageContentResponse(data=data).SerializeToString()


_NO_TIMES = dict.fromkeys(("created_after", "created_before"), Timestamp(seconds=2**62))
_NO_PERIOD = dict.fromkeys(("start", "end"), Timestamp(seconds=2**62))
_MANY = 100_000


@pytest.mark.parametrize(
    ("read", "kind", "values", "fields"),
    [
        (
            mapping.to_image_page_request,
            pb.ListImagesRequest,
            {"page_size": -1, "prompt": "-", "guid": "x", "author": "a:b", **_NO_TIMES},
            ["author", "created_after", "created_before", "guid", "page_size", "prompt"],
        ),
        (
            mapping.to_generation_page_request,
            gpb.ListGenerationsRequest,
            {"page_size": -1, "states": [1, 0, 2, 99], "author": "a:b", **_NO_TIMES},
            ["author", "created_after", "created_before", "page_size", "states[1]", "states[3]"],
        ),
        (
            mapping.to_generation_page_request,
            gpb.ListGenerationsRequest,
            {"states": [0] * _MANY},
            [f"states[{place}]" for place in range(8)],
        ),
        (
            mapping.to_usage_request,
            upb.SummarizeUsageRequest,
            {"group_by": [1, 0, 1, 99], "author": "a:b", **_NO_PERIOD},
            ["author", "end", "group_by[1]", "group_by[2]", "group_by[3]", "start"],
        ),
        (
            mapping.to_usage_request,
            upb.SummarizeUsageRequest,
            {"group_by": [1] * _MANY},
            [f"group_by[{place}]" for place in range(1, 8)],
        ),
        (
            mapping.to_image_changes,
            pb.UpdateImageRequest,
            {"guid": "x", "filename": "/", "update_mask": FieldMask(paths=["filename", "prompt"])},
            ["filename", "guid", "update_mask"],
        ),
        (mapping.to_image_changes, pb.UpdateImageRequest, {"guid": "x"}, ["guid", "update_mask"]),
    ],
)
def test_all_that_is_wrong_with_a_request_is_said_at_once(
    read: Callable[[Any], object], kind: Callable[..., Any], values: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidFieldError) as error:
        read(kind(**values))

    assert sorted(violation.field for violation in error.value.violations) == fields
