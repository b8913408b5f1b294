"""Connections to a server with several RPC workers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.rpc import TIMEOUT, request_id_of
from tests.support.servers import RunningServer, image_stub
from tests.support.waiting import wait_until


class Connections:
    """Several connections to RPC workers, which the system shares out as it likes."""

    def __init__(self, server: RunningServer, *options: tuple[str, Any]) -> None:
        self._server = server
        self._options = options
        self._open = ExitStack()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def another(self) -> tuple[int, Any]:
        """Connect, and return whom to and the image service there."""
        stub = image_stub(self._open.enter_context(self._server.new_channel(*self._options)))
        _, call = stub.ListImages.with_call(pb.ListImagesRequest(), timeout=TIMEOUT)
        return self._server.rpc_worker_of(request_id_of(call)), stub

    def one_to_each(self) -> dict[int, Any]:
        """Connect until there is a connection to each RPC worker, and return one of each."""
        found: dict[int, Any] = {}

        def is_complete() -> bool:
            worker, stub = self.another()
            found.setdefault(worker, stub)
            return len(found) == len(self._server.rpc_workers)

        wait_until(is_complete, TIMEOUT, "a connection to each RPC worker")
        return found
