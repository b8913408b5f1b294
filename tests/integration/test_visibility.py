"""Who may see and change what."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.support.image_client import ImageClient
from tests.support.rpc import Refusal
from tests.support.servers import RunningServer

_READS: list[Callable[[str], Any]] = [
    lambda guid: pb.GetImageRequest(guid=guid),
    lambda guid: pb.GetImageContentRequest(guid=guid),
    lambda guid: pb.GetImageContentRequest(guid=guid, read_offset=2**40),
    lambda guid: pb.GetImageContentRequest(guid=guid, if_none_match="0" * 64),
]
_WRITES: list[Callable[[str], Any]] = [
    lambda guid: pb.UpdateImageRequest(guid=guid, filename="taken.png"),
    lambda guid: pb.DeleteImageRequest(guid=guid),
]


@pytest.fixture(scope="module")
def clients(server: RunningServer, people: People) -> dict[str, ImageClient]:
    """Everybody, by name; ann is the author of the images of these tests."""
    return {
        "ann": ImageClient(server, people.ann),
        "bob": ImageClient(server, people.bob),
        "root": ImageClient(server, people.root),
        "anybody": ImageClient(server),
    }


@pytest.fixture(scope="module")
def private(clients: dict[str, ImageClient]) -> pb.ImageDetail:
    """A private image of ann's that no test changes."""
    return clients["ann"].create("a private view", tags=["private view"])


@pytest.fixture(scope="module")
def public(clients: dict[str, ImageClient]) -> pb.ImageDetail:
    """A public image of ann's that no test changes."""
    return clients["ann"].create_public("a public view", tags=["public view"])


def _check_sees(client: ImageClient, image: pb.ImageDetail) -> None:
    assert client.get(image.guid) == image
    info, data = client.content(image.guid)
    assert (info.sha256, len(data)) == (image.sha256, image.size_bytes)
    assert client.guids(guid=image.guid) == [image.guid]


@pytest.mark.parametrize("who", ["ann", "root"])
def test_a_private_image_is_seen_by_its_author_and_admins(
    clients: dict[str, ImageClient], private: pb.ImageDetail, who: str
) -> None:
    _check_sees(clients[who], private)
    assert clients[who].guids(visibility=pb.VISIBILITY_PRIVATE, guid=private.guid) == [private.guid]
    assert clients[who].guids(visibility=pb.VISIBILITY_PUBLIC, guid=private.guid) == []


@pytest.mark.parametrize("who", ["ann", "bob", "root", "anybody"])
def test_a_public_image_is_seen_by_everybody(clients: dict[str, ImageClient], public: pb.ImageDetail, who: str) -> None:
    _check_sees(clients[who], public)
    assert clients[who].guids(visibility=pb.VISIBILITY_PUBLIC, guid=public.guid) == [public.guid]
    assert clients[who].guids(visibility=pb.VISIBILITY_PRIVATE, guid=public.guid) == []


def _without_guid(refused: Refusal, guid: str) -> str:
    """A refusal with everything in it, but for the guid that was asked for."""
    assert guid in repr(refused.as_seen)
    return repr(refused.as_seen).replace(guid, "GUID")


@pytest.mark.parametrize("who", ["bob", "anybody"])
@pytest.mark.parametrize("request_for", _READS)
def test_a_foreign_private_image_reads_exactly_as_a_missing_one(
    clients: dict[str, ImageClient], private: pb.ImageDetail, who: str, request_for: Callable[[str], Any]
) -> None:
    missing = str(uuid.uuid4())
    foreign_refusal = clients[who].refused(request_for(private.guid))
    missing_refusal = clients[who].refused(request_for(missing))
    assert (foreign_refusal.code, foreign_refusal.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    assert _without_guid(foreign_refusal, private.guid) == _without_guid(missing_refusal, missing)


@pytest.mark.parametrize("request_for", _WRITES)
def test_a_foreign_private_image_is_written_exactly_as_a_missing_one(
    clients: dict[str, ImageClient], private: pb.ImageDetail, request_for: Callable[[str], Any]
) -> None:
    missing = str(uuid.uuid4())
    foreign_refusal = clients["bob"].refused(request_for(private.guid))
    missing_refusal = clients["bob"].refused(request_for(missing))
    assert (foreign_refusal.code, foreign_refusal.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    assert _without_guid(foreign_refusal, private.guid) == _without_guid(missing_refusal, missing)
    _check_sees(clients["ann"], private)


@pytest.mark.parametrize("who", ["bob", "anybody"])
@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"prompt": "private view"},
        {"tags": ["private view"]},
        {"filename": "private"},
        {"visibility": pb.VISIBILITY_PRIVATE},
    ],
    ids=str,
)
def test_a_foreign_private_image_is_in_no_list(
    clients: dict[str, ImageClient], private: pb.ImageDetail, who: str, wanted: dict[str, Any]
) -> None:
    filters = wanted | {"author": private.author}
    assert private.guid in clients["ann"].guids(**filters, page_size=200)
    assert private.guid not in clients[who].guids(**filters, page_size=200)
    assert clients[who].guids(**filters, guid=private.guid) == []


@pytest.mark.parametrize("request_for", _WRITES)
def test_a_foreign_public_image_is_not_yours_to_write(
    clients: dict[str, ImageClient], public: pb.ImageDetail, request_for: Callable[[str], Any]
) -> None:
    refused = clients["bob"].refused(request_for(public.guid))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS")
    _check_sees(clients["ann"], public)


@pytest.mark.parametrize(
    "request_for", [*_WRITES, lambda _: pb.CreateImageRequest(prompt="nobody's"), lambda _: pb.CreateImageRequest()]
)
def test_who_is_not_signed_in_writes_nothing(
    clients: dict[str, ImageClient], public: pb.ImageDetail, request_for: Callable[[str], Any]
) -> None:
    before = clients["root"].server.image_files()
    refused = clients["anybody"].refused(request_for(public.guid))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    # Exactly as for an image that does not exist: nothing is looked up for strangers.
    assert clients["anybody"].refused(request_for(str(uuid.uuid4()))).as_seen == refused.as_seen
    _check_sees(clients["ann"], public)
    assert clients["root"].server.image_files() >= before


@pytest.mark.parametrize("visibility", [pb.VISIBILITY_PRIVATE, pb.VISIBILITY_PUBLIC])
def test_an_admin_changes_and_deletes_everybodys_images(
    clients: dict[str, ImageClient], visibility: pb.Visibility
) -> None:
    made = clients["ann"].create("to be moderated", visibility=visibility)
    changed = clients["root"].update(made.guid, tags=["moderated"])
    assert (changed.author, list(changed.tags)) == (made.author, ["moderated"])
    assert clients["ann"].get(made.guid) == changed
    clients["root"].delete(made.guid)
    assert clients["ann"].guids(guid=made.guid) == []


def test_what_becomes_private_again_is_gone_for_others(clients: dict[str, ImageClient]) -> None:
    made = clients["ann"].create_public("for a moment")
    _check_sees(clients["anybody"], made)
    clients["ann"].update(made.guid, visibility=pb.VISIBILITY_PRIVATE)
    for who in ("anybody", "bob"):
        assert clients[who].refused(pb.GetImageRequest(guid=made.guid)).reason == "IMAGE_NOT_FOUND"
        assert clients[who].guids(guid=made.guid) == []
