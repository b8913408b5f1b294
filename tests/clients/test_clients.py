"""Clients in other languages, made by their own usual tools, do everything that there is to do."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.generation_service_pb2_grpc import GenerationServiceStub
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import QuotaLimits
from pixyproxy.data.repositories.quotas import QuotaRepository
from tests.clients.conftest import TwoServers
from tests.clients.misbehaving import GUID, PARTIAL_IMAGES, PICTURE, Refusal, misbehaving
from tests.clients.projects import PROJECTS, SERVICE_CONFIG, Project, run_program
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_out_midnight, wait_until

_SIZE = 300_000
_RESUMED_AT = 100_000
# The client reaches none of them. The first one takes more than 32 bits.
_LIMITS = QuotaLimits(nano_usd_per_day=100 * 10**9, images_per_day=1000, generations_at_once=8)
_SERVICES = ("ImageService", "GenerationService", "UsageService")
_METHODS = ["CreateImage", "GetImage", "ListImages", "GetImageContent", "UpdateImage", "DeleteImage", "ImportImage"]
_METHODS += [
    "BatchGetThumbnails",
    "CreateGeneration",
    "GetGeneration",
    "ListGenerations",
    "WatchGeneration",
    "CancelGeneration",
    "SummarizeUsage",
    "GetQuota",
]

each_client = pytest.mark.parametrize("project", PROJECTS, ids=str)


def signed_in(address: str, login: Login) -> dict[str, str]:
    """The environment of a client's program."""
    return {"PIXY_ADDRESS": address, "PIXY_USERNAME": login.username, "PIXY_PASSWORD": login.password}


@dataclass(frozen=True)
class Expected:
    """What an error says to programs; a `retry_after` of None stands for any time up to a minute."""

    code: grpc.StatusCode
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[str, ...] = ()
    resource: str = ""
    quota: tuple[str, ...] = ()
    retry_after: float | None = 0


_REFUSALS = {
    "INVALID_FIELD": Expected(grpc.StatusCode.INVALID_ARGUMENT, violations=("filename", "prompt")),
    "CREDENTIALS_MISSING": Expected(grpc.StatusCode.UNAUTHENTICATED),
    "CREDENTIALS_INVALID": Expected(grpc.StatusCode.UNAUTHENTICATED),
    "TOO_MANY_SIGN_INS": Expected(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=None),
    "NOT_YOURS": Expected(grpc.StatusCode.PERMISSION_DENIED),
    "IMAGE_NOT_FOUND": Expected(grpc.StatusCode.NOT_FOUND, resource="00000000-0000-0000-0000-000000000000"),
    "REQUEST_ID_REUSED": Expected(grpc.StatusCode.ALREADY_EXISTS),
    "OFFSET_OUT_OF_RANGE": Expected(grpc.StatusCode.OUT_OF_RANGE),
    "CONTENT_DAMAGED": Expected(grpc.StatusCode.DATA_LOSS),
    "PROMPT_REFUSED": Expected(
        grpc.StatusCode.FAILED_PRECONDITION, metadata={"stage": "input", "categories": "violence,hate"}
    ),
    "PROVIDER_RATE_LIMITED": Expected(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=3000),
    "PROVIDER_QUOTA": Expected(grpc.StatusCode.RESOURCE_EXHAUSTED, quota=("provider account",)),
    "PROVIDER_MISCONFIGURED": Expected(grpc.StatusCode.FAILED_PRECONDITION),
    "PROVIDER_UNAVAILABLE": Expected(grpc.StatusCode.UNAVAILABLE),
    "PROVIDER_TIMEOUT": Expected(grpc.StatusCode.DEADLINE_EXCEEDED),
    "OUTCOME_UNKNOWN": Expected(grpc.StatusCode.FAILED_PRECONDITION),
}


# --- The whole job ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """What a client reports of its journey, and what was there before it."""

    report: Mapping[str, Any]
    author: ImageClient
    login: Login
    word: str
    tagged: list[str]


def journey(project: Project, server: RunningServer, folder: Path) -> Journey:
    """Have a client make its journey."""
    wait_out_midnight()
    author, other = server.new_login(), server.new_login()
    author_id = server.caller(author).user_id
    with server.database() as database, database.transaction() as context:
        QuotaRepository(context).set(author_id, _LIMITS)
        context.commit()
    word = secrets.token_hex(8)
    tagged = [make_detail(author, tags=[word]) for _ in range(5)]
    store_details(server, author, tagged)
    client = ImageClient(server, author)
    # The server counts them in the background, which must not come between what the client reports and the checks.
    wait_until(lambda: sum(row.images for row in _usage_of(client)) == len(tagged), TIMEOUT, "them to be counted")
    others = store_image(server, other, b"another's", visibility=Visibility.PUBLIC)
    damaged = store_image(server, other, b"as it was", visibility=Visibility.PUBLIC)
    server.image_file(damaged.guid).write_bytes(b"different")
    signing_in = signed_in(server.address, author)
    report = run_program(project, "journey", str(folder), word, others.guid, damaged.guid, env=signing_in)
    return Journey(report, client, author, word, [detail.guid for detail in reversed(tagged)])


