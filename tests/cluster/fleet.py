"""Three replicas on one database and one image store, behind a balancer, and callers who keep them busy."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.faults.site import Answer, answer_to
from tests.support.haproxy import running_haproxy
from tests.support.image_client import SMALL
from tests.support.servers import Login, Metadata, RunningServer, image_stub, prepare_database, running_server
from tests.support.waiting import wait_until

SERVICE_CONFIG = (Path(__file__).parents[2] / "pixyproxy" / "client" / "service_config.json").read_text()
"""The documented retry policy."""

PATIENCE = 60.0
"""Seconds that anything may take that is waited for."""

_REPLICAS = 3
_WORKERS = "2"
_OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass
class Fleet:
    """Replicas behind a balancer.

    Attributes:
        balancer: the balancer's host:port.
        replicas: the running servers; one that was replaced is exchanged in its place.
    """

    balancer: str
    login: Login
    replicas: list[RunningServer]
    _folder: Path
    _settings: Mapping[str, str]
    _addresses: list[str]
    _stack: contextlib.ExitStack
    _starts: Iterator[int] = field(default_factory=itertools.count)

    def start(self, place: int) -> None:
        """Start a replica in a place, where the one before is gone."""
        settings = {**self._settings, "PIXYPROXY_LISTEN": self._addresses[place], "PIXYPROXY_WORKERS": _WORKERS}
        folder = self._folder / f"replica-{place}-{next(self._starts)}"
        server = self._stack.enter_context(running_server(folder, settings, tracebacks=True))
        self.replicas[place : place + 1] = [server]

    def channel(self) -> grpc.Channel:
        """A connection to the balancer that follows the documented retry policy."""
        return grpc.insecure_channel(self.balancer, options=_OPTIONS)

    def wait_until_balanced(self, count: int = _REPLICAS) -> None:
        """Wait until the balancer sends calls to so many replicas."""
        wait_until(lambda: len(self._seen()) >= count, PATIENCE, f"calls to reach {count} replicas")

    def _seen(self) -> set[str]:
        """Which replicas answer a handful of calls, by the hosts and threads that their request ids name."""
        before = [server.log.count("REQUEST END") for server in self.replicas]
        with self.channel() as channel:
            for _ in range(2 * _REPLICAS):
                image_stub(channel).ListImages(pb.ListImagesRequest(page_size=1), timeout=PATIENCE)
        after = [server.log.count("REQUEST END") for server in self.replicas]
        return {str(place) for place, (old, new) in enumerate(zip(before, after, strict=True)) if new > old}


@contextlib.contextmanager
def running_fleet(folder: Path, settings: Mapping[str, str]) -> Iterator[Fleet]:
    """Run three replicas behind HAProxy; ``settings`` name the database server, the image store and the provider."""
    with contextlib.ExitStack() as stack:
        balancer, *addresses = _free_addresses(1 + _REPLICAS)
        login = prepare_database(dict(settings))
        fleet = Fleet(balancer, login, [], folder, settings, addresses, stack)
        for place in range(_REPLICAS):
            fleet.start(place)
        stack.enter_context(running_haproxy(folder / "balancer", balancer, addresses))
        fleet.wait_until_balanced()
        yield fleet


def _free_addresses(count: int) -> list[str]:
    """Addresses below the ports that the system hands out by itself, so that they stay free over a restart."""
    found: list[str] = []
    while len(found) < count:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(f"127.0.0.1:{port}")
    return found


@dataclass
class Load:
    """Callers who make, read and change images until they are told to stop.

    Attributes:
        made: what each prompt's caller was told that there is.
        answers: how often each kind of call came to what.
    """

    fleet: Fleet
    made: dict[str, pb.ImageDetail] = field(default_factory=dict)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self, callers: int) -> Iterator[None]:
        """Keep so many callers at work, each on a connection of its own."""
        threads = [threading.Thread(target=self._call_on) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def wait_for(self, kind: str, count: int) -> None:
        """Wait for so many more calls of a kind to succeed."""
        wanted = self.answers[kind, "OK"] + count
        wait_until(lambda: self.answers[kind, "OK"] >= wanted, PATIENCE, f"{count} more calls of {kind}")

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """Everything but success."""
        return {key: count for key, count in self.answers.items() if key[1] != "OK"}

    def _call_on(self) -> None:
        with self.fleet.channel() as channel:
            stub, metadata = image_stub(channel), self.fleet.login.metadata
            while not self._stopping.is_set():
                prompt = f"a fleet {uuid.uuid4().hex}"
                request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)
                answer = self._make("CreateImage", stub.CreateImage, request, metadata)
                if answer.is_ok:
                    with self._lock:
                        self.made[prompt] = answer.value.image
                    self._use(stub, metadata, answer.value.image.guid)

    def _use(self, stub: Any, metadata: Metadata, guid: str) -> None:
        self._make("GetImage", stub.GetImage, pb.GetImageRequest(guid=guid), metadata)
        self._make("ListImages", stub.ListImages, pb.ListImagesRequest(page_size=5, prompt="fleet"), metadata)
        self._make("GetImageContent", stub.GetImageContent, pb.GetImageContentRequest(guid=guid), metadata)
        update = pb.UpdateImageRequest(guid=guid, tags=["used"], update_mask=FieldMask(paths=["tags"]))
        self._make("UpdateImage", stub.UpdateImage, update, metadata)

    def _make(self, kind: str, method: Callable[..., Any], request: Any, metadata: Metadata) -> Answer:
        answer = answer_to(
            lambda: method(request, metadata=metadata, timeout=PATIENCE), of_stream=kind == "GetImageContent"
        )
        with self._lock:
            self.answers[kind, answer.as_told] += 1
        return answer


def content_of(server: RunningServer, guid: str, metadata: Metadata) -> bytes:
    """All bytes of an image, as one replica serves them."""
    messages = server.images.GetImageContent(pb.GetImageContentRequest(guid=guid), metadata=metadata, timeout=PATIENCE)
    return b"".join(message.data for message in messages)


def seconds_of(work: Callable[[], object]) -> float:
    """How long some work takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
