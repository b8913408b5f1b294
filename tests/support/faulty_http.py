"""An HTTP server that passes requests on to another one, and does to some of them what goes wrong on networks."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TIMEOUT = 30.0


@dataclass(frozen=True)
class Answer:
    """An answer on its way back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


Fault = Callable[["_Handler", Callable[[], Answer]], None]
"""Answers a request, by asking the server behind or not."""


@dataclass(eq=False)
class FaultyHttp:
    """What a proxy is to do wrong, and what it was asked.

    Attributes:
        port: where it listens on 127.0.0.1.
        asked: method and path of all requests so far.
    """

    port: int
    asked: list[tuple[str, str]] = field(default_factory=list)
    _faults: list[tuple[str, str, int, Fault]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def will(self, fault: Fault, method: str, path: str = "", *, times: int = 1_000_000, after: int = 0) -> int:
        """Treat the next requests of a method, with this in their path, so; return how many there were before.

        Those among the first ``after`` requests of all are passed on.
        """
        with self._lock:
            self._faults += [(method, path, after, fault)] * min(times, 1000)
            return self.count(method, path)

    def recover(self) -> None:
        """Do nothing wrong any more."""
        with self._lock:
            self._faults.clear()

    def count(self, method: str, path: str = "") -> int:
        """How many such requests there were."""
        return sum(asked == method and path in at for asked, at in self.asked)

    def _fault_for(self, method: str, path: str) -> Fault:
        with self._lock:
            self.asked.append((method, path))
            for number, (of_method, in_path, after, fault) in enumerate(self._faults):
                if of_method == method and in_path in path and len(self.asked) > after:
                    del self._faults[number]
                    return fault
        return pass_on


# --- Faults ----------------------------------------------------------------------------------------------------------


def pass_on(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Nothing wrong."""
    handler.give(ask())


def refuse(status: int, code: str = "SomethingWrong") -> Fault:
    """Answer with an error in S3's form, without asking anybody."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
    return lambda handler, _: handler.give(Answer(status, [("Content-Type", "application/xml")], body))


def be_silent(handler: _Handler, _: Callable[[], Answer]) -> None:
    """Take the request and say nothing, until the caller has gone."""
    with contextlib.suppress(OSError):
        handler.connection.settimeout(_TIMEOUT)
        handler.connection.recv(1)
    handler.close_connection = True


def hang_up(handler: _Handler, _: Callable[[], Answer]) -> None:
    """Close the connection in place of an answer; the request is not passed on."""
    handler.close_connection = True


def lose_answer(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Carry the request out, and close the connection in place of the answer."""
    ask()
    handler.close_connection = True


def cut(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Close the connection after half of the body."""
    answer = ask()
    handler.give(answer, count=len(answer.body) // 2)
    handler.close_connection = True


def stall(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Say nothing more after half of the body."""
    answer = ask()
    handler.give(answer, count=len(answer.body) // 2)
    be_silent(handler, ask)


def flip(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Flip one bit of the body."""
    answer = ask()
    middle = len(answer.body) // 2
    changed = bytes([answer.body[middle] ^ 1])
    handler.give(Answer(answer.status, answer.headers, answer.body[:middle] + changed + answer.body[middle + 1 :]))


def shorten(handler: _Handler, ask: Callable[[], Answer]) -> None:
    """Give fewer bytes, and say that these are all."""
    answer = ask()
    handler.give(Answer(answer.status, answer.headers, answer.body[:-1]))


def pretend(handler: _Handler, _: Callable[[], Answer]) -> None:
    """Say that all is well, and do nothing."""
    handler.give(Answer(200, [("ETag", '"0123456789abcdef0123456789abcdef"')], b""))


# --- The proxy -------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def give(self, answer: Answer, count: int | None = None) -> None:
        """Send an answer, or only so many bytes of its body."""
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[:count])
        self.wfile.flush()

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.faulty._fault_for(self.command, self.path)
        fault(self, lambda: self._ask(body))

    def _ask(self, body: bytes) -> Answer:
        behind = http.client.HTTPConnection("127.0.0.1", self.server.target_port, timeout=_TIMEOUT)
        with contextlib.closing(behind):
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders(body)
            answer = behind.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    target_port = 0
    faulty: FaultyHttp

    def handle_error(self, *_: Any) -> None:
        """Callers who hang up are none."""


@contextlib.contextmanager
def faulty_http(port: int) -> Iterator[FaultyHttp]:
    """A proxy before a port of this machine, which ends with the context."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.target_port = port
    server.faulty = FaultyHttp(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.faulty
    finally:
        server.shutdown()
        server.server_close()
