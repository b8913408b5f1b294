"""The REST API behind a real Envoy, as it ships; docs/rest.md describes it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from PIL import Image
from pixyproxy_pb.v1 import image_download_service_pb2 as dpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1.image_download_service_pb2_grpc import ImageDownloadServiceStub

from pixyproxy.core.models import ImageDetail
from tests.integration.conftest import People
from tests.support.addresses import free_addresses
from tests.support.envoy import running_envoy
from tests.support.image_client import SMALL
from tests.support.leaving_out import Required, leave_out
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rest import RestClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer, image_stub
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_until

_DATA = os.urandom(3 * 64 * 1024 + 1000)
_SIZE = len(_DATA)
_ORIGIN = "https://gallery.example.com"
_NOBODYS = "/image/00000000-0000-4000-8000-000000000000"
_EMPTY_MESSAGE = bytes(5)


@pytest.fixture(scope="module")
def address(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Envoy in front of the shared server."""
    (address,) = free_addresses(1)
    with running_envoy(tmp_path_factory.mktemp("envoy"), address, [server.address] * 3):
        anybody = RestClient(address)
        wait_until(lambda: anybody.get("/image").status == 200, TIMEOUT, "Envoy to find the server")
        yield address


@pytest.fixture(scope="module")
def ann(address: str, people: People) -> RestClient:
    """The author of the images of these tests."""
    return RestClient(address, people.ann)


@pytest.fixture(scope="module")
def image(server: RunningServer, people: People) -> ImageDetail:
    """An image of some chunks and a bit."""
    return store_image(server, people.ann, _DATA)


def test_a_journey(ann: RestClient, address: str, prompt: str) -> None:
    made = ann.send("POST", "/image", {"prompt": prompt, "tags": ["a b", "ü"], "options": {"size": "64x32"}})
    assert made.status == 200
    assert made.headers["x-request-id"]
    image = made.json["image"]
    path = f"/image/{image['guid']}"
    assert (image["width"], image["visibility"], image["tags"]) == (64, "VISIBILITY_PRIVATE", ["a b", "ü"])
    # The placeholder comes later.
    assert ann.get(path).json["image"].items() >= image.items()
    assert RestClient(address).get(path).status == 404

    changes = {
        "filename": "new.png",
        "visibility": "VISIBILITY_PUBLIC",
        "tags": ["not this"],
        "updateMask": "filename,visibility",
    }
    changed = ann.send("PATCH", path, changes).json["image"]
    assert (changed["filename"], changed["tags"], changed["visibility"]) == (
        "new.png",
        ["a b", "ü"],
        "VISIBILITY_PUBLIC",
    )

    content = RestClient(address).get(f"{path}/content")
    assert (content.status, content.headers["content-type"]) == (200, "image/png")
    assert len(content.body) == int(content.headers["content-length"]) == int(image["sizeBytes"])
    assert content.headers["etag"] == f'"{image["sha256"]}"'
    for query, size in (("", (64, 32)), ("?rendition=RENDITION_512", (64, 32))):
        thumbnail = ann.get(f"{path}/thumbnail{query}")
        assert (thumbnail.status, thumbnail.headers["content-type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(thumbnail.body)).size == size

    filters = {"prompt": prompt, "filename": "NEW", "guid": image["guid"], "tags": "ü", "author": image["author"]}
    filters |= {"visibility": "VISIBILITY_PUBLIC", "created_after": "2020-01-01T00:00:00Z"}
    found = [image["guid"]]
    for more, expected in (({}, found), ({"tags": "c"}, []), ({"createdBefore": "2020-01-01T00:00:00Z"}, [])):
        page = ann.get(f"/image?{urlencode([*filters.items(), *more.items()])}")
        assert [listed["guid"] for listed in page.json.get("images", [])] == expected

    assert (ann.send("DELETE", path).status, ann.get(path).status) == (200, 404)


def test_pages_of_three_mebibytes(ann: RestClient, server: RunningServer, people: People) -> None:
    """The transcoder holds a page in memory; by default it holds one mebibyte."""
    details = [make_detail(people.ann, prompt="𝐚" * 32_000, tags=["rest pages"]) for _ in range(25)]
    store_details(server, people.ann, details)
    listed, sizes, token = [], [], ""
    while True:
        page = ann.get(f"/image?tags=rest%20pages&pageSize=200&pageToken={quote(token)}")
        assert page.status == 200
        sizes.append(len(page.body))
        listed += [image["guid"] for image in page.json["images"]]
        token = page.json.get("nextPageToken", "")
        if not token:
            break
    assert sorted(listed) == sorted(detail.guid for detail in details)
    assert max(sizes) > 2_900_000


# --- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, _SIZE - 1),
        (f"bytes=70000-{_SIZE + 5}", 70_000, _SIZE - 1),
        (f"bytes={_SIZE - 1}-{'9' * 30}", _SIZE - 1, _SIZE - 1),
    ],
)
def test_ranges(ann: RestClient, image: ImageDetail, asked: str, first: int, last: int) -> None:
    part = ann.get(f"/image/{image.guid}/content", range=asked)
    assert (part.status, part.body) == (206, _DATA[first : last + 1])
    assert part.headers["content-range"] == f"bytes {first}-{last}/{_SIZE}"
    assert part.headers["content-length"] == str(last - first + 1)
    assert part.headers["etag"] == f'"{image.sha256}"'


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=-500"},
        {"range": "bytes=0-9,20-29"},
        {"range": "bytes=9-5"},
        {"range": "lines=0-9"},
        {"range": "bytes=100-", "if_range": '"another"'},
        {"if_none_match": f'"{"0" * 64}"'},
        {"if_none_match": '"&guid=x"'},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_what_is_ignored(ann: RestClient, image: ImageDetail, headers: dict[str, str]) -> None:
    whole = ann.get(f"/image/{image.guid}/content", **headers)
    assert (whole.status, whole.body) == (200, _DATA)
    assert "content-range" not in whole.headers


