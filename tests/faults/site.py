"""Where the servers of one scenario keep everything, and what their callers asked for and were told."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_status import rpc_status
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.image_client import SMALL
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import refusal_of
from tests.support.servers import (
    OBJECT_STORE_FOLDER,
    Login,
    RunningServer,
    environment,
    prepare_database,
    running_server,
)
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
STILL_UNDER_WAY = "PROVIDER_TIMEOUT"
OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
WAIT_TIMEOUT = 60.0
"""Seconds that anything may take that is waited for."""


@dataclass(frozen=True)
class Answer:
    """What a call came to.

    Attributes:
        code: the status code's name.
        reason: the reason in ErrorInfo; empty where all is well, and where the connection itself was lost.
        retry_after: the seconds in RetryInfo, or None.
        seconds: how long the call took.
        value: the response, None where there is none; of a stream, the list of messages that came before its end.
    """

    code: str
    reason: str = ""
    retry_after: float | None = None
    seconds: float = 0.0
    value: Any = None

    @property
    def is_ok(self) -> bool:
        """Whether the call was answered."""
        return self.code == "OK"

    @property
    def as_told(self) -> str:
        """Code and reason, for comparing and for people."""
        return f"{self.code} {self.reason}".strip()

    @property
    def data(self) -> bytes:
        """The bytes that came in a stream of content, also of one that was cut off."""
        return b"".join(message.data for message in self.value)


def answer_to(call: Callable[[], Any], *, of_stream: bool = False) -> Answer:
    """Make a call and record its result."""
    begin, messages = time.monotonic(), []
    try:
        value = call()
        if of_stream:
            for message in value:
                messages.append(message)  # noqa: PERF402  what came before an error counts
            value = messages
    except grpc.RpcError as error:
        return failed(error, time.monotonic() - begin, messages)
    return Answer("OK", seconds=time.monotonic() - begin, value=value)


def failed(error: Any, seconds: float, value: Any = None) -> Answer:
    """Read a failed call; one that never reached a server has no details."""
    if rpc_status.from_call(error) is None:
        return Answer(error.code().name, seconds=seconds, value=value)
    told = refusal_of(error)
    return Answer(told.code.name, told.reason, told.retry_after, seconds, value)


@dataclass(eq=False)
class Wish:
    """An image that somebody asks for, as often as need be, under one request id, or once without one.

    Attributes:
        prompt: nobody else's.
        request_id: nobody else's; empty for none.
        partial_images: how many partial images are wanted.
        inputs: what it is to be made from.
        mask: what marks the part of the first input to change, or None.
        image: the detail, once anybody was told that it is there.
        is_changing: whether an update or a deletion was asked for whose outcome was lost, so that either may be.
        is_deleted: whether somebody was told that it is deleted.
        tags: what tags it may have: the last that were confirmed, and those asked for since.
        updates: how many changes of it were confirmed, or fewer.
        told: every answer to a request for it.
    """

    prompt: str
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    partial_images: int = 0
    inputs: tuple[Wish, ...] = ()
    mask: Wish | None = None
    image: pb.ImageDetail | None = None
    may_be_deleted: bool = False
    is_deleted: bool = False
    tags: list[tuple[str, ...]] = field(default_factory=lambda: [()])
    updates: int = 0
    told: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.prompt} (told: {', '.join(self.told[-6:]) or 'nothing'})"


@dataclass
class Site:
    """One database and one image folder, and whoever asks for images there.

    Attributes:
        folder: for everything.
        settings: of all its servers.
        stand_in: the provider.
        lease: seconds that its servers' leases last; None for the product's own.
    """

    folder: Path
    settings: dict[str, str]
    stand_in: RunningStandIn
    lease: float | None = None
    wishes: list[Wish] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Make the tables and the one who asks."""
        self.folder.mkdir(parents=True)
        self.login: Login = prepare_database(environment(self.folder, self.settings))

    @property
    def store(self) -> Path:
        """The image folder, or where an object store keeps what is put into it."""
        env = environment(self.folder, self.settings)
        return Path(env.get(OBJECT_STORE_FOLDER) or env["PIXYPROXY_IMAGE_STORE"])

    def audit_logs(self) -> list[Path]:
        """The audit logs of all its servers so far."""
        return sorted(self.folder.glob("audit-*.jsonl"))

    # --- Its servers ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server(self, *, crash_at: str = "", pause_at: str = "", **settings: str) -> Iterator[RunningServer]:
        """Run a server; several may run at a time. One that still runs at the end must stop cleanly."""
        command = [sys.executable, "-m", "tests.faults.crashing_server"]
        command += ["--crash-at", crash_at] if crash_at else []
        command += ["--crash-at", pause_at, "--pause"] if pause_at else []
        command += ["--lease", str(self.lease)] if self.lease else []
        with self._lock:
            number = next(self._numbers)
        own = {"PYTHONPATH": str(ROOT), "PIXYPROXY_AUDIT_LOG": str(self.folder / f"audit-{number}.jsonl")}
        env = {**own, **self.settings, **settings}
        # Each in a folder of its own for what it writes; where they keep images and details is a setting.
        if "PIXYPROXY_DATABASE_URL" not in env:
            env["PIXYPROXY_DATABASE_URL"] = f"sqlite:///{self.folder / 'pixyproxy.db'}"
        is_made_to_fail = crash_at or pause_at or self.lease
        with running_server(
            self.folder / f"server-{number}",
            env,
            tracebacks=True,
            command=command if is_made_to_fail else (sys.executable, "-m", "pixyproxy", "serve"),
        ) as server:
            yield server

    # --- Those who ask -------------------------------------------------------------------------------------------

    def wish(
        self,
        fault: str = "",
        *,
        has_request_id: bool = True,
        partial_images: int = 0,
        inputs: Sequence[Wish] = (),
        mask: Wish | None = None,
    ) -> Wish:
        """Wish for another image; ``fault`` is what the stand-in is to do wrong, as its control words say."""
        word = f" [[fault:{fault}]]" if fault else ""
        prompt = f"{self.folder.name} {uuid.uuid4().hex[:12]}{word}"
        wish = Wish(prompt, partial_images=partial_images, inputs=tuple(inputs), mask=mask)
        if not has_request_id:
            wish.request_id = ""
        with self._lock:
            self.wishes.append(wish)
        return wish

    def create(self, server: RunningServer, wish: Wish, timeout: float = WAIT_TIMEOUT) -> Answer:
        """Ask for an image."""
        answer = answer_to(
            lambda: server.images.CreateImage(request_for(wish), metadata=self.login.metadata, timeout=timeout)
        )
        self.record(wish, answer)
        return answer

    def begin(self, server: RunningServer, wish: Wish, timeout: float | None = WAIT_TIMEOUT) -> Any:
        """Ask for an image without waiting; ``end`` waits."""
        return server.images.CreateImage.future(request_for(wish), metadata=self.login.metadata, timeout=timeout)

    def end(self, wish: Wish, future: Any) -> Answer:
        """Wait for what ``begin`` has begun."""
        answer = answer_to(future.result)
        self.record(wish, answer)
        return answer

    def record(self, wish: Wish, answer: Answer) -> None:
        """Record what a caller was told about an image."""
        with self._lock:
            wish.told.append(answer.as_told)
            if answer.is_ok and wish.image is None:
                wish.image = answer.value.image

    def get(self, server: RunningServer, guid: str, timeout: float = WAIT_TIMEOUT) -> Answer:
        """Get a detail."""
        return answer_to(
            lambda: server.images.GetImage(pb.GetImageRequest(guid=guid), metadata=self.login.metadata, timeout=timeout)
        )

    def find(self, server: RunningServer, wish: Wish) -> bool:
        """Find the one image of a wish by its prompt; return whether there is one."""
        request = pb.ListImagesRequest(prompt=wish.prompt.split()[1])
        page = answer_to(lambda: server.images.ListImages(request, metadata=self.login.metadata, timeout=WAIT_TIMEOUT))
        if not page.is_ok or len(page.value.images) != 1:
            return False
        wish.image = page.value.images[0]
        return True

    def content(
        self,
        server: RunningServer,
        guid: str,
        timeout: float = WAIT_TIMEOUT,
        rendition: pb.Rendition = pb.RENDITION_UNSPECIFIED,
    ) -> Answer:
        """Read the bytes; the value is the list of messages, also of a stream that was cut off."""
        request = pb.GetImageContentRequest(guid=guid, rendition=rendition)
        return answer_to(
            lambda: server.images.GetImageContent(request, metadata=self.login.metadata, timeout=timeout),
            of_stream=True,
        )

    def update(self, server: RunningServer, wish: Wish, tags: Sequence[str], timeout: float = WAIT_TIMEOUT) -> Answer:
        """Give an image other tags."""
        assert wish.image is not None
        request = pb.UpdateImageRequest(guid=wish.image.guid, tags=tags, update_mask=FieldMask(paths=["tags"]))
        wish.tags.append(tuple(tags))
        answer = answer_to(lambda: server.images.UpdateImage(request, metadata=self.login.metadata, timeout=timeout))
        if answer.is_ok:
            wish.tags = [tuple(tags)]
            wish.updates += 1
        return answer

    def delete(self, server: RunningServer, wish: Wish, timeout: float = WAIT_TIMEOUT) -> Answer:
        """Delete an image."""
        assert wish.image is not None
        request = pb.DeleteImageRequest(guid=wish.image.guid)
        wish.may_be_deleted = True
        answer = answer_to(lambda: server.images.DeleteImage(request, metadata=self.login.metadata, timeout=timeout))
        wish.is_deleted = wish.is_deleted or answer.is_ok or answer.reason == "IMAGE_NOT_FOUND"
        return answer


