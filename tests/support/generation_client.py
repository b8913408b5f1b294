"""The generation service as one caller sees it, without the ceremony of requests, metadata and time limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1.generation_service_pb2_grpc import GenerationServiceStub

from tests.support.image_client import without_placeholder
from tests.support.rpc import TIMEOUT, Refusal, refusal
from tests.support.servers import Login, RunningServer
from tests.support.waiting import wait_until

QUEUED, SUBMITTED = gpb.GENERATION_STATE_QUEUED, gpb.GENERATION_STATE_SUBMITTED
SUCCEEDED, FAILED = gpb.GENERATION_STATE_SUCCEEDED, gpb.GENERATION_STATE_FAILED
CANCELLED, OUTCOME_UNKNOWN = gpb.GENERATION_STATE_CANCELLED, gpb.GENERATION_STATE_OUTCOME_UNKNOWN


class GenerationClient:
    """Calls a server as one caller; what is refused raises grpc.RpcError.

    Attributes:
        server: the server.
        stub: the methods themselves.
        metadata: what every call sends along.
    """

    def __init__(self, server: RunningServer, login: Login | None = None) -> None:
        """Use the server's own channel."""
        self.server = server
        self.stub = generation_stub(server.channel)
        self.metadata = login.metadata if login else ()

    def start(self, prompt: str, *, partial_images: int = 0, **fields: Any) -> gpb.Generation:
        """Start a generation of a small image."""
        options = pb.GenerationOptions(size="64x64", partial_images=partial_images)
        request = pb.CreateImageRequest(prompt=prompt, **({"options": options} | fields))
        generation: gpb.Generation = self._call(
            "CreateGeneration", gpb.CreateGenerationRequest(request=request)
        ).generation
        return generation

    def get(self, guid: str = "", *, request_id: str = "") -> gpb.Generation:
        """Get a generation."""
        key = {"guid": guid} if guid else {"request_id": request_id}
        return settled(self._call("GetGeneration", gpb.GetGenerationRequest(**key)).generation)

    def page(self, **fields: Any) -> gpb.ListGenerationsResponse:
        """List a page."""
        page: gpb.ListGenerationsResponse = self._call("ListGenerations", gpb.ListGenerationsRequest(**fields))
        for generation in page.generations:
            settled(generation)
        return page

    def cancel(self, guid: str) -> gpb.Generation:
        """Cancel a generation."""
        generation: gpb.Generation = self._call("CancelGeneration", gpb.CancelGenerationRequest(guid=guid)).generation
        return generation

    def watch(self, guid: str) -> Watch:
        """Begin to watch a generation."""
        return Watch(
            self.stub.WatchGeneration(gpb.WatchGenerationRequest(guid=guid), metadata=self.metadata, timeout=TIMEOUT)
        )

    def wait_for(self, guid: str, state: int) -> gpb.Generation:
        """Wait until a generation is in a state, and return it."""

        def look() -> gpb.Generation | None:
            generation = self.get(guid)
            return generation if generation.state == state else None

        return wait_until(look, TIMEOUT, gpb.GenerationState.Name(state))

    def refused(self, method: str, request: Any) -> Refusal:
        """Make a call that must fail."""
        return refusal(getattr(self.stub, method), request, self.metadata)

    def _call(self, method: str, request: Any) -> Any:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=TIMEOUT)


class Watch:
    """A watch that is under way.

    Attributes:
        call: the call.
        seen: the states, and the indexes and bytes of the partial images, in their order.
        generations: the generations, in their order.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.seen: list[int | tuple[int, bytes]] = []
        self.generations: list[gpb.Generation] = []
        self._events = self._read()

    def next(self) -> int | tuple[int, bytes]:
        """Wait for the next event."""
        return next(self._events)

    def until(self, event: int | tuple[int, bytes]) -> None:
        """Wait for an event."""
        while self.next() != event:
            pass

    def to_the_end(self) -> list[int | tuple[int, bytes]]:
        """Wait for the end, and return all that was seen."""
        for _ in self._events:
            pass
        return self.seen

    def _read(self) -> Iterator[int | tuple[int, bytes]]:
        messages = iter(self.call)
        for message in messages:
            if message.HasField("generation"):
                self.generations.append(settled(message.generation))
                self.seen.append(message.generation.state)
            else:
                announced = message.partial_image
                data = bytearray()
                while len(data) < announced.size_bytes:
                    part = next(messages).data
                    assert 0 < len(part) <= 64 * 1024
                    data += part
                assert len(data) == announced.size_bytes
                assert announced.content_type == "image/png"
                self.seen.append((announced.index, bytes(data)))
            yield self.seen[-1]


def settled(generation: gpb.Generation) -> gpb.Generation:
    """A generation whose image is without its placeholder, which may come between two looks at it."""
    if generation.HasField("image"):
        without_placeholder(generation.image)
    return generation


def generation_stub(channel: Any) -> Any:
    """The generation service over a channel."""
    return GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