def _usage_of(client: ImageClient) -> list[upb.UsageRow]:
    usage = UsageServiceStub(client.server.channel)  # type: ignore[no-untyped-call]
    request = upb.SummarizeUsageRequest(group_by=[upb.USAGE_GROUPING_AUTHOR, upb.USAGE_GROUPING_DAY])
    return list(usage.SummarizeUsage(request, metadata=client.metadata, timeout=TIMEOUT).rows)


@each_client
def test_the_whole_job(project: Project, server: RunningServer, tmp_path: Path, subtests: pytest.Subtests) -> None:
    made = journey(project, server, tmp_path)
    for check in (
        it_creates_and_gets,
        the_same_request_id_gives_the_same_image,
        it_sees_the_id_that_the_log_gives_its_call,
        it_lists_page_after_page,
        it_searches,
        it_streams_to_a_file_and_goes_on_where_a_file_ends,
        it_updates_what_the_mask_names,
        it_deletes,
        it_sees_what_it_has_used,
        it_sees_what_it_may_use,
        it_provokes_all_these_errors_and_no_others,
    ):
        with subtests.test(check.__name__):
            check(made)
    for reason, expected in _REFUSALS.items():
        with subtests.test(reason):
            it_reads_the_error(made, reason, expected)


def it_creates_and_gets(journey: Journey) -> None:
    created = journey.report["created"]

    assert created["prompt"] == f"A lighthouse in a storm 🌊 {journey.word} [[fault:large={_SIZE}]]"
    assert created["tags"] == ["sea", "日の出"]
    assert created["author"] == journey.login.username
    assert created["visibility"] == "VISIBILITY_PRIVATE"
    assert created["size_bytes"] == _SIZE
    assert journey.report["got"] == created


def the_same_request_id_gives_the_same_image(journey: Journey) -> None:
    assert journey.report["again"] == journey.report["created"]["guid"]


def it_sees_the_id_that_the_log_gives_its_call(journey: Journey) -> None:
    lines = journey.author.server.wait_for_end_of(journey.report["request_id"])

    assert "[GetImage:" in lines[0]


def it_lists_page_after_page(journey: Journey) -> None:
    first, second, third, fourth, fifth = journey.tagged

    assert journey.report["pages"] == [[first, second], [third, fourth], [fifth]]


def it_searches(journey: Journey) -> None:
    assert journey.report["found"] == [journey.report["created"]["guid"]]


def it_streams_to_a_file_and_goes_on_where_a_file_ends(journey: Journey) -> None:
    picture = Path(journey.report["path"]).read_bytes()

    assert hashlib.sha256(picture).hexdigest() == journey.report["created"]["sha256"]
    assert journey.report["received"] == len(picture) == _SIZE
    assert journey.report["resumed"] == _SIZE - _RESUMED_AT


def it_updates_what_the_mask_names(journey: Journey) -> None:
    assert journey.report["updated"] == journey.report["created"] | {"tags": ["night"]}


def it_deletes(journey: Journey) -> None:
    refused = journey.author.refused(pb.GetImageRequest(guid=journey.report["created"]["guid"]))

    assert refused.reason == "IMAGE_NOT_FOUND"


def it_sees_what_it_has_used(journey: Journey) -> None:
    rows = _usage_of(journey.author)

    assert journey.report["usage"] == [
        {
            "author": row.author,
            "day": row.day,
            "images": row.images,
            "unknown_outcomes": row.unknown_outcomes,
        }
        for row in rows
    ]
    assert {row.author for row in rows} == {journey.login.username}
    assert sum(row.images for row in rows) > 0


def it_sees_what_it_may_use(journey: Journey) -> None:
    usage = UsageServiceStub(journey.author.server.channel)  # type: ignore[no-untyped-call]
    request = upb.GetQuotaRequest()
    quotas = usage.GetQuota(request, metadata=journey.login.metadata, timeout=TIMEOUT).quotas

    assert journey.report["quotas"] == [
        {
            "name": quota.name,
            "limit": quota.limit,
            "used": quota.used,
            "resets_at": quota.resets_at.seconds,
        }
        for quota in quotas
    ]
    assert [(quota.name, quota.limit) for quota in quotas] == [
        ("usd_per_day", _LIMITS.nano_usd_per_day),
        ("images_per_day", _LIMITS.images_per_day),
        ("generations_at_once", _LIMITS.generations_at_once),
    ]
    assert [quota.used > 0 for quota in quotas] == [True, True, False]
    assert [quota.HasField("resets_at") for quota in quotas] == [True, True, False]


