"""HTTP/2 as somebody speaks it who need not keep to its rules: frames of any content, and a reader of the answers."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import grpc
import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

_HEAD = struct.Struct(">HBBBI")
_LAST_PING = b"the last"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Headers = list[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Make a frame; its length may be said to be another than it is."""
    said = len(payload) if length is None else length
    return _HEAD.pack(said >> 8 & 0xFFFF, said & 0xFF, kind, flags, stream & 0xFFFF_FFFF) + payload


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """Make a gRPC message; its length may be said to be another than it is."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def header_block(headers: Headers) -> bytes:
    """Encode headers without leaning on what was sent before, so that a block stands for itself."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(headers, huffman=False)


@dataclass(frozen=True)
class Trailers:
    """How a call ended; gRPC's core gives no details."""

    code: grpc.StatusCode | None
    message: str
    details: bytes


@dataclass
class Answers:
    """What came back on a connection."""

    ended: dict[int, Trailers] = field(default_factory=dict)
    resets: list[int] = field(default_factory=list)
    goaways: list[int] = field(default_factory=list)
    http_statuses: list[str] = field(default_factory=list)
    has_pong: bool = False
    is_closed: bool = False


class Http2Connection:
    """A connection on which anything may be sent."""

    def __init__(self, address: str, timeout: float) -> None:
        """Connect; ``timeout`` is in seconds, for each step."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout)
        self._timeout = timeout
        self._unread = b""
        self._decoder = hpack.Decoder(max_header_list_size=2**24)
        self._block: tuple[int, bytes] = (0, b"")
        self.answers = Answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes, as far as the server takes them.

        Raises:
            TimeoutError: the server neither takes them nor closes the connection.
        """
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise
        except OSError:
            self.answers.is_closed = True

    def listen(self, streams: int, timeout: float) -> None:
        """Read until a ping is answered and so many calls have ended, the connection closes, or the timeout ends.

        Args:
            streams: how many calls should end.
            timeout: seconds.
        """
        self.send(frame(PING, 0, 0, _LAST_PING))
        ends_at = time.monotonic() + timeout
        while not self._is_over(streams) and time.monotonic() < ends_at:
            self._socket.settimeout(max(0.001, ends_at - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                self._read()
        self._socket.settimeout(self._timeout)

    def read(self) -> None:
        """Read what has come, and wait for nothing."""
        while not self.answers.is_closed and select.select([self._socket], [], [], 0)[0]:
            self._read()

    def finish(self) -> None:
        """Send no more, and wait for the server to close.

        Raises:
            TimeoutError: it does not.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        ends_at = time.monotonic() + self._timeout
        while not self.answers.is_closed:
            if time.monotonic() > ends_at:
                raise TimeoutError("the server goes on sending to nobody")
            self._read()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    # --- Reading -------------------------------------------------------------------------------------------------

    def _is_over(self, streams: int) -> bool:
        answers = self.answers
        ended = len(answers.ended) + len(answers.resets)
        return answers.is_closed or bool(answers.goaways) or (answers.has_pong and ended >= streams)

    def _read(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.answers.is_closed = True
        self._unread += data
        while len(self._unread) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._unread)
            end = _HEAD.size + (high << 8 | low)
            if len(self._unread) < end:
                return
            payload, self._unread = self._unread[_HEAD.size : end], self._unread[end:]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answers = self.answers
        if kind in (HEADERS, CONTINUATION):
            self._block = (stream, self._block[1] + payload)
            if flags & END_HEADERS:
                self._take_headers(*self._block)
                self._block = (0, b"")
        elif kind == RST_STREAM:
            # After the trailers this only says that the rest of the request is not wanted.
            if stream not in answers.ended:
                answers.resets.append(struct.unpack(">I", payload)[0])
        elif kind == GOAWAY:
            answers.goaways.append(struct.unpack_from(">I", payload, 4)[0])
        elif kind == PING and flags & ACK and payload == _LAST_PING:
            answers.has_pong = True
        elif kind in (PING, SETTINGS) and not flags & ACK:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))

    def _take_headers(self, stream: int, block: bytes) -> None:
        raw = {_bytes(name): _bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        headers = {name.decode(): value.decode(errors="replace") for name, value in raw.items()}
        status = headers.get(":status", "200")
        if status != "200":
            self.answers.http_statuses.append(status)
        if "grpc-status" in headers:
            code = headers["grpc-status"]
            self.answers.ended[stream] = Trailers(
                _CODES.get(int(code)) if code.isdigit() else None,
                unquote(headers.get("grpc-message", "")),
                _binary(raw.get(b"grpc-status-details-bin", b"")),
            )


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _binary(value: bytes) -> bytes:
    """Read a binary value: base64, or, for who said in the settings that this is understood, a null byte and itself."""
    return value[1:] if value.startswith(b"\x00") else base64.b64decode(value + b"=" * (-len(value) % 4))


def blocks(pieces: Iterable[bytes], stream: int, *, flags: int = 0) -> bytes:
    """Make HEADERS and as many CONTINUATION frames as there are further pieces, the last one with its end."""
    *rest, last = list(pieces)
    kinds = [HEADERS] + [CONTINUATION] * len(rest)
    framed = [
        frame(kind, flags if kind == HEADERS else 0, stream, piece) for kind, piece in zip(kinds, rest, strict=False)
    ]
    return b"".join(framed) + frame(kinds[-1], (flags if not rest else 0) | END_HEADERS, stream, last)
