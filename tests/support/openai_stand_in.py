"""A stand-in of the OpenAI Images API, as a process of its own: ``python -m tests.support.openai_stand_in --port 0``.

It speaks the documented wire format and makes real pictures, a new one for every submission. What goes wrong is
chosen by a control word in the prompt, so that tests which share a stand-in do not disturb each other:

    [[fault:NAME:OPTION=VALUE:…]]

NAME is one of the answers in ``_FAULTS``, or a number such as 429, 401 or 503: that HTTP status with the code that
the API sends with it. The options are:

    times=N               only the first N submissions of exactly this prompt fail
    code=CODE             the error's code, in place of the usual one
    param=PARAM           the error's param
    message=TEXT          the error's message, percent-encoded, so that it is no part of the prompt
    message64=TEXT        the same in URL-safe base64, so that no word of it is one of the prompt
    retry-after=SECONDS   and retry-after-ms=…, retry-after-date=SECONDS-FROM-NOW: these headers

A request with ``stream`` is answered with server-sent events: the partial images, numbered from 0, and the completed
one after them. ``hold`` holds an answer, and ``hold=N,M,…`` these events of it, until a test releases them one after
the other. Names that begin with ``stream_`` are faults of the stream; ``=N`` says at which event. With the option
``padded=BYTES`` partial images, in PNG, have that many bytes. ``says=JSON64``, URL-safe base64 of an object, replaces
these fields of the answer, or of the completed event. ``usage64=JSON``, in URL-safe base64, is an option of
any name, such as ``rightly``: the usage that is sent in place of the stand-in's own.

``url`` answers with the URL of an image in place of its bytes, and ``stream_url`` does so in a stream. The options
``get`` and ``fails`` say what goes wrong when it is fetched (see ``image_urls.py``); ``origin64`` names another origin,
and ``to64`` another URL, in URL-safe base64. ``GET /_stand_in/fetches?prompt=…`` tells of the requests for it.

An edit, ``POST /v1/images/edits``, is read part by part. Its files are described in ``image``, always a list, and in
``mask``: the name of the form's field, filename, content type, size and SHA-256. It counts once its body is complete.
``body_hold=N`` holds it after N bytes of its files until a test releases it, and ``body_drop=N`` ends the connection
there. ``GET /_stand_in/incomplete?prompt=…`` gives ``{"count": …}``, how many bodies with that prompt ended too early.

``GET /_stand_in/submissions?prompt=…`` gives ``{"count": …, "requests": [bodies], "headers": [headers]}``; without a
prompt it gives those of all submissions. ``GET /_stand_in/release?prompt=…`` releases what is held next. Give each test
a prompt of its own.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import gzip
import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from tests.support.image_files import WITH_PROVENANCE
from tests.support.image_urls import OTHER_FILES, Fetches, name_for, path_for, serve_image

API_KEY = "stand-in-key"
SHUTDOWN_DATES: dict[str, str | None] = {
    "gpt-image-2": None,
    "gpt-image-2.5-flare": None,
    "gpt-image-2.5-sunburst": None,
    "gpt-image-2.6-flare": None,
    "gpt-image-2.6-sunburst": None,
    "stand-in-retiring": "2027-01-31",
}

_ALLOWED: dict[str, set[str]] = {
    "quality": {"auto", "low", "medium", "high", "xhigh", "max"},
    "output_format": {"png", "webp", "jpeg"},
    "background": {"auto", "opaque", "transparent"},
    "moderation": {"auto", "low"},
}
_PARAMETERS = {
    *("prompt", "model", "n", "size", "safety_identifier", "user", "stream", "partial_images", "output_compression"),
    *_ALLOWED,
}
_EDIT_PARAMETERS = (_PARAMETERS - {"moderation"}) | {"image", "mask", "input_fidelity"}
_NUMBERS = {"n", "partial_images", "output_compression"}
_MAX_IMAGES = 16
_IMAGE_TOKENS = 100
_USUAL_CODES: dict[int, str | None] = {
    401: "invalid_api_key",
    403: "unsupported_country_region_territory",
    404: "model_not_found",
    429: "rate_limit_exceeded",
}
_FAULT = re.compile(r"\[\[fault:([^\]]+)\]\]")
_MAX_PROMPT = 32_000


# --- What is asked ---------------------------------------------------------------------------------------------------


@dataclass
class Submission:
    """A request for an image as it arrived; ``number`` counts those with the same prompt from 1."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int = 0

    @property
    def prompt(self) -> str:
        return str(self.body.get("prompt", ""))

    @property
    def is_edit(self) -> bool:
        return "image" in self.body

    @property
    def size(self) -> tuple[int, int]:
        size = str(self.body.get("size", "auto"))
        width, height = ("1024", "1024") if size == "auto" else size.split("x")
        return int(width), int(height)

    @property
    def output_format(self) -> str:
        return str(self.body.get("output_format", "png"))

    @property
    def is_transparent(self) -> bool:
        return self.body.get("background") == "transparent"

    @property
    def partial_images(self) -> int:
        return int(self.body.get("partial_images", 0))


