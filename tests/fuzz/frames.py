"""Fuzzing at the level of the connection: frames, headers and messages that no gRPC client would send."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.fuzz.answers import UnexpectedAnswerError, check_documented, core_status_of
from tests.fuzz.cases import Checker
from tests.fuzz.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Answers,
    Headers,
    Http2Connection,
    Trailers,
    blocks,
    frame,
    header_block,
    message,
)
from tests.fuzz.mutations import ANY_MUTATIONS, MESSAGE_MUTATIONS, mutated
from tests.fuzz.world import World

# A server that neither answers nor closes within this time hangs.
_TIMEOUT = 10.0
# How long to listen where nothing may come, because the rest of a frame or a message is waited for.
_PATIENCE = 0.05
_CONNECTIONS_AT_A_TIME = 24
# So much may be sent to us that no answer waits for our leave.
_WIDE_WINDOWS = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**30)) + frame(
    WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)
)
_SERVICE = b"/pixyproxy.v1.ImageService/"
# What would look like an error in the log.
_FORGED = b"\n2026-01-01 00:00:00,000 ERROR forged\xa0"
_ODD_PATHS = (
    b"",
    b"/",
    b"//",
    b"*",
    b"nonsense",
    b"http://x/y",
    b"/a\x00b",
    b"/\xff\xfe",
    b"/a b",
    b"/" + b"x" * 9000,
    b"/a" + _FORGED,
    b"/a\x1b[2J\r\x85",
    b"/../../etc/passwd",
    _SERVICE,
    _SERVICE + b"GetImage?x=y",
    _SERVICE + b"GetImage/",
    _SERVICE + "Gét".encode(),
)


@dataclass(frozen=True)
class Plan:
    """What to send on a connection.

    Attributes:
        data: the bytes after the preface.
        streams: how many calls should end by themselves.
        preface: the bytes before.
        is_held: whether to leave the connection open, unfinished, until the end of the batch.
    """

    data: bytes
    streams: int = 0
    preface: bytes = PREFACE + _WIDE_WINDOWS
    is_held: bool = False


class PlanBuilder:
    """Builds plans from random numbers."""

    def __init__(self, random: Random, world: World) -> None:
        self.random = random
        self.world = world

    def request(self) -> tuple[bytes, bytes]:
        """A path and a good request to it; none that makes or changes an image."""
        guid = self.world.pick_guid(self.random.randrange(100))
        path, request = self.random.choice(
            (
                (_SERVICE + b"GetImage", pb.GetImageRequest(guid=guid)),
                (_SERVICE + b"GetImageContent", pb.GetImageContentRequest(guid=guid)),
                (_SERVICE + b"ListImages", pb.ListImagesRequest(prompt="light", page_size=2)),
                (_SERVICE + b"CreateImage", pb.CreateImageRequest(prompt="nobody may")),
                (b"/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()),
            )
        )
        return path, request.SerializeToString()

    def headers(self, path: bytes = _SERVICE + b"GetImage", *further: tuple[bytes, bytes]) -> Headers:
        """The headers of a call, as a client sends them."""
        return [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *further,
        ]

    def call(self, headers: Headers | None = None, body: bytes | None = None, *, stream: int = 1) -> bytes:
        """A call on a stream: a good one, but for what is given."""
        path, request = self.request()
        sent = message(request) if body is None else body
        block = header_block(self.headers(path) if headers is None else headers)
        # Within the largest frame that a server takes unasked.
        pieces = [sent[at : at + 16_384] for at in range(0, len(sent), 16_384)] or [b""]
        return b"".join(
            (
                blocks([block[at : at + 16_384] for at in range(0, len(block), 16_384)], stream),
                *(frame(DATA, 0, stream, piece) for piece in pieces[:-1]),
                frame(DATA, END_STREAM, stream, pieces[-1]),
            )
        )

    def one_call(self, headers: Headers | None = None, body: bytes | None = None) -> Plan:
        """A plan of one such call."""
        return Plan(self.call(headers, body), streams=1)


Scenario = Callable[[PlanBuilder], Plan]


def _changed(headers: Headers, name: bytes, *values: bytes) -> Headers:
    """The headers with these values of a name in place of the usual one."""
    kept = [(other, value) for other, value in headers if other != name]
    changed = [(name, value) for value in values]
    # What begins with a colon must come first.
    return [*changed, *kept] if name.startswith(b":") else [*kept, *changed]


# --- Headers ---------------------------------------------------------------------------------------------------------


def good_calls(build: PlanBuilder) -> Plan:
    """Nothing wrong: several calls at once."""
    count = build.random.randint(1, 5)
    return Plan(b"".join(build.call(stream=2 * number + 1) for number in range(count)), streams=count)


_ODD_HEADERS: Sequence[tuple[bytes, Sequence[bytes]]] = (
    (
        b"grpc-timeout",
        (b"", b"0n", b"1n", b"1", b"S", b"-1S", b"1.5S", b"1X", b" 1S", b"99999999H", b"123456789S", b"\xff"),
    ),
    (
        b"content-type",
        (b"", b"application/json", b"application/grpc+json", b"application/grpc;x=y", b"text/html", b"\xff"),
    ),
    (b"te", (b"", b"gzip", b"trailers, deflate", b"\x00")),
    (b"grpc-encoding", (b"", b"gzip", b"deflate", b"br", b"identity", b"\xff", b"gzip, gzip")),
    (b"grpc-accept-encoding", (b"", b"gzip", b"x" * 2000, b",,,", b"\xff")),
    (b"grpc-status", (b"0", b"13", b"x")),
    (b"grpc-message", (b"%", b"%ff%00")),
    (b"grpc-status-details-bin", (b"!", b"AAAA")),
    (b"grpc-tags-bin", (b"!", b"AAAA")),
    (b"grpc-trace-bin", (b"", b"A" * 2000)),
    (b"grpc-previous-rpc-attempts", (b"-1", b"x", b"99999999999999999999")),
    (b"content-length", (b"0", b"-1", b"99999999999999999999")),
    (b"host", (b"", b"elsewhere", b"\xff")),
    (b"user-agent", (b"", b"\xff\x00", b"x" * 5000)),
    (b"x-request-id", (_FORGED, b"\xff")),
    (b"authorization", (b"", b"Basic", b"Basic \xff\xfe", b"Basic \x00", b"Basic " + b"A" * 6000, b"\xc3\xa9")),
    (b"x-bin", (b"!", b"A", b"====", b"\xff")),
)


def odd_header(build: PlanBuilder) -> Plan:
    """A header that gRPC gives a meaning, with a value that it gives none."""
    name, values = build.random.choice(_ODD_HEADERS)
    path, _ = build.request()
    chosen = build.random.choices(values, k=build.random.choice((1, 1, 1, 2)))
    return build.one_call(_changed(build.headers(path), name, *chosen))


_ODD_PSEUDO_HEADERS: Sequence[tuple[bytes, Sequence[bytes]]] = (
    (b":method", (b"GET", b"PUT", b"CONNECT", b"", b"post", b"\xff")),
    (b":scheme", (b"https", b"ftp", b"", b"\xff")),
    (b":authority", (b"", b"\xff", b"a" * 3000, b"user@host")),
    (b":status", (b"200",)),
    (b":protocol", (b"websocket",)),
    *((b":path", _ODD_PATHS),) * 3,
)


def odd_pseudo_header(build: PlanBuilder) -> Plan:
    """A pseudo header that is missing, there twice, in the wrong place, or something else."""
    name, values = build.random.choice(_ODD_PSEUDO_HEADERS)
    headers = build.headers()
    what = build.random.randrange(5)
    if what == 0:
        return build.one_call(_changed(headers, name))
    if what == 1:
        return build.one_call([*headers, (name, build.random.choice(values))])
    return build.one_call(_changed(headers, name, *build.random.choices(values, k=2 if what == 2 else 1)))


def odd_names(build: PlanBuilder) -> Plan:
    """Headers with names that there must not be, very many, or very large ones."""
    further = build.random.choice(
        (
            ((b"UPPER", b"x"),),
            ((b"", b"x"),),
            ((b"a b", b"x"),),
            ((b"a\x00", b"x"),),
            ((b"\xff", b"x"),),
            ((b"a" + _FORGED, b"x"),),
            ((b"\xff" * 5000, b"x"),),
            ((b":", b"x"),),
            ((b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c")),
            tuple((f"x-{number}".encode(), b"y") for number in range(build.random.choice((50, 150, 1000)))),
            tuple((b"x-same", b"y") for _ in range(300)),
            ((b"x-large", b"x" * build.random.choice((7000, 9000, 17_000, 70_000, 300_000))),),
            ((b"x" * build.random.choice((1000, 9000, 20_000)), b"y"),),
            tuple((b"cookie", b"a=b") for _ in range(100)),
        )
    )
    return build.one_call(build.headers(_SERVICE + b"GetImage", *further))


def broken_compression_of_headers(build: PlanBuilder) -> Plan:
    """A header block that HPACK does not allow."""
    good = header_block(build.headers())
    block = build.random.choice(
        (
            b"\x80",  # Index 0.
            b"\xff\xff\xff\xff\xff\x0f",  # An index beyond all tables.
            b"\xff" * 30,
            b"\x3f\xe1\xff\xff\xff\x0f" + good,  # A table of 4 GiB.
            b"\x3f\xe1\x1f" * 5 + good,
            good + b"\x20",
            b"\x00\x7f\xff\xff\xff\x0f",  # A name of 256 MiB.
            b"\x00\x83\xff\xff\xff\x01a",  # Not Huffman's.
            good[:-1],
            b"",
            build.random.randbytes(50),
            # Each byte names a large header of the table again.
            good + b"\x40\x01x\x7f\x81\x1e" + b"y" * 4000 + b"\xbe" * 2000,
        )
    )
    ending = frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
    return Plan(ending + build.call(stream=3), streams=2)


def continuation_flood(build: PlanBuilder) -> Plan:
    """One header block in very many pieces, empty ones or not, with an end or without one."""
    block = header_block(build.headers())
    count = build.random.choice((1, 10, 100, 1000, 2000))
    pieces = (
        [block[at : at + 1] for at in range(len(block))] if build.random.random() < 0.3 else [block] + [b""] * count
    )
    data = blocks(pieces, 1)
    if build.random.random() < 0.4:
        return Plan(
            data[:-9]
            + frame(CONTINUATION, 0, 1, header_block([(b"x-more", b"y" * 1000)])) * build.random.choice((1, 20, 500))
        )
    return Plan(data + frame(DATA, END_STREAM, 1, message(b"")), streams=1)


# --- Messages --------------------------------------------------------------------------------------------------------


def lying_prefix(build: PlanBuilder) -> Plan:
    """Messages that are longer or shorter than they say, several, none, or not even a whole prefix."""
    path, request = build.request()
    body = build.random.choice(
        (
            message(request, length=len(request) + build.random.choice((1, 5, 1000))),
            message(request, length=max(0, len(request) - build.random.choice((1, 5)))),
            message(request, length=2**32 - 1),
            message(request, length=2**31),
            message(request, length=4 * 1024 * 1024 + 1),
            message(request, flag=build.random.randrange(2, 256)),
            message(request) * 2,
            message(request) + b"\x00",
            message(b"") * 1000,
            b"\x00\x00\x00",
            b"",
            build.random.randbytes(40),
        )
    )
    headers = build.headers(path)
    if build.random.random() < 0.3:
        # Without an end, what is missing is waited for.
        return Plan(frame(HEADERS, END_HEADERS, 1, header_block(headers)) + frame(DATA, 0, 1, body))
    return build.one_call(headers, body)


@cache
def _bomb(megabytes: int) -> bytes:
    return gzip.compress(bytes(megabytes * 1024 * 1024), mtime=0)


def odd_compression(build: PlanBuilder) -> Plan:
    """Messages that are compressed, or say so: right, wrong, unknown, and such as unpack to megabytes."""
    path, request = build.request()
    megabytes = build.random.choice((1, 5, 16))
    packed = build.random.choice(
        (
            gzip.compress(request, mtime=0),
            zlib.compress(request),
            gzip.compress(request, mtime=0)[:-4],
            _bomb(megabytes),
            zlib.compress(bytes(100_000)),
            gzip.compress(_bomb(megabytes), mtime=0),
            build.random.randbytes(100),
            request,
            b"",
        )
    )
    encodings = (b"gzip", b"gzip", b"deflate", b"identity", b"snappy", b"br", b"")
    headers = build.headers(path, (b"grpc-encoding", build.random.choice(encodings)))
    if build.random.random() < 0.2:
        headers = build.headers(path)
    return build.one_call(headers, message(packed, flag=build.random.choice((1, 1, 1, 0))))


def mutated_message(build: PlanBuilder) -> Plan:
    """A request that is nearly a message."""
    path, request = build.request()
    return build.one_call(build.headers(path), message(mutated(build.random, request, MESSAGE_MUTATIONS)))


# --- Frames ----------------------------------------------------------------------------------------------------------


def odd_frames(build: PlanBuilder) -> Plan:
    """Frames of the wrong length, with wrong flags, on wrong streams, or at the wrong time."""
    block = header_block(build.headers())
    stream = build.random.choice((0, 1, 2, 3, 2**31 - 1, 2**32 - 1))
    random = build.random
    odd = random.choice(
        (
            frame(random.randrange(256), random.randrange(256), stream, random.randbytes(random.randrange(30))),
            frame(DATA, END_STREAM, 1, message(b"")),
            frame(CONTINUATION, END_HEADERS, 1, block),
            frame(HEADERS, END_HEADERS, stream, block),
            frame(HEADERS, END_HEADERS | random.randrange(256), 1, block),
            frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block),
            frame(DATA, PADDED, 1, b"\xff"),
            frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, struct.pack(">IB", 1, 255) + block),
            frame(HEADERS, 0, 1, block) + frame(PING, 0, 0, bytes(8)),
            frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 0)),
            frame(PRIORITY, 0, 0, b"123"),
            frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + block),
            frame(GOAWAY, 0, 0, struct.pack(">II", 0, 2) + b"bye"),
            frame(GOAWAY, 0, 0, struct.pack(">II", 0, random.choice((0, 2, 2**32 - 1))) + _FORGED),
            frame(GOAWAY, 0, 1, b""),
            frame(
                WINDOW_UPDATE,
                0,
                random.choice((0, 1, 5)),
                struct.pack(">I", random.choice((0, 1, 2**31 - 1, 2**32 - 1))),
            ),
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,
            frame(DATA, 0, 1, bytes(random.choice((16_385, 70_000)))),
            frame(DATA, 0, 1, b"", length=random.choice((1, 100, 2**24 - 1))),
            frame(HEADERS, END_HEADERS, 1, block, length=random.choice((0, 1, len(block) + 1, 2**24 - 1))),
        )
    )
    before, after = random.choice(((b"", build.call()), (build.call(), b""), (build.call(), build.call()), (b"", b"")))
    return Plan(before + odd + after)


def odd_settings(build: PlanBuilder) -> Plan:
    """Settings that there are not, with values that must not be, or very often."""
    random = build.random
    numbers = (0, 1, 2**14 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
    one = struct.pack(">HI", random.choice((*range(10), 0xFE03, 0xFFFF)), random.choice(numbers))
    odd = random.choice(
        (
            frame(SETTINGS, 0, 0, one),
            frame(SETTINGS, 0, 0, one * 500),
            frame(SETTINGS, 0, 0, one) * 200,
            frame(SETTINGS, 0, 0, one[:-1]),
            frame(SETTINGS, 0, 1, one),
            frame(SETTINGS, ACK, 0, one),
            frame(SETTINGS, ACK, 0) * 10,
        )
    )
    return Plan(odd + build.call())


def flood(build: PlanBuilder) -> Plan:
    """Very many frames that cost the sender nothing."""
    count = build.random.choice((10, 100, 300))
    block = header_block(build.headers())
    data = build.random.choice(
        (
            frame(PING, 0, 0, bytes(8)) * count,
            frame(PING, ACK, 0, bytes(8)) * count,
            frame(PING, 0, 0, bytes(3)),
            frame(RST_STREAM, 0, 1, struct.pack(">I", 8)) * count,
            frame(PRIORITY, 0, 3, struct.pack(">IB", 1, 0)) * count,
            frame(DATA, 0, 1) * count,
            frame(0xFE, 0xFF, 7, bytes(100)) * count,
            b"".join(
                frame(HEADERS, END_HEADERS, 2 * number + 1, block)
                + frame(RST_STREAM, 0, 2 * number + 1, struct.pack(">I", 8))
                for number in range(count)
            ),
            b"".join(build.call(stream=2 * number + 1) for number in range(count)),
        )
    )
    return Plan(data)


def noise_in_frames(build: PlanBuilder) -> Plan:
    """A good call of which some bytes are others."""
    return Plan(mutated(build.random, build.call(), ANY_MUTATIONS))


def other_protocols(build: PlanBuilder) -> Plan:
    """Something that is not HTTP/2 at all, or not from the beginning."""
    random = build.random
    preface = random.choice(
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /pixyproxy.v1.ImageService/GetImage HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(100),
            PREFACE,
            PREFACE[: random.randrange(len(PREFACE))],
            PREFACE + build.call(),
            PREFACE + frame(SETTINGS, 0, 0, b"", length=2**24 - 1),
            random.randbytes(random.choice((1, 24, 1000))),
            mutated(random, PREFACE + frame(SETTINGS, 0, 0), ANY_MUTATIONS),
            b"",
        )
    )
    return Plan(b"", preface=preface)


# --- Left open -------------------------------------------------------------------------------------------------------


def half_open(build: PlanBuilder) -> Plan:
    """A call, a message, a frame or a preface without its end, on a connection that stays."""
    path, request = build.request()
    begun = frame(HEADERS, END_HEADERS, 1, header_block(build.headers(path)))
    plan = build.random.choice(
        (
            Plan(begun),
            Plan(begun + frame(DATA, 0, 1, message(request)[:-1])),
            Plan(begun[:-3]),
            Plan(frame(HEADERS, 0, 1, b"")),
            Plan(b"", preface=PREFACE[:10]),
            Plan(b"", preface=b""),
        )
    )
    return replace(plan, is_held=True)


def half_open_calls(build: PlanBuilder, count: int) -> Plan:
    """Very many calls on one connection, none of which gets its request."""
    block = header_block(build.headers())
    return Plan(b"".join(frame(HEADERS, END_HEADERS, 2 * number + 1, block) for number in range(count)), is_held=True)


def stalled_reader(build: PlanBuilder) -> Plan:
    """A reader of bytes that takes none."""
    no_window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    guid = build.random.choice(list(build.world.images))
    request = pb.GetImageContentRequest(guid=guid).SerializeToString()
    call = build.call(build.headers(_SERVICE + b"GetImageContent"), message(request))
    return Plan(call, preface=PREFACE + no_window, is_held=True)


SCENARIOS: Sequence[Scenario] = (
    good_calls,
    *(odd_header,) * 4,
    *(odd_pseudo_header,) * 3,
    *(odd_names,) * 2,
    broken_compression_of_headers,
    continuation_flood,
    *(lying_prefix,) * 3,
    *(odd_compression,) * 2,
    *(mutated_message,) * 3,
    *(odd_frames,) * 4,
    odd_settings,
    flood,
    *(noise_in_frames,) * 6,
    *(other_protocols,) * 2,
)
HELD_SCENARIOS: Sequence[Scenario] = (half_open, half_open, half_open, stalled_reader)
# One in so many stays open until the end of its batch.
_HELD = 25


def fuzz_frames(checker: Checker, number: int, inputs: int) -> int:
    """Send a batch of connections, some at a time; the same number makes the same batch.

    Returns:
        How many inputs were sent.

    Raises:
        AssertionError: an answer is not as it must be, or the server does not close; says which input it was.
    """
    seeds = [number * 1_000_000 + at for at in range(inputs)]
    with ExitStack() as held, ThreadPoolExecutor(_CONNECTIONS_AT_A_TIME) as pool:
        for seen in pool.map(partial(_try_input, checker.world, held), seeds):
            checker.statuses.update(seen)
    return inputs


def _try_input(world: World, held: ExitStack, seed: int) -> list[str]:
    random = Random(seed)
    scenario = random.choice(HELD_SCENARIOS if random.randrange(_HELD) == 0 else SCENARIOS)
    plan = scenario(PlanBuilder(random, world))
    try:
        return _seen(_answers_to(plan, world.server.address, held))
    except Exception as error:  # Whatever it is, only the seed tells which input it was.
        raise UnexpectedAnswerError(f"{scenario.__name__}, seed {seed}: {error!r}") from error


def _answers_to(plan: Plan, address: str, held: ExitStack) -> Answers:
    connection = Http2Connection(address, _TIMEOUT)
    if plan.is_held:
        held.enter_context(connection)
        connection.send(plan.preface + plan.data)
        return connection.answers
    with connection:
        connection.send(plan.preface + plan.data)
        connection.listen(plan.streams or 1, _TIMEOUT if plan.streams else _PATIENCE)
        connection.finish()
    return connection.answers


def _seen(answers: Answers) -> list[str]:
    """What came back, in words to count, once it is checked."""
    seen = [_checked(trailers) for trailers in answers.ended.values()]
    seen += [f"RST_STREAM {code}" for code in answers.resets]
    seen += [f"GOAWAY {code}" for code in answers.goaways]
    seen += [f"HTTP {status}" for status in answers.http_statuses]
    return seen or ["nothing"]


def _checked(trailers: Trailers) -> str:
    """Check how a call ended: as documented, or as gRPC's core ends calls."""
    code = trailers.code
    if code is None:
        raise UnexpectedAnswerError(f"a status that there is not: {trailers}")
    if code is grpc.StatusCode.OK:
        return "OK"
    if not trailers.details:
        if core_status_of(code, trailers.message) is None:
            raise UnexpectedAnswerError(f"a status without details: {code} {trailers.message!r}")
        return f"core:{code.name}"
    status = status_pb2.Status.FromString(trailers.details)
    names = frozenset(packed.type_url.rpartition(".")[2] for packed in status.details)
    info = error_details_pb2.ErrorInfo()
    infos = [packed for packed in status.details if packed.Unpack(info)]
    if len(infos) != 1 or "RequestInfo" not in names:
        raise UnexpectedAnswerError(f"a status without ErrorInfo or RequestInfo: {status}")
    check_documented(code, info.reason, names)
    return str(info.reason)