def wait_until_submitted(site: Site, wish: Wish) -> None:
    """Wait until the provider has a request, which takes its time to answer."""
    wait_until(lambda: site.stand_in.count(wish.prompt), WAIT_TIMEOUT, "the request to be submitted")


def request_for(wish: Wish) -> pb.CreateImageRequest:
    """The request for an image, the same each time."""
    options = pb.GenerationOptions(size=SMALL.size, partial_images=wish.partial_images)
    return pb.CreateImageRequest(
        prompt=wish.prompt,
        request_id=wish.request_id,
        options=options,
        inputs=[_input_of(source) for source in wish.inputs],
        mask=_input_of(wish.mask) if wish.mask else None,
    )


def _input_of(source: Wish) -> pb.ImageInput:
    assert source.image is not None
    return pb.ImageInput(guid=source.image.guid)


@dataclass(frozen=True)
class Bench:
    """Where scenarios are run.

    Attributes:
        folder: for everything.
        stand_in: the provider.
        lease: seconds that leases last; None for the product's own.
        object_store: where images are kept; None for a folder.
    """

    folder: Path
    stand_in: RunningStandIn
    lease: float | None = None
    object_store: RunningObjectStore | None = None

    def site(self, database_url: str | None = None, **settings: str) -> Site:
        """A new site; without the URL of a database it has one in a file."""
        own = {"OPENAI_API_KEY": self.stand_in.api_key, "OPENAI_BASE_URL": self.stand_in.base_url}
        database = {"PIXYPROXY_DATABASE_URL": database_url} if database_url else {}
        folder = self.folder / f"site-{uuid.uuid4().hex[:8]}"
        if not database:
            database = {"PIXYPROXY_DATABASE_URL": f"sqlite:///{folder / 'pixyproxy.db'}"}
        store = {"PIXYPROXY_IMAGE_STORE": str(folder / "images")}
        if self.object_store is not None:
            assert self.object_store.folder is not None
            store = {
                **self.object_store.env,
                "PIXYPROXY_IMAGE_STORE": f"{self.object_store.url}/{folder.name}",
                OBJECT_STORE_FOLDER: str(self.object_store.folder / folder.name),
            }
        return Site(folder, {**own, **store, **database, **settings}, self.stand_in, self.lease)