@pytest.mark.parametrize("first", [_SIZE, _SIZE + 1, 10**30])
def test_ranges_beyond_the_end(ann: RestClient, image: ImageDetail, first: int) -> None:
    refused = ann.get(f"/image/{image.guid}/content", range=f"bytes={first}-")
    assert (refused.status, refused.reason) == (416, "OFFSET_OUT_OF_RANGE")
    assert refused.headers["content-range"] == f"bytes */{_SIZE}"
    assert "etag" not in refused.headers


def test_a_caller_who_holds_the_bytes(ann: RestClient, image: ImageDetail) -> None:
    etag = f'"{image.sha256}"'
    for headers in ({"if_none_match": etag}, {"if_none_match": f"W/{etag}", "range": "bytes=0-9"}):
        answer = ann.get(f"/image/{image.guid}/content", **headers)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in answer.headers
    assert answer.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(("version", "status"), [("--http1.1", 18), ("--http2-prior-knowledge", 92)])
def test_a_damaged_image_never_looks_complete(
    address: str, server: RunningServer, people: People, image: ImageDetail, tmp_path: Path, version: str, status: int
) -> None:
    damaged = store_image(server, people.ann, _DATA)
    server.image_file(damaged.guid).write_bytes(_DATA[:-1] + bytes([_DATA[-1] ^ 1]))
    outputs = {name: tmp_path / name for name in (damaged.guid, image.guid)}
    requests = {
        guid: ("--output", str(path), f"http://{address}/image/{guid}/content") for guid, path in outputs.items()
    }
    assert _curl(people.ann, version, *requests[damaged.guid]) == status
    assert outputs[damaged.guid].stat().st_size < _SIZE
    if version == "--http1.1":
        # On the same connection, if it stays open, the next response must not be taken for the rest.
        assert _curl(people.ann, version, *requests[damaged.guid], *requests[image.guid]) == 0
        assert outputs[image.guid].read_bytes() == _DATA


def _curl(login: Login, *arguments: str) -> int:
    """Run curl, and return its exit status."""
    curl = shutil.which("curl")
    if curl is None:
        leave_out("curl as a client of REST", "install curl", Required.CLUSTER)
    user = f"{login.username}:{login.password}"
    return subprocess.run(
        [curl, "--silent", "--max-time", str(TIMEOUT), "--user", user, *arguments], check=False
    ).returncode