def it_provokes_all_these_errors_and_no_others(journey: Journey) -> None:
    assert journey.report["refusals"].keys() == _REFUSALS.keys()


def it_reads_the_error(journey: Journey, reason: str, expected: Expected) -> None:
    refusal = journey.report["refusals"][reason]

    assert (refusal["code"], refusal["reason"], refusal["domain"]) == (expected.code.value[0], reason, "pixyproxy")
    assert (refusal["metadata"] or {}) == expected.metadata
    assert tuple(sorted(refusal["violations"] or ())) == expected.violations
    assert (refusal["resource"], tuple(refusal["quota"] or ())) == (expected.resource, expected.quota)
    if expected.retry_after is None:
        assert 0 < refusal["retry_after"] <= 60
    else:
        assert refusal["retry_after"] == expected.retry_after
    assert refusal["header_request_id"] == [refusal["request_id"]]
    assert journey.author.server.wait_for_end_of(refusal["request_id"])


# --- Imports and edits -----------------------------------------------------------------------------------------------


@each_client
def test_a_picture_is_imported_and_edited(project: Project, server: RunningServer, tmp_path: Path) -> None:
    author = server.new_login()
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.effect_noise((512, 384), 64).save(photo)
    Image.new("RGBA", (512, 384)).save(mask)
    assert photo.stat().st_size > 128 * 1024  # more than one message

    report = run_program(project, "edits", str(photo), str(mask), env=signed_in(server.address, author))

    imported, edited = report["imported"], report["edited"]
    assert imported["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert (imported["prompt"], imported["tags"], imported["origin"]) == ("a photo", ["holiday"], "ORIGIN_IMPORTED")
    assert report["again"] == imported["guid"]
    assert (edited["origin"], edited["source_guids"]) == ("ORIGIN_EDITED", [imported["guid"]])
    assert edited["prompt"] == "The same by night"
    assert edited["quality"]
    assert (report["damaged"]["reason"], list(report["damaged"]["violations"])) == ("INVALID_FIELD", ["info.sha256"])
    order = [imported["guid"], "00000000-0000-0000-0000-000000000000", edited["guid"]]
    missing = report["missing"]
    assert (missing["reason"], missing["metadata"]) == ("IMAGE_NOT_FOUND", {"field": "inputs[1]"})
    assert missing["resource"] == "00000000-0000-0000-0000-000000000000"
    first, nothing, last = sorted(report["thumbnails"], key=lambda one: order.index(one["guid"]))
    for thumbnail in (first, last):
        assert (thumbnail["content_type"], thumbnail["error"], thumbnail["is_there"]) == ("image/webp", "", True)
    assert (first["width"], first["height"]) == (256, 192)
    assert (nothing["error"], nothing["is_there"]) == ("IMAGE_NOT_FOUND", False)


# --- Sending again ---------------------------------------------------------------------------------------------------


def _configured() -> dict[str, int]:
    """How often the service config lets gRPC attempt a call of each method that fails with UNAVAILABLE."""
    attempts = dict.fromkeys(_METHODS, 1)
    for config in json.loads(SERVICE_CONFIG.read_text())["methodConfig"]:
        assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
        for name in config["name"]:
            if name["service"] == "pixyproxy.v1.ImageDownloadService":
                continue  # The programs do not call it.
            assert name["service"].removeprefix("pixyproxy.v1.") in _SERVICES
            attempts[name["method"]] = config["retryPolicy"]["maxAttempts"]
    return attempts


def test_the_config_repeats_only_what_is_the_same_when_it_is_done_twice() -> None:
    repeated = {method for method, attempts in _configured().items() if attempts > 1}

    assert repeated == {*_METHODS} - {"CreateImage", "DeleteImage", "ImportImage", "CreateGeneration"}


_ANYBODY = Login("anybody", "anything")


@each_client
@pytest.mark.parametrize("times", [1, 1000])
def test_grpc_sends_again_exactly_what_the_config_says(project: Project, times: int) -> None:
    with misbehaving(Refusal(grpc.StatusCode.UNAVAILABLE, times)) as server:
        ended = run_program(project, "calls", env=signed_in(server.address, _ANYBODY))

    attempts = {method: min(times + 1, allowed) for method, allowed in _configured().items()}
    assert server.counts == attempts
    unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
    assert ended == {method: 0 if count > times else unavailable for method, count in attempts.items()}


@each_client
@pytest.mark.parametrize(
    "refusal",
    [
        # Once initial metadata came, which PixyProxy sends at once, gRPC leaves it to the program.
        Refusal(grpc.StatusCode.UNAVAILABLE, after_headers=True),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.1),
    ],
    ids=["after headers", "exhausted"],
)
def test_grpc_sends_nothing_else_again(project: Project, refusal: Refusal) -> None:
    with misbehaving(refusal) as server:
        ended = run_program(project, "calls", env=signed_in(server.address, _ANYBODY))

    assert server.counts == dict.fromkeys(_METHODS, 1)
    assert ended == dict.fromkeys(_METHODS, refusal.code.value[0])


