"""Replicas on one database and one object store behind a balancer: what must hold of the fleet as a whole."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.cluster.fleet import (
    WAIT_TIMEOUT,
    Balancer,
    Fleet,
    Load,
    assert_all_there,
    calls_of,
    content_of,
    running_fleet,
)
from tests.faults.site import OUTCOME_UNKNOWN, Answer, answer_to
from tests.faults.tcp_proxy import tcp_proxy
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.envoy import running_envoy
from tests.support.haproxy import running_haproxy
from tests.support.image_client import SMALL
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import refusal
from tests.support.servers import RunningServer, basic, image_stub
from tests.support.waiting import wait_until

_CALLERS = 8

behind_each_balancer = pytest.mark.parametrize("balancer", [running_haproxy, running_envoy], ids=["haproxy", "envoy"])

StartFleet = Callable[..., Fleet]


@pytest.fixture
def start_fleet(
    tmp_path: Path, mysql_server: DatabaseServer, s3_server: RunningObjectStore, stand_in: RunningStandIn
) -> Iterator[StartFleet]:
    """Start a fleet behind a balancer, with settings of the test's own beside the usual ones."""
    with ExitStack() as stack:

        def start(balancer: Balancer = running_haproxy, **settings: str) -> Fleet:
            usual = {
                "PIXYPROXY_DATABASE_URL": stack.enter_context(fresh_database(mysql_server)),
                "OPENAI_API_KEY": stand_in.api_key,
                "OPENAI_BASE_URL": stand_in.base_url,
                "PIXYPROXY_IMAGE_STORE": f"{s3_server.url}/{uuid.uuid4().hex}",
                **s3_server.env,
            }
            return stack.enter_context(running_fleet(tmp_path, usual | settings, balancer))

        yield start


def test_any_replica_serves_any_image(start_fleet: StartFleet) -> None:
    fleet = start_fleet()
    for server in fleet.replicas:
        request = pb.CreateImageRequest(prompt=f"made at {server.address}", options=SMALL)
        image = server.images.CreateImage(request, metadata=fleet.login.metadata, timeout=WAIT_TIMEOUT).image
        for reader in fleet.replicas:
            data = content_of(fleet, reader, image.guid)
            assert hashlib.sha256(data).hexdigest() == image.sha256
            page = reader.images.ListImages(
                pb.ListImagesRequest(prompt=server.address), metadata=fleet.login.metadata, timeout=WAIT_TIMEOUT
            )
            assert [found.guid for found in page.images] == [image.guid]


def test_one_request_id_raced_over_all_replicas_is_one_generation(
    start_fleet: StartFleet, stand_in: RunningStandIn
) -> None:
    fleet = start_fleet()
    for _ in range(5):
        prompt = f"raced {uuid.uuid4().hex} [[fault:slow=0.3]]"
        request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)
        with ThreadPoolExecutor(12) as pool:
            futures = [
                pool.submit(server.images.CreateImage, request, metadata=fleet.login.metadata, timeout=WAIT_TIMEOUT)
                for server in fleet.replicas * 4
            ]
        assert len({future.result().image.guid for future in futures}) == 1
        assert stand_in.count(prompt) == 1


@behind_each_balancer
def test_killed_replica_loses_no_acknowledged_image(
    start_fleet: StartFleet, stand_in: RunningStandIn, balancer: Balancer
) -> None:
    """Callers see no error either, but for generations that the killed replica had sent: those may be unknown."""
    fleet = start_fleet(balancer)
    load = Load(fleet)
    with load.running(_CALLERS):
        load.wait_for("create", 20)
        for place in range(len(fleet.replicas)):
            fleet.replicas[place].kill()
            load.wait_for("create", 20)
            fleet.start(place)
            fleet.wait_until_balanced()
    unknown = load.answers.pop(("create", f"FAILED_PRECONDITION {OUTCOME_UNKNOWN}"), 0)
    assert unknown <= _CALLERS * len(fleet.replicas)
    assert load.failures == {}
    assert_all_there(fleet, load, stand_in)


@behind_each_balancer
def test_rolling_restart_shows_no_failed_call(
    start_fleet: StartFleet, stand_in: RunningStandIn, balancer: Balancer
) -> None:
    fleet = start_fleet(balancer, PIXYPROXY_DRAIN_DELAY="1")
    load = Load(fleet)
    with load.running(_CALLERS):
        load.wait_for("create", 20)
        for place in range(len(fleet.replicas)):
            assert fleet.replicas[place].stop() == 0
            fleet.start(place)
            fleet.wait_until_balanced()
            load.wait_for("create", 10)
    assert load.failures == {}
    assert_all_there(fleet, load, stand_in)