@dataclass(frozen=True)
class Fault:
    """A control word: what to do wrong, and how."""

    name: str
    value: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, submission: Submission) -> Fault | None:
        """Read the prompt's control word; None where there is none, or where it is used up."""
        found = _FAULT.search(submission.prompt)
        if found is None:
            return None
        (name, value), *options = [word.partition("=")[::2] for word in found[1].split(":")]
        fault = cls(name, value, dict(options))
        return None if submission.number > int(fault.options.get("times", sys.maxsize)) else fault

    def message(self, default: str) -> str:
        """Return the message of the error that it asks for."""
        return self.decoded("message64") or urllib.parse.unquote(self.options.get("message", default))

    def decoded(self, option: str) -> str:
        """Return an option that is in base64, or an empty text."""
        return base64.urlsafe_b64decode(self.options.get(option, "")).decode()


class Submissions:
    """All requests for images that arrived, for tests to count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Submission] = []
        self._counts: Counter[str] = Counter()
        self._incomplete: Counter[str] = Counter()

    def add(self, body: dict[str, Any], headers: dict[str, str]) -> Submission:
        submission = Submission(body, headers)
        with self._lock:
            self._counts[submission.prompt] += 1
            submission.number = self._counts[submission.prompt]
            self._all.append(submission)
        return submission

    def add_incomplete(self, prompt: str) -> None:
        with self._lock:
            self._incomplete[prompt] += 1

    def count_incomplete(self, prompt: str) -> int:
        with self._lock:
            return self._incomplete[prompt]

    def describe(self, prompt: str | None) -> dict[str, Any]:
        with self._lock:
            chosen = [submission for submission in self._all if prompt in (None, submission.prompt)]
        return {
            "count": len(chosen),
            "requests": [submission.body for submission in chosen],
            "headers": [submission.headers for submission in chosen],
        }


class Holds:
    """Answers and events that wait to be released."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[str] = Counter()
        self._released: Counter[str] = Counter()

    def hold(self, prompt: str) -> None:
        """Wait until this and all earlier holds of the prompt are released."""
        with self._changed:
            self._held[prompt] += 1
            number = self._held[prompt]
            self._changed.wait_for(lambda: self._released[prompt] >= number)

    def release(self, prompt: str) -> None:
        with self._changed:
            self._released[prompt] += 1
            self._changed.notify_all()


# --- What is answered ------------------------------------------------------------------------------------------------