@each_client
@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, after_headers=True, retry_after=0.5),
        Refusal(grpc.StatusCode.UNAVAILABLE, after_headers=True),
    ],
    ids=["told when", "not told when"],
)
def test_the_program_sends_again_what_it_may(project: Project, refusal: Refusal, tmp_path: Path) -> None:
    with misbehaving(refusal) as server:
        report = run_program(project, "repeats", str(tmp_path), env=signed_in(server.address, _ANYBODY))

    first, second = server.requests("CreateImage")
    assert first.request_id
    assert second == first
    assert report["guid"] == GUID
    # Refused, broken off after a chunk, and gone on with from there.
    offsets = [request.read_offset for request in server.requests("GetImageContent")]
    assert offsets == [0, 0, 64 * 1024]
    assert report["received"] == len(PICTURE)
    assert Path(report["path"]).read_bytes() == PICTURE


# --- Generations -----------------------------------------------------------------------------------------------------


@each_client
def test_a_watch_goes_on_where_it_broke_off(project: Project) -> None:
    with misbehaving(Refusal(grpc.StatusCode.UNAVAILABLE, after_headers=True)) as server:
        report = run_program(project, "watches", server.address, env=signed_in(server.address, _ANYBODY))

    first, second = server.requests("CreateGeneration")
    assert first.request.request_id
    assert second == first
    # Refused, broken off in the middle of the second partial image, and gone on with.
    assert [request.guid for request in server.requests("WatchGeneration")] == [GUID] * 3
    assert report == {
        "guid": GUID,
        "states": [f"GENERATION_STATE_{state}" for state in ("QUEUED", "SUBMITTED", "SUCCEEDED")],
        "partials": [f"image/png {hashlib.sha256(data).hexdigest()}" for data in PARTIAL_IMAGES],
        "image": GUID,
    }


@each_client
def test_a_generation_is_watched_at_another_server(project: Project, two_servers: TwoServers) -> None:
    here, there = two_servers.here, two_servers.there
    env = signed_in(here.address, here.admin)
    with two_servers.resting() as resume, ThreadPoolExecutor(1) as pool:
        known = _watches(there)
        run = pool.submit(run_program, project, "watches", there.address, env=env)
        wait_until(lambda: _watches(there) > known, TIMEOUT, "the watch to begin")
        resume()
        report = run.result()

    states = [f"GENERATION_STATE_{state}" for state in ("QUEUED", "SUBMITTED", "SUCCEEDED")]
    assert report["states"] == [state for state in states if state in report["states"]]
    assert (report["states"][0], report["states"][-1]) == (states[0], states[-1])
    assert len(report["partials"]) == 2
    assert ImageClient(here, here.admin).get(report["image"]).prompt == "A lighthouse"


def _watches(server: RunningServer) -> int:
    """How many have begun; the line of the end of one before may come late."""
    return sum("[WatchGeneration:" in line and "REQUEST START" in line for line in server.log_lines)


@each_client
def test_a_queued_generation_is_cancelled(project: Project, two_servers: TwoServers) -> None:
    here, another = two_servers.here, two_servers.there
    ended = ImageClient(here, here.admin).create("made before")
    generations = GenerationServiceStub(here.channel)  # type: ignore[no-untyped-call]
    page = generations.ListGenerations(
        gpb.ListGenerationsRequest(page_size=1), metadata=here.admin.metadata, timeout=TIMEOUT
    )
    assert page.generations[0].image_guid == ended.guid
    with two_servers.resting():
        report = run_program(project, "cancels", page.generations[0].guid, env=signed_in(another.address, here.admin))

    states = ["GENERATION_STATE_QUEUED", "GENERATION_STATE_CANCELLED", "GENERATION_STATE_CANCELLED"]
    assert (report["states"], report["refused"]) == (states, "ALREADY_SUBMITTED")