def test_frozen_replica_delays_calls_and_fails_none(start_fleet: StartFleet, stand_in: RunningStandIn) -> None:
    """Envoy ends the calls of a replica that answers no pings; generations that it has sent may be unknown."""
    fleet = start_fleet(running_envoy)
    load = Load(fleet)
    # The callers end while the replica is frozen.
    with ExitStack() as freezing, load.running(_CALLERS):
        load.wait_for("create", 20)
        freezing.enter_context(fleet.replicas[0].frozen())
        load.wait_for("create", 20)
    assert load.answers.pop(("create", f"FAILED_PRECONDITION {OUTCOME_UNKNOWN}"), 0) <= _CALLERS
    assert load.failures == {}
    assert_all_there(fleet, load, stand_in)


def test_database_outage_takes_no_replica_out_of_service(start_fleet: StartFleet, mysql_server: DatabaseServer) -> None:
    with fresh_database(mysql_server) as url, tcp_proxy(mysql_server.host, mysql_server.port) as network:
        through_network = url.replace(f"{mysql_server.host}:{mysql_server.port}", f"127.0.0.1:{network.port}")
        fleet = start_fleet(running_envoy, PIXYPROXY_DATABASE_URL=through_network)
        network.refuse()
        with fleet.channel() as channel:
            before = [calls_of(server, "Check") for server in fleet.replicas]

            def was_checked_often() -> bool:
                refused = refusal(image_stub(channel).ListImages, pb.ListImagesRequest())
                assert refused.reason == "DATABASE_UNAVAILABLE"
                return all(
                    calls_of(server, "Check") > old + 8 for server, old in zip(fleet.replicas, before, strict=True)
                )

            wait_until(was_checked_often, WAIT_TIMEOUT, "health checks of all replicas")
        network.resume()
        fleet.wait_until_balanced()


def test_pacing_holds_for_the_fleet(start_fleet: StartFleet, stand_in: RunningStandIn) -> None:
    fleet = start_fleet(PIXYPROXY_IMAGES_PER_MINUTE="4")
    prompts = [f"paced {uuid.uuid4().hex}" for _ in range(12)]

    def ask(place: int) -> Answer:
        server = fleet.replicas[place % len(fleet.replicas)]
        request = pb.CreateImageRequest(prompt=prompts[place], options=SMALL)
        return answer_to(lambda: server.images.CreateImage(request, metadata=fleet.login.metadata, timeout=10))

    for server in fleet.replicas:
        # Otherwise the calls would spend their time on signing in.
        server.images.ListImages(pb.ListImagesRequest(), metadata=fleet.login.metadata, timeout=WAIT_TIMEOUT)
    with ThreadPoolExecutor(len(prompts)) as pool:
        told = [answer.as_told for answer in pool.map(ask, range(9))]
        assert told.count("OK") == 4
        # Of those who ask at the same moment some may be queued until their deadline.
        assert {one.split()[0] for one in told} <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
        # What cannot be submitted within the deadline is refused at once, by all servers.
        for answer in pool.map(ask, range(9, 12)):
            assert (answer.as_told, answer.seconds < 5) == ("RESOURCE_EXHAUSTED TOO_BUSY", True)
    assert sum(stand_in.count(prompt) for prompt in prompts) == 4


def test_failed_sign_ins_count_for_the_fleet(start_fleet: StartFleet) -> None:
    fleet = start_fleet(PIXYPROXY_MAX_FAILED_SIGN_INS="6", PIXYPROXY_SIGN_IN_WINDOW="600")
    wrong = basic(fleet.login.username, "not the password")

    def sign_in(server: RunningServer) -> str:
        return answer_to(
            lambda: server.images.ListImages(pb.ListImagesRequest(), metadata=wrong, timeout=WAIT_TIMEOUT)
        ).as_told

    told = [sign_in(server) for server in fleet.replicas * 3]
    assert told == ["UNAUTHENTICATED CREDENTIALS_INVALID"] * 6 + ["RESOURCE_EXHAUSTED TOO_MANY_SIGN_INS"] * 3


def test_calls_of_one_connection_are_shared_out(start_fleet: StartFleet) -> None:
    fleet = start_fleet()
    before = [calls_of(server, "ListImages") for server in fleet.replicas]

    def taken() -> list[int]:
        return [calls_of(server, "ListImages") - old for server, old in zip(fleet.replicas, before, strict=True)]

    with fleet.channel() as channel:
        for _ in range(60):
            image_stub(channel).ListImages(pb.ListImagesRequest(page_size=1), timeout=WAIT_TIMEOUT)
    wait_until(lambda: sum(taken()) >= 60, WAIT_TIMEOUT, "all calls to be logged")
    assert min(taken()) >= 10
