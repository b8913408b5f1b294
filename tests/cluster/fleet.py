"""Three replicas on one database and one image store, behind a balancer, and callers who keep them busy."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from pixyproxy.client import ImageDetail, PixyProxyClient, PixyProxyClientError
from tests.support.addresses import free_addresses
from tests.support.openai_stand_in import RunningStandIn
from tests.support.servers import Login, RunningServer, prepare_database, running_server
from tests.support.threads import at_work
from tests.support.waiting import wait_until

WAIT_TIMEOUT = 60.0
"""Seconds that anything may take that is waited for."""

Balancer = Callable[[Path, str, Sequence[str]], contextlib.AbstractContextManager[None]]
"""Runs a balancer in a folder, on an address, in front of three replicas."""

_REPLICAS = 3
_WORKERS = "2"
_OPTIONS = (
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
        """A connection to the balancer."""
        return grpc.insecure_channel(self.balancer, options=_OPTIONS)

    def client(self, address: str | None = None) -> PixyProxyClient:
        """A caller, of the balancer by default, who goes by the documented rules for sending again."""
        return PixyProxyClient(
            address or self.balancer, username=self.login.username, password=self.login.password, timeout=WAIT_TIMEOUT
        )

    def wait_until_balanced(self) -> None:
        """Wait until the balancer sends calls to all replicas."""
        # Counted from here on, and not from call to call: a log is written some milliseconds late.
        before = [calls_of(server, "ListImages") for server in self.replicas]

        def all_were_called() -> bool:
            # Each worker of a replica may say once more that it has just failed to reach the database.
            with self.client() as client:
                for _ in range(2 * _REPLICAS):
                    client.list_page(page_size=1)
            return all(calls_of(server, "ListImages") > old for server, old in zip(self.replicas, before, strict=True))

        wait_until(all_were_called, WAIT_TIMEOUT, "calls to reach all replicas")


@contextlib.contextmanager
def running_fleet(folder: Path, settings: Mapping[str, str], run_balancer: Balancer) -> Iterator[Fleet]:
    """Run three replicas behind a balancer; ``settings`` name the database, the image store and the provider."""
    with contextlib.ExitStack() as stack:
        balancer, *addresses = free_addresses(1 + _REPLICAS)
        login = prepare_database(dict(settings))
        fleet = Fleet(balancer, login, [], folder, settings, addresses, stack)
        for place in range(_REPLICAS):
            fleet.start(place)
        stack.enter_context(run_balancer(folder / "balancer", balancer, addresses))
        fleet.wait_until_balanced()
        yield fleet


@dataclass
class Load:
    """Callers who make, read and change images until they are told to stop.

    Attributes:
        asked: the prompts of all calls.
        made: what each prompt's caller was told that there is.
        answers: how often each kind of call came to what.
    """

    fleet: Fleet
    asked: list[str] = field(default_factory=list)
    made: dict[str, ImageDetail] = field(default_factory=dict)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def running(self, callers: int) -> contextlib.AbstractContextManager[None]:
        """Keep so many callers at work, each on a connection of its own."""
        return at_work(self._call_on, callers, self._stopping)

    def wait_for(self, kind: str, count: int) -> None:
        """Wait for so many more calls of a kind to succeed."""
        wanted = self.answers[kind, "OK"] + count
        wait_until(lambda: self.answers[kind, "OK"] >= wanted, WAIT_TIMEOUT, f"{count} more calls of {kind}")

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """Everything but success."""
        return {key: count for key, count in self.answers.items() if key[1] != "OK"}

    def _call_on(self) -> None:
        with self.fleet.client() as client:
            while not self._stopping.is_set():
                prompt = f"a fleet {uuid.uuid4().hex}"
                self.asked.append(prompt)
                made: list[ImageDetail] = []
                self._note("create", lambda: made.append(client.create_image(prompt, size="64x64")))  # noqa: B023
                for image in made:
                    with self._lock:
                        self.made[prompt] = image
                    self._use(client, image.guid)

    def _use(self, client: PixyProxyClient, guid: str) -> None:
        self._note("get", lambda: client.get_image(guid))
        self._note("list", lambda: client.list_page(page_size=5, prompt="fleet"))
        self._note("content", lambda: _read(client, guid))
        self._note("update", lambda: client.update_image(guid, tags=["used"]))

    def _note(self, kind: str, call: Callable[[], object]) -> None:
        told = "OK"
        try:
            call()
        except PixyProxyClientError as error:
            told = f"{error.code} {error.reason}"
        with self._lock:
            self.answers[kind, told] += 1


def _read(client: PixyProxyClient, guid: str) -> None:
    """Read an image to its end; the client compares the hash."""
    with client.stream_content(guid) as stream:
        for _ in stream:
            pass


def calls_of(server: RunningServer, method: str) -> int:
    """How many calls of a method have ended on a replica, as its log says."""
    return sum(f"[{method}:" in line and "REQUEST END" in line for line in server.log_lines)


def content_of(fleet: Fleet, server: RunningServer, guid: str) -> bytes:
    """All bytes of an image, as one replica serves them."""
    with fleet.client(server.address) as client, client.stream_content(guid) as stream:
        return b"".join(stream)


def assert_all_there(fleet: Fleet, load: Load, stand_in: RunningStandIn) -> None:
    """Every image that a caller was told of is there, on every replica, and was asked of the provider once."""
    assert load.made
    for number, (prompt, image) in enumerate(load.made.items()):
        server = fleet.replicas[number % len(fleet.replicas)]
        data = content_of(fleet, server, image.guid)
        assert hashlib.sha256(data).hexdigest() == image.sha256
        assert stand_in.count(prompt) == 1