def test_damage_before_the_first_byte(ann: RestClient, server: RunningServer, people: People) -> None:
    damaged = store_image(server, people.ann, b"small")
    server.image_file(damaged.guid).write_bytes(b"smale")
    refused = ann.get(f"/image/{damaged.guid}/content")
    assert (refused.status, refused.reason) == (500, "CONTENT_DAMAGED")
    assert "etag" not in refused.headers


def test_grpc_clients_of_the_download_service(address: str, image: ImageDetail, people: People) -> None:
    """What is for HTTP is metadata to them, and does not touch their statuses."""
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub = ImageDownloadServiceStub(channel)  # type: ignore[no-untyped-call]
        request = dpb.DownloadImageRequest(guid=image.guid, read_offset=10, read_limit=70_000)
        call = stub.DownloadImage(request, metadata=people.ann.metadata, timeout=TIMEOUT)
        first, *others = call
        assert first.content_type == "image/png"
        assert b"".join(body.data for body in (first, *others)) == _DATA[10:70_010]
        metadata = dict(call.initial_metadata())
        assert metadata["x-http-code"] == "206"
        assert metadata["x-http-content-length"] == "70000"
        assert metadata["x-request-id"]


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "reason"),
    [
        ("GET", _NOBODYS, None, 404, 5, "IMAGE_NOT_FOUND"),
        ("GET", f"{_NOBODYS}/content", None, 404, 5, "IMAGE_NOT_FOUND"),
        ("GET", "/image/nonsense", None, 400, 3, "INVALID_FIELD"),
        ("GET", "/image/a%2Fb", None, 400, 3, "INVALID_FIELD"),
        ("GET", "/image?pageSize=-1", None, 400, 3, "INVALID_FIELD"),
        ("POST", "/image", {"prompt": " "}, 400, 3, "INVALID_FIELD"),
        ("PATCH", _NOBODYS, {"updateMask": "sha256"}, 400, 3, "INVALID_FIELD"),
        # Refused by Envoy.
        ("GET", "/", None, 404, 5, None),
        ("GET", "/image/", None, 404, 5, None),
        ("GET", f"{_NOBODYS}/nothing", None, 404, 5, None),
        ("GET", "/pixyproxy.v1.ImageService/GetImage", None, 404, 5, None),
        ("DELETE", "/image", None, 405, 12, None),
        ("PUT", _NOBODYS, {}, 405, 12, None),
        ("POST", f"{_NOBODYS}/content", {}, 405, 12, None),
        ("OPTIONS", "/image", None, 405, 12, None),
        ("GET", "/image?nonsense=1", None, 400, 3, None),
        ("GET", "/image?pageSize=many", None, 400, 3, None),
        ("GET", f"{_NOBODYS}/thumbnail?rendition=RENDITION_7", None, 400, 3, None),
        ("POST", "/image", b'{"prompt": "', 400, 3, None),
        ("POST", "/image", [], 400, 3, None),
        ("POST", "/image", {"prompt": 5}, 400, 3, None),
        ("POST", "/image", {"prompt": "x", "visibility": "VISIBILITY_NONE"}, 400, 3, None),
        ("PATCH", _NOBODYS, {"guid": "another"}, 400, 3, None),
        ("POST", "/image", b" " * (1024 * 1024 + 1), 413, 3, None),
    ],
)
def test_bad_input(
    ann: RestClient, method: str, path: str, body: object, status: int, code: int, reason: str | None
) -> None:
    refused = ann.send(method, path, body)
    assert (refused.status, refused.json["code"], refused.reason) == (status, code, reason)
    assert refused.json["message"]
    if status == 405:
        assert method not in refused.headers["allow"].split(", ")


