"""What models become on the wire, where the servicer's tests do not show it."""

from __future__ import annotations

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

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
