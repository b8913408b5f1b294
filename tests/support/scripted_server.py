"""A real gRPC server whose answers the test gives, call by call."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

METHODS = {
    method.name: method
    for service in (
        pb.DESCRIPTOR.services_by_name["ImageService"],
        gpb.DESCRIPTOR.services_by_name["GenerationService"],
        upb.DESCRIPTOR.services_by_name["UsageService"],
    )
    for method in service.methods
}


class Rpc:
    """A call that a client has made.

    Attributes:
        request: what it sent; where that is a stream, an iterator of the messages.
        metadata: what it sent beside that.
    """

    def __init__(self, request: Any, context: grpc.ServicerContext) -> None:
        self.request = request
        self.metadata = dict(context.invocation_metadata())
        self._context = context
        self._steps: queue.Queue[Message | tuple[grpc.StatusCode, str, Any] | None] = queue.Queue()
        context.add_callback(lambda: self._steps.put(None))

    def send_initial_metadata(self, *metadata: tuple[str, str]) -> None:
        self._context.send_initial_metadata(metadata)

    def send(self, message: Message) -> None:
        self._steps.put(message)

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = "", trailing: Any = ()) -> None:
        self._steps.put((code, message, trailing))

    @property
    def is_active(self) -> bool:
        """Whether the client still waits."""
        return self._context.is_active()

    def run(self) -> Iterator[Message]:
        """Do what the test says, until the end of the call."""
        while (step := self._steps.get()) is not None:
            if isinstance(step, Message):
                yield step
                continue
            code, message, trailing = step
            self._context.set_trailing_metadata(trailing)
            if code is not grpc.StatusCode.OK:
                self._context.abort(code, message)
            return


class ScriptedServer(grpc.GenericRpcHandler):
    """The server.

    Attributes:
        address: where it is.
    """

    def __init__(self) -> None:
        self.address = ""
        # Not a defaultdict: of two threads that look at the same time, one would get a queue that is lost.
        self._calls: dict[str, queue.Queue[Rpc]] = {name: queue.Queue() for name in METHODS}

    def take(self, method: str, timeout: float) -> Rpc:
        """Wait for the next call of a method."""
        return self._calls[method].get(timeout=timeout)

    def has_more(self, method: str) -> bool:
        """Whether there is a further call that nobody has taken."""
        return not self._calls[method].empty()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Message]:
        name = details.method.rpartition("/")[2]

        def behave(request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
            rpc = Rpc(request, context)
            self._calls[name].put(rpc)
            return rpc.run()

        # For the network a call with one answer is a stream of one.
        takes_stream = METHODS[name].client_streaming
        handler = grpc.stream_stream_rpc_method_handler if takes_stream else grpc.unary_stream_rpc_method_handler
        return handler(
            behave,
            request_deserializer=GetMessageClass(METHODS[name].input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    with ThreadPoolExecutor(16) as pool:
        # A port of its own: other programs of the tests share theirs.
        server = grpc.server(pool, [scripted], options=[("grpc.so_reuseport", 0)])
        scripted.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield scripted
        finally:
            server.stop(None).wait()
