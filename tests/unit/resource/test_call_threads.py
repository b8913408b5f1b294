"""Calls that wait for a thread, on a real server of gRPC's with a single one."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import grpc
import pytest

from pixyproxy.core.exceptions import CredentialsInvalidError
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller
from pixyproxy.resource.call_threads import CallThreads
from pixyproxy.resource.client_address import ClientAddresses
from pixyproxy.resource.connections import ConnectionLimiter, ConnectionLimits
from pixyproxy.resource.interceptors.authentication import AuthenticationInterceptor
from pixyproxy.resource.interceptors.bulkheads import BulkheadInterceptor
from pixyproxy.resource.interceptors.exceptions import ExceptionInterceptor
from pixyproxy.resource.interceptors.stall_timeout import RequestTimeoutInterceptor
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog
from pixyproxy.service.interfaces import UserServiceInterface
from tests.support.rpc import TIMEOUT, raw_unary, refusal_of
from tests.support.waiting import wait_until
from tests.unit.resource.fakes import GUID

_UNARY = "/pixyproxy.v1.ImageService/GetImage"
_NO_LIMIT = "/grpc.health.v1.Health/Check"
_PASSWORD = "right"
_USERS = {"alice": 1, "bob": 2}


class _Users:
    """The part of the user service that authenticates; it knows two users."""

    def authenticate_user(self, username: str, password: str, address: str) -> Caller:
        if password != _PASSWORD:
            raise CredentialsInvalidError("The username or the password is wrong.")
        user_id = _USERS[username]
        return Caller(user_id=user_id, guid=GUID, username=username, class_key=UserClass.USER)


class _Service(grpc.GenericRpcHandler):
    """Answers calls as long as the gate is open, and remembers them in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.begun.append(request.decode())
            self.gate.wait(TIMEOUT)
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