class ApiError(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error: dict[str, Any] = {
            "message": message,
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": param,
            "code": code,
        }
        self.headers: dict[str, str] = {}


def _refuse(param: str, message: str, code: str = "invalid_value") -> NoReturn:
    raise ApiError(400, message, code, param)


def check_parameters(body: dict[str, Any]) -> None:
    """Refuse what the API refuses."""
    for name in body.keys() - (_EDIT_PARAMETERS if "image" in body else _PARAMETERS):
        _refuse(name, f"Unknown parameter: '{name}'.", "unknown_parameter")
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        _refuse("prompt", "Missing required parameter: 'prompt'.", "missing_required_parameter")
    if len(prompt) > _MAX_PROMPT:
        _refuse("prompt", f"Expected a string with maximum length {_MAX_PROMPT}.", "string_above_max_length")
    if body.get("model") not in SHUTDOWN_DATES:
        raise ApiError(404, f"The model '{body.get('model')}' does not exist.", "model_not_found")
    if body.get("n", 1) not in range(1, 11):
        _refuse("n", "Expected an integer from 1 to 10.")
    for name, allowed in _ALLOWED.items():
        if body.get(name, "auto") not in allowed | {"auto"}:
            _refuse(name, f"Invalid value: '{body[name]}'. Supported values are: {', '.join(sorted(allowed))}.")
    if body.get("background") == "transparent" and body.get("output_format") == "jpeg":
        _refuse("background", "Transparent background is not supported for jpeg output.")
    _check_compression(body)
    if body.get("stream", False) not in (True, False):
        _refuse("stream", "Expected a boolean.")
    if body.get("partial_images", 0) not in range(4) or ("partial_images" in body and not body.get("stream")):
        _refuse("partial_images", "Expected an integer from 0 to 3, with a stream.")
    _check_size(str(body.get("size", "auto")))
    if len(body.get("image", [])) > _MAX_IMAGES:
        _refuse("image", f"At most {_MAX_IMAGES} images.")


def _check_compression(body: dict[str, Any]) -> None:
    if body.get("output_compression", 100) not in range(101):
        _refuse("output_compression", "Expected an integer from 0 to 100.")
    if "output_compression" in body and body.get("output_format", "png") == "png":
        _refuse("output_compression", "Compression is only supported for jpeg and webp output.")


def _check_size(size: str) -> None:
    if size == "auto":
        return
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", size)
    short, long = sorted(map(int, found.groups())) if found else (0, 0)
    if not found or short % 16 or long % 16 or long > 3 * short or long > 3840 or short * long > 3840 * 2160:
        _refuse("size", f"Invalid size '{size}'. Width and height must be multiples of 16, at most 3840x2160.")


def make_picture(submission: Submission) -> bytes:
    """Make a picture of the asked size and format; each submission gets another one."""
    seed = hashlib.sha256(f"{submission.number} {submission.prompt}".encode()).digest()
    alpha = 0 if submission.is_transparent else 255
    picture = Image.new("RGBA", submission.size, (seed[0], seed[1], seed[2], alpha))
    picture.paste((seed[3], seed[4], seed[5], 255), (0, 0, picture.width // 2, picture.height // 2))
    buffer = io.BytesIO()
    mode = "RGBA" if submission.is_transparent else "RGB"
    options = {"compress_level": 1} if submission.output_format == "png" else {"quality": 80}
    picture.convert(mode).save(buffer, submission.output_format, **options)
    return buffer.getvalue()


def pad_png(picture: bytes, size: int) -> bytes:
    """Make a PNG exactly ``size`` bytes long with a private chunk that viewers skip."""
    padding = size - len(picture) - 12
    if padding < 0 or not picture.startswith(b"\x89PNG"):
        _refuse("output_format", "large needs png, and more bytes than the picture has.")
    body = b"piXy" + bytes(padding)
    chunk = padding.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return picture[:-12] + chunk + picture[-12:]


def make_answer(submission: Submission, picture: bytes) -> dict[str, Any]:
    """Return a success as the API words it."""
    text_tokens, output_tokens = 1 + len(submission.prompt) // 4, 1056
    image_tokens = _IMAGE_TOKENS * len(submission.body.get("image", []))
    input_tokens = text_tokens + image_tokens
    usage = {
        "input_tokens": input_tokens,
        "input_tokens_details": {"image_tokens": image_tokens, "text_tokens": text_tokens},
        "output_tokens": output_tokens,
        "output_tokens_details": {"image_tokens": output_tokens, "text_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }
    fault = Fault.of(submission)
    if fault and "usage64" in fault.options:
        usage = json.loads(base64.urlsafe_b64decode(fault.options["usage64"]))
    return {
        "created": int(time.time()),
        "background": "transparent" if submission.is_transparent else "opaque",
        "data": [{"b64_json": base64.b64encode(picture).decode()}] * int(submission.body.get("n", 1)),
        "output_format": submission.output_format,
        "quality": str(submission.body.get("quality", "low")),
        "size": "x".join(map(str, submission.size)),
        "usage": usage,
    }


# --- What is streamed ------------------------------------------------------------------------------------------------


def make_events(submission: Submission, partial_images: int) -> list[dict[str, Any]]:
    """Return the events of a stream as the API words them: partial images, and the completed one."""
    answer = make_answer(submission, make_picture(submission))
    kind = "image_edit" if submission.is_edit else "image_generation"
    common = {name: answer[name] for name in ("background", "output_format", "quality", "size")}
    partials = [
        {
            "type": f"{kind}.partial_image",
            "b64_json": base64.b64encode(make_partial(submission, index)).decode(),
            "created_at": answer["created"],
            "partial_image_index": index,
            **common,
        }
        for index in range(partial_images)
    ]
    completed = {
        "type": f"{kind}.completed",
        "b64_json": answer["data"][0]["b64_json"],
        "created_at": answer["created"],
        "usage": {name: count for name, count in answer["usage"].items() if name != "output_tokens_details"},
        **common,
    }
    return [*partials, completed]


def make_partial(submission: Submission, index: int) -> bytes:
    """Make the partial image of this index; it is another picture than the image."""
    return make_picture(Submission(submission.body, {}, -1 - index))


def written(event: dict[str, Any]) -> bytes:
    """Write an event as the API does."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _send_stream(handler: Handler, submission: Submission, fault: Fault | None) -> None:
    """Send a stream, as the fault says."""
    name, value = (fault.name, fault.value) if fault else ("", "")
    events = make_events(submission, 2 if name == "stream_unasked" else submission.partial_images)
    if fault and "padded" in fault.options:
        for event in events[:-1]:
            picture = base64.b64decode(event["b64_json"])
            event["b64_json"] = base64.b64encode(pad_png(picture, int(fault.options["padded"]))).decode()
    if name == "says":
        events[-1] |= _said(value)
    if name == "stream_repeated":
        events = [event for event in events for _ in range(1 + ("partial_image_index" in event))]
    if name == "stream_end":
        del events[int(value) :]
    elif fault and name == "stream_error":
        events[int(value) :] = [_error_event(submission, fault)]
    elif fault and name == "stream_url":
        del events[-1]["b64_json"]
        events[-1]["url"] = _image_url(handler, submission, fault)
    elif name in _DAMAGES:
        events[int(value or -1)]["b64_json"] = _DAMAGES[name](events[int(value or -1)]["b64_json"])
    handler.send_stream_head()
    held = value.split(",") if name == "hold" else []
    chunks = _FORMS.get(name, _plainly)([written(event) for event in events])
    for number, chunk in enumerate(chunks):
        if str(number) in held:
            handler.server.holds.hold(submission.prompt)
        if name == "stream_drop" and number == int(value):
            handler.send_chunk(chunk[: len(chunk) // 2])
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_chunk(chunk)
    handler.send_chunk(b"")


def _error_event(submission: Submission, fault: Fault) -> dict[str, Any]:
    error = {
        "code": fault.options.get("code", "server_error"),
        "message": fault.message(f"No image for: {submission.prompt}"),
    }
    # Some servers write the error itself as the event.
    return {"type": "error", **error} if "flat" in fault.options else {"type": "error", "error": error}


def _plainly(events: list[bytes]) -> list[bytes]:
    return events


_DAMAGES: dict[str, Callable[[str], str]] = {
    "stream_empty": lambda _: "",
    "stream_bad_base64": lambda encoded: encoded[:-5] + "!" + encoded[-4:],
    "stream_truncated": lambda encoded: encoded[: len(encoded) // 8 * 4],
}
_FORMS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "stream_crlf": lambda events: [event.replace(b"\n", b"\r\n") for event in events],
    "stream_unterminated": lambda events: [*events[:-1], events[-1].rstrip(b"\n")],
    "stream_comments": lambda events: [part for event in events for part in (b": keepalive\n\n", b": note\n" + event)],
    "stream_multiline": lambda events: [event.replace(b', "', b',\ndata: "') for event in events],
    "stream_odd_type": lambda events: [b'data: {"type": [], "b64_json": "AAAA"}\n\n', *events],
    "stream_joined": lambda events: [b"".join(events)],
    "stream_bytes": lambda events: [bytes([byte]) for byte in b"".join(events)],
    "stream_done": lambda events: [*events[:-1], b"data: [DONE]\n\n", events[-1]],
}


# --- What goes wrong -------------------------------------------------------------------------------------------------


def _answer_with(**changes: Any) -> Callable[[Handler, Submission, Fault], None]:
    def answer(handler: Handler, submission: Submission, _: Fault) -> None:
        handler.send_json(200, make_answer(submission, make_picture(submission)) | changes)

    return answer


def _encode_with(encode: Callable[[bytes], str]) -> Callable[[Handler, Submission, Fault], None]:
    def answer(handler: Handler, submission: Submission, _: Fault) -> None:
        image = {"b64_json": encode(make_picture(submission))}
        handler.send_json(200, make_answer(submission, b"") | {"data": [image]})

    return answer


def _send_error_as_success(handler: Handler, submission: Submission, fault: Fault) -> None:
    error = {
        "code": fault.options.get("code", "server_error"),
        "message": fault.message(f"No image for: {submission.prompt}"),
    }
    handler.send_json(200, {"created": int(time.time()), "error": error})


def _send_picture_bytes(handler: Handler, submission: Submission, picture: bytes) -> None:
    handler.send_json(200, make_answer(submission, picture))


def _image_url(handler: Handler, submission: Submission, fault: Fault) -> str:
    """Return the URL of the image, which is here unless the fault names another place."""
    origin = fault.decoded("origin64") or f"http://{handler.server.address}"
    return fault.decoded("to64") or origin + path_for(submission.prompt, fault.options)


def _send_url(handler: Handler, submission: Submission, fault: Fault) -> None:
    image = {"b64_json": None, "url": _image_url(handler, submission, fault)}
    handler.send_json(200, make_answer(submission, b"") | {"data": [image] * int(fault.options.get("images", 1))})


def _send_several(handler: Handler, submission: Submission, fault: Fault) -> None:
    pictures = [make_picture(submission), *(make_partial(submission, index) for index in range(int(fault.value) - 1))]
    images = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
    handler.send_json(200, make_answer(submission, b"") | {"data": images})


def _send_encoded(handler: Handler, submission: Submission, fault: Fault) -> None:
    body = json.dumps(make_answer(submission, make_picture(submission))).encode()
    encoding = "deflate" if fault.value == "raw_deflate" else fault.value
    handler.send_body(200, _ENCODINGS[fault.value](body), {"Content-Encoding": encoding})


def _send_chunked(handler: Handler, submission: Submission, fault: Fault) -> None:
    body = json.dumps(make_answer(submission, make_picture(submission))).encode()
    handler.send_head(200, None, {"Transfer-Encoding": "chunked"})
    for start in range(0, len(body), int(fault.value)):
        handler.send_chunk(body[start : start + int(fault.value)])
    handler.send_chunk(b"")


def _send_by_bytes(handler: Handler, submission: Submission, _: Fault) -> None:
    body = json.dumps(make_answer(submission, make_picture(submission))).encode()
    handler.send_head(200, len(body))
    for byte in body:
        handler.wfile.write(bytes([byte]))


_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw_deflate": lambda body: zlib.compress(body, wbits=-zlib.MAX_WBITS),
    # Clients announce these where they have the modules, too.
    "br": lambda body: bytes(import_module("brotli").compress(body)),
    "zstd": lambda body: bytes(import_module("compression.zstd").compress(body)),
}


def _refuse_by_moderation(handler: Handler, submission: Submission, fault: Fault) -> None:
    text = fault.message(f"Rejected by the safety system: {submission.prompt}")
    error = ApiError(400, text, "moderation_blocked")
    error.error["type"] = "image_generation_user_error"
    error.error["moderation_details"] = {
        "moderation_stage": fault.options.get("stage", "input"),
        "categories": fault.options.get("categories", "violence").split(","),
    }
    handler.send_error_answer(error)


def _hang(handler: Handler, _: Submission, __: Fault) -> None:
    # Until the client goes.
    handler.rfile.read(1)


def _drop(handler: Handler, _: Submission, __: Fault) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _drop_midway(handler: Handler, submission: Submission, _: Fault) -> None:
    body = json.dumps(make_answer(submission, make_picture(submission))).encode()
    handler.send_head(200, len(body))
    handler.wfile.write(body[: len(body) // 2])


def _drip(handler: Handler, _: Submission, __: Fault) -> None:
    handler.send_head(200, 1_000_000)
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.02)


def _slow(handler: Handler, submission: Submission, fault: Fault) -> None:
    time.sleep(float(fault.value))
    _answer_rightly(handler, submission, fault)


def _hold(handler: Handler, submission: Submission, fault: Fault) -> None:
    if not fault.value:
        handler.server.holds.hold(submission.prompt)
    _answer_rightly(handler, submission, fault)


def _answer_rightly(handler: Handler, submission: Submission, fault: Fault | None) -> None:
    if submission.body.get("stream") and (fault is None or fault.name != "stream_ignored"):
        _send_stream(handler, submission, fault)
        return
    changes = _said(fault.value) if fault and fault.name == "says" else {}
    handler.send_json(200, make_answer(submission, make_picture(submission)) | changes)


def _said(encoded: str) -> dict[str, Any]:
    changes: dict[str, Any] = json.loads(base64.urlsafe_b64decode(encoded))
    return changes


def _redirect(handler: Handler, _: Submission, __: Fault) -> None:
    handler.send_head(307, 0, {"Location": handler.path})


def _large(handler: Handler, submission: Submission, fault: Fault) -> None:
    _send_picture_bytes(handler, submission, pad_png(make_picture(submission), int(fault.value)))


_FAULTS: dict[str, Callable[[Handler, Submission, Fault], None]] = {
    "moderation_blocked": _refuse_by_moderation,
    "hang": _hang,
    "drop": _drop,
    "drop_midway": _drop_midway,
    "drip": _drip,
    "slow": _slow,
    "redirect": _redirect,
    "large": _large,
    "provenance": lambda handler, submission, _: _send_picture_bytes(
        handler, submission, WITH_PROVENANCE[submission.output_format]
    ),
    "empty_data": _answer_with(data=[]),
    "null_data": _answer_with(data=None),
    "data_url": _encode_with(lambda picture: "data:image/png;base64," + base64.b64encode(picture).decode()),
    "url_safe": _encode_with(lambda picture: base64.urlsafe_b64encode(picture).decode().rstrip("=")),
    "error_as_success": _send_error_as_success,
    "no_b64": _answer_with(data=[{"url": "https://example.com/picture.png"}]),
    "bad_base64": _answer_with(data=[{"b64_json": "a"}]),
    "no_usage": _answer_with(usage=None),
    "float_usage": _answer_with(usage={"input_tokens": 11.0, "output_tokens": 1056.0, "total_tokens": 1067.0}),
    "half_usage": _answer_with(usage={"input_tokens": 11.5, "output_tokens": 1056.0, "total_tokens": 1067.5}),
    "odd_usage": _answer_with(usage={"input_tokens": "many", "output_tokens": -1}),
    "not_an_image": lambda handler, submission, _: _send_picture_bytes(handler, submission, b"no picture at all"),
    "truncated": lambda handler, submission, _: _send_picture_bytes(
        handler, submission, make_picture(submission)[:-20]
    ),
    "url": _send_url,
    "images": _send_several,
    "encoded": _send_encoded,
    "chunked": _send_chunked,
    "bytes": _send_by_bytes,
    "file": lambda handler, submission, fault: _send_picture_bytes(handler, submission, OTHER_FILES[fault.value]),
    "bad_json": lambda handler, _, __: handler.send_body(200, b'{"data": [{"b64_json": "iVBOR'),
    "empty_body": lambda handler, _, __: handler.send_body(200, b""),
    **dict.fromkeys(
        (
            *_DAMAGES,
            *_FORMS,
            "stream_url",
            "stream_drop",
            "stream_end",
            "stream_error",
            "stream_ignored",
            "stream_repeated",
        ),
        _answer_rightly,
    ),
    "stream_unasked": _answer_rightly,
    "says": _answer_rightly,
    "hold": _hold,
    "body_hold": _answer_rightly,
    "body_drop": _answer_rightly,
    "rightly": _answer_rightly,
    "html": lambda handler, _, __: handler.send_body(200, b"<html>hello</html>", {"Content-Type": "text/html"}),
}


def _raise_api_error(status: int, fault: Fault) -> NoReturn:
    options = fault.options
    error = ApiError(
        status,
        fault.message(f"The stand-in was told to answer {status}."),
        options.get("code", _USUAL_CODES.get(status)),
        options.get("param"),
    )
    error.headers = {name: value for name, value in options.items() if name in ("retry-after", "retry-after-ms")}
    if "retry-after-date" in options:
        error.headers["retry-after"] = email.utils.formatdate(
            time.time() + float(options["retry-after-date"]), usegmt=True
        )
    raise error


# --- The server ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: StandInServer

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the output belongs to the one line that names the port."""

    def send_head(self, status: int, length: int | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "x-request-id": self.server.new_request_id()}
        if length is not None:
            defaults["Content-Length"] = str(length)
        if self.close_connection:
            # Unannounced, the end would race with the client's next request on the connection.
            defaults["Connection"] = "close"
        for name, value in (defaults | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def send_body(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_head(status, len(body), headers)
        self.wfile.write(body)

    def send_stream_head(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("x-request-id", self.server.new_request_id())
        self.end_headers()

    def send_chunk(self, data: bytes) -> None:
        """Send a chunk of a stream; an empty one ends it."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def send_json(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send_body(status, json.dumps(content).encode(), headers)

    def send_error_answer(self, error: ApiError) -> None:
        self.send_json(error.status, {"error": error.error}, error.headers)

    def _handle(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except ApiError as error:
            self.send_error_answer(error)
        except OSError:
            # The client has gone, which tests of time limits do.
            self.close_connection = True

    def _get(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/_stand_in/submissions":
            prompts = urllib.parse.parse_qs(url.query).get("prompt", [None])
            self.send_json(200, self.server.submissions.describe(prompts[0]))
            return
        if url.path == "/_stand_in/fetches":
            [prompt] = urllib.parse.parse_qs(url.query)["prompt"]
            self.send_json(200, self.server.fetches.describe(name_for(prompt)))
            return
        if url.path == "/_stand_in/incomplete":
            [prompt] = urllib.parse.parse_qs(url.query)["prompt"]
            self.send_json(200, {"count": self.server.submissions.count_incomplete(prompt)})
            return
        if url.path.startswith("/images/"):
            serve_image(self, self.server.fetches)
            return
        if url.path == "/_stand_in/release":
            self.server.holds.release(urllib.parse.parse_qs(url.query)["prompt"][0])
            self.send_json(200, {})
            return
        self._check_key()
        if url.path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [_describe_model(model) for model in SHUTDOWN_DATES]})
            return
        model = urllib.parse.unquote(url.path.removeprefix("/v1/models/"))
        if model not in SHUTDOWN_DATES:
            raise ApiError(404, f"The model '{model}' does not exist.", "model_not_found")
        self.send_json(200, _describe_model(model))

    def _post(self) -> None:
        if self.path == "/v1/images/edits":
            body = _read_form(self)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/v1/images/generations":
                raise ApiError(404, f"Unknown request URL: POST {self.path}.")
            body = _read_body(content)
        submission = self.server.submissions.add(body, dict(self.headers.items()))
        self._check_key()
        check_parameters(submission.body)
        fault = Fault.of(submission)
        if fault is None:
            _answer_rightly(self, submission, fault)
        elif fault.name.isdigit():
            _raise_api_error(int(fault.name), fault)
        elif fault.name in _FAULTS:
            # After a fault nothing on the connection can be relied on.
            self.close_connection = True
            _FAULTS[fault.name](self, submission, fault)
        else:
            _refuse("prompt", f"The stand-in knows no fault '{fault.name}'.")

    def _check_key(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.api_key}":
            raise ApiError(401, "Incorrect API key provided.", "invalid_api_key")


def _read_body(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    return body


class _Form:
    """Reads a form of type multipart/form-data without keeping its files, as its length says."""

    def __init__(self, handler: Handler) -> None:
        boundary = re.fullmatch(r"multipart/form-data; boundary=(\S+)", handler.headers.get("Content-Type", ""))
        if boundary is None:
            raise ApiError(400, "We could not parse the form of your request.")
        self._handler = handler
        self._boundary = b"--" + boundary[1].encode()
        self._left = int(handler.headers["Content-Length"])
        self._of_files = 0
        self.body: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return the parameters; files are described."""
        self._line()
        while self._left:
            self._read_part()
        return self.body

    def _line(self) -> bytes:
        line = self._handler.rfile.readline(min(self._left, 64 * 1024))
        self._left -= len(line)
        if not line:
            raise ConnectionError("the body is incomplete")
        return line

    def _read_part(self) -> None:
        headers = b""
        while (line := self._line()) != b"\r\n":
            headers += line
        name, filename = re.search(rb'name="([^"]+)"', headers), re.search(rb'filename="([^"]+)"', headers)
        kind = re.search(rb"(?i)content-type: (\S+)", headers)
        if name is None:
            raise ApiError(400, "A part of the form has no name.")
        field = name[1].decode()
        if filename is None:
            value = b"".join(self._content()).decode()
            self.body[field] = int(value) if field in _NUMBERS else value
            return
        digest, size = hashlib.sha256(), 0
        for piece in self._content():
            digest.update(piece)
            size += len(piece)
            self._of_files += len(piece)
            self._meddle()
        described = {
            "field": field,
            "filename": filename[1].decode(),
            "content_type": kind[1].decode() if kind else "",
            "size": size,
            "sha256": digest.hexdigest(),
        }
        if field == "mask":
            self.body["mask"] = described
        elif field in ("image", "image[]"):
            self.body.setdefault("image", []).append(described)
        else:
            _refuse(field, f"Unknown parameter: '{field}'.", "unknown_parameter")

    def _content(self) -> Iterator[bytes]:
        """Give the bytes of a part; the line break before the boundary is not among them."""
        held = b""
        while not (line := self._line()).startswith(self._boundary) or (held and not held.endswith(b"\r\n")):
            # A line may end between its two last bytes.
            held += line
            ready = held if not held.endswith((b"\r\n", b"\r")) else held[: -2 if held.endswith(b"\n") else -1]
            held = held[len(ready) :]
            yield ready

    def _meddle(self) -> None:
        number = self._handler.server.submissions.count_incomplete(str(self.body["prompt"])) + 1
        fault = Fault.of(Submission(self.body, {}, number))
        if fault is None or not fault.name.startswith("body_") or self._of_files < int(fault.value):
            return
        if fault.name == "body_drop":
            raise ConnectionResetError("the fault of this body")
        self._of_files = -sys.maxsize  # once
        self._handler.server.holds.hold(str(self.body["prompt"]))


def _read_form(handler: Handler) -> dict[str, Any]:
    form = _Form(handler)
    try:
        body = form.read()
    except OSError:
        handler.server.submissions.add_incomplete(str(form.body.get("prompt", "")))
        raise
    if "image" not in body:
        _refuse("image", "Missing required parameter: 'image'.", "missing_required_parameter")
    if "stream" in body:
        body["stream"] = body["stream"] == "true"
    return body


def _describe_model(model: str) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": 1_780_000_000,
        "owned_by": "stand-in",
        "shutdown_date": SHUTDOWN_DATES[model],
    }


class StandInServer(ThreadingHTTPServer):
    """The stand-in's server; a thread for each connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, api_key: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.api_key = api_key
        self.submissions = Submissions()
        self.fetches = Fetches()
        self.holds = Holds()
        self._lock = threading.Lock()
        self._answers = 0

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone, which tests of crashes have many of."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def new_request_id(self) -> str:
        with self._lock:
            self._answers += 1
            return f"req_stand_in_{self._answers}"


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="A stand-in of the OpenAI Images API.")
    parser.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--api-key", default=API_KEY, help="the key that requests must carry")
    arguments = parser.parse_args()
    with StandInServer(arguments.port, arguments.api_key) as server:
        print(f"listening on {server.address}", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


# --- For tests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningStandIn:
    """A stand-in that runs as another process.

    Attributes:
        address: its host and port.
        api_key: the key that it wants.
    """

    address: str
    api_key: str = API_KEY

    @property
    def base_url(self) -> str:
        """The API's address, as the openai client takes it."""
        return f"http://{self.address}/v1"

    def submissions(self, prompt: str) -> dict[str, Any]:
        """Return ``count``, ``requests`` and ``headers`` of the submissions of exactly this prompt."""
        return self._ask(f"submissions?{urllib.parse.urlencode({'prompt': prompt})}")

    def fetches(self, prompt: str) -> dict[str, Any]:
        """Return ``count`` and ``headers`` of the requests for the image at the URL in the answer for this prompt."""
        return self._ask(f"fetches?{urllib.parse.urlencode({'prompt': prompt})}")

    def all_submissions(self) -> dict[str, Any]:
        """Return the same of all submissions."""
        return self._ask("submissions")

    def count(self, prompt: str) -> int:
        """Return how often exactly this prompt was submitted."""
        return int(self.submissions(prompt)["count"])

    def count_incomplete(self, prompt: str) -> int:
        """Return how many edits with exactly this prompt were received in part."""
        return int(self._ask(f"incomplete?{urllib.parse.urlencode({'prompt': prompt})}")["count"])

    def release(self, prompt: str) -> None:
        """Release what is held next of the submissions of exactly this prompt."""
        self._ask(f"release?{urllib.parse.urlencode({'prompt': prompt})}")

    def _ask(self, query: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}/_stand_in/{query}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextlib.contextmanager
def start_stand_in() -> Iterator[RunningStandIn]:
    """Run a stand-in on a free port, and end it afterwards."""
    command = [sys.executable, "-m", "tests.support.openai_stand_in", "--port", "0"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield RunningStandIn(_read_address(process))
        finally:
            process.terminate()


def _read_address(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith("listening on "):
        raise RuntimeError(f"the stand-in did not start; it said {line!r}")
    return line.removeprefix("listening on ").strip()


if __name__ == "__main__":
    main()