def _bodies(message: Descriptor) -> Iterator[dict[str, Any]]:
    """Give a body for each name in a message and in those inside it, as JSON and the contract spell it."""
    for field in message.fields:
        inner = field.message_type
        values: Iterable[Any] = [None]
        if inner is not None and inner.file.name.startswith("pixyproxy/"):
            values = ([body] if field.is_repeated else body for body in _bodies(inner))
        for value in values:
            yield {field.json_name: value}
            yield {field.name: value}


def test_every_name_of_the_contract_is_taken(ann: RestClient) -> None:
    requests = [
        ("POST", "/image", "CreateImageRequest"),
        ("PATCH", "/image/nonsense", "UpdateImageRequest"),
    ]
    for method, path, message in requests:
        bodies = list(_bodies(pb.DESCRIPTOR.message_types_by_name[message]))
        assert len(bodies) > 5
        for body in bodies:
            answer = ann.send(method, path, body)
            assert "unknown name" not in answer.json["message"], body


@pytest.mark.parametrize(
    ("method", "path", "body", "name"),
    [
        ("POST", "/image", {"reqest_id": "1"}, "reqest_id"),
        ("POST", "/image", {"quality": "high"}, "quality"),
        ("POST", "/image", {"options": {"size": SMALL.size, "tags": []}}, "tags"),
        ("POST", "/image", {"inputs": [{"guid": "x"}, {"image": "x"}]}, "image"),
        ("POST", "/image", {"tags": ["{", '"', "\\"], "PROMPT": "x"}, "PROMPT"),
        ("POST", "/image", {'a"b': 1}, None),
        ("PATCH", _NOBODYS, {"title": "x"}, "title"),
    ],
)
def test_unknown_names_in_a_body(
    ann: RestClient,
    stand_in: RunningStandIn,
    prompt: str,
    method: str,
    path: str,
    body: dict[str, Any],
    name: str | None,
) -> None:
    refused = ann.send(method, path, {**body, "prompt": prompt} if method == "POST" else body)
    expected = f"The JSON body has an unknown name{f': {name}' if name else ''}."
    assert (refused.status, refused.json) == (400, {"code": 3, "message": expected})
    assert stand_in.count(prompt) == 0


def test_credentials(address: str, people: People, prompt: str) -> None:
    for credentials, reason in (({}, "CREDENTIALS_MISSING"), ({"authorization": "Basic eDp4"}, "CREDENTIALS_INVALID")):
        refused = RestClient(address).send("POST", "/image", {"prompt": prompt}, credentials)
        assert (refused.status, refused.reason) == (401, reason)
        assert refused.headers["www-authenticate"].startswith("Basic ")


def test_a_server_that_is_away(tmp_path: Path) -> None:
    """Envoy's own errors are JSON, too, and to gRPC's clients statuses."""
    address, nobody = free_addresses(2)
    with running_envoy(tmp_path, address, [nobody] * 3), grpc.insecure_channel(address) as channel:
        refused = RestClient(address).get("/image")
        assert (refused.status, refused.json["code"]) == (503, 14)
        with pytest.raises(grpc.RpcError) as caught:
            image_stub(channel).ListImages(pb.ListImagesRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "{" not in (caught.value.details() or "")


# --- Browsers --------------------------------------------------------------------------------------------------------


def test_pages_of_named_origins_only(address: str) -> None:
    anybody = RestClient(address)
    for origin, allowed in ((_ORIGIN, _ORIGIN), ("https://elsewhere.example.com", None), ("null", None)):
        asked = {"origin": origin, "access-control-request-method": "PATCH"}
        preflight = anybody.send("OPTIONS", _NOBODYS, headers=asked)
        assert preflight.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in preflight.headers
        assert anybody.send("OPTIONS", _NOBODYS, headers=asked | {"origin": ""}).status == 405
        answer = anybody.get("/image", origin=origin)
        assert (answer.status, answer.headers.get("access-control-allow-origin")) == (200, allowed)


def test_grpc_web(address: str) -> None:
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": _ORIGIN}
    answer = RestClient(address).send("POST", "/pixyproxy.v1.ImageService/ListImages", _EMPTY_MESSAGE, headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert answer.headers["access-control-allow-origin"] == _ORIGIN
    assert b"grpc-status:0" in answer.body