class _Site:
    """A server with one thread for unary calls.

    Attributes:
        service: what is called.
        waits: the seconds that each call has waited.
        unread: the reasons of calls that ended without a request.
        arrived: how many calls had to wait.
    """

    def __init__(self, stack: ExitStack, *, longest_wait: float, max_waiting: int) -> None:
        self.service = _Service()
        self.waits: list[float] = []
        self.unread: list[str] = []
        self.arrived = 0
        authentication = AuthenticationInterceptor(cast(UserServiceInterface, _Users()), ClientAddresses(()))

        def client_of(metadata: Any, peer: str) -> int | str:
            self.arrived += 1
            return authentication.client_of(metadata, peer)

        unary = CallThreads(1, client_of, self.waits.append, longest_wait=longest_wait, max_waiting=max_waiting)
        unread = Tally("Calls", self.unread.append)
        watchdog = Watchdog(TIMEOUT, unread, [unary])
        limiter = ConnectionLimiter(ConnectionLimits(10, 10), is_exempt=lambda host: False)
        server = grpc.server(
            ThreadPoolExecutor(1),
            interceptors=[
                RequestTimeoutInterceptor(watchdog, limiter, unread),
                ExceptionInterceptor(),
                BulkheadInterceptor({}, unary, ClientAddresses([])),
                authentication,
            ],
        )
        server.add_generic_rpc_handlers((self.service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        watchdog.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
        stack.callback(unary.shutdown)
        stack.callback(watchdog.close)
        stack.callback(lambda: server.stop(None).wait())
        stack.callback(self.channel.close)
        stack.callback(self.service.gate.set)

    def call(self, name: str, username: str = "", password: str = _PASSWORD, method: str = _UNARY) -> Any:
        """Begin a call, and return it when it runs or waits."""
        expected = self.arrived + 1
        metadata = [("authorization", "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode())]
        call = raw_unary(self.channel, method).future(  # type: ignore[attr-defined]
            name.encode(), metadata=metadata if username else (), timeout=TIMEOUT
        )
        if method == _UNARY:
            wait_until(lambda: name in self.service.begun or self.arrived == expected, TIMEOUT, "the call to arrive")
        return call

    def sign_in(self, *usernames: str) -> None:
        """Have users make a call each."""
        self.service.gate.set()
        for username in usernames:
            assert self.call(username, username).result()
            self.service.begun.clear()
        self.service.gate.clear()


@contextmanager
def serving(*, longest_wait: float = TIMEOUT, max_waiting: int = 100) -> Iterator[_Site]:
    with ExitStack() as stack:
        yield _Site(stack, longest_wait=longest_wait, max_waiting=max_waiting)


def test_calls_wait_in_order_and_are_counted() -> None:
    names = [str(number) for number in range(20)]
    with serving() as site:
        calls = [site.call(name) for name in names]
        site.service.gate.set()
        assert [call.result().decode() for call in calls] == names
        assert site.service.begun == names
        assert len(site.waits) == len(names) - 1
        assert min(site.waits) > 0


def test_a_crowd_keeps_no_other_user_and_no_other_address_waiting() -> None:
    with serving() as site:
        site.sign_in("alice", "bob")
        crowd = [site.call(f"anonymous {number}") for number in range(5)]
        # It takes part with one share, whatever names it makes up.
        crowd += [site.call(f"made up {number}", f"name{number}", "wrong") for number in range(5)]
        crowd += [site.call(f"guessed {number}", "alice", f"wrong{number}") for number in range(5)]
        users = [site.call(f"{name} {number}", name) for number in range(2) for name in ("alice", "bob")]
        site.service.gate.set()
        for call in users:
            assert call.result()
        for call in crowd:
            assert call.exception() is None or call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert site.service.begun[:7] == [
            "anonymous 0",  # It had the thread.
            "anonymous 1",
            "alice 0",
            "bob 0",
            "anonymous 2",
            "alice 1",
            "bob 1",
        ]


def test_a_call_that_waits_for_too_long_is_refused_and_does_not_run() -> None:
    with serving(longest_wait=0.1) as site:
        runs = site.call("runs")
        refused = refusal_of(site.call("waits").exception())
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert refused.retry_after
        assert site.unread == ["refused"]
        assert site.waits
        assert min(site.waits) >= 0.1
        # Calls of other kinds run meanwhile.
        other = site.call("other", method=_NO_LIMIT)
        wait_until(lambda: site.service.begun == ["runs", "other"], TIMEOUT, "the other call to begin")
        site.service.gate.set()
        assert runs.result()
        assert other.result()
        assert site.call("later").result()
        assert site.service.begun == ["runs", "other", "later"]


def test_a_call_whose_caller_leaves_while_it_waits_does_not_run() -> None:
    with serving() as site:
        runs = site.call("runs")
        leaves, stays = site.call("leaves"), site.call("stays")
        leaves.cancel()
        # The server has read the cancellation when it answers a call that was sent after it.
        following = site.call("next", method=_NO_LIMIT)
        wait_until(lambda: "next" in site.service.begun, TIMEOUT, "the cancellation to arrive")
        site.service.gate.set()
        assert runs.result()
        assert stays.result()
        assert following.result()
        wait_until(lambda: site.unread == ["cancelled"], TIMEOUT, "the call to end")
        assert "leaves" not in site.service.begun


def test_of_too_many_the_latest_of_the_client_with_the_most_is_refused() -> None:
    with serving(max_waiting=3) as site:
        site.sign_in("alice")
        runs = site.call("runs")
        crowd = [site.call(f"anonymous {number}") for number in range(3)]
        user = site.call("alice 0", "alice")
        refused = refusal_of(crowd.pop().exception())
        assert refused.reason == "TOO_BUSY"
        refused = refusal_of(site.call("one more").exception())
        assert refused.reason == "TOO_BUSY"
        site.service.gate.set()
        for call in (runs, user, *crowd):
            assert call.result()


def test_a_system_without_threads_fails_no_submission(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    done = threading.Semaphore(0)
    with CallThreads(4, lambda metadata, peer: peer) as threads:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            threads.submit(done.release)
        assert not done.acquire(blocking=False)
        # It also runs what waits.
        threads.submit(done.release)
        assert all(done.acquire(timeout=TIMEOUT) for _ in range(4))
    assert caplog.text.count("can't start new thread") == 3
