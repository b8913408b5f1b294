"""Servers that are told to end while something in them hangs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import mysql.connector
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.contract.databases import address_of
from tests.integration.conftest import asking
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.servers import running_server
from tests.support.waiting import wait_until

_TIMEOUT = 60.0
_TABLES = ("images", "generations", "deletions", "image_tail")
# The database would be waited for this long.
_HANGING = {"PIXYPROXY_DATABASE_TIMEOUT": "3600", "PIXYPROXY_DRAIN_TIMEOUT": "0.2"}


@contextmanager
def _locked(url: str) -> Iterator[Any]:
    """Lock the tables, so that whoever asks for them hangs; give a connection beside it."""
    address = address_of(url)
    (host,) = address.hosts

    def connect() -> Any:
        return mysql.connector.connect(
            host=host.name,
            port=host.port,
            user=address.user,
            password=address.password.get_secret_value(),
            database=address.database,
            autocommit=True,
        )

    with closing(connect()) as locking, closing(connect()) as looking:
        locking.cursor().execute(f"LOCK TABLES {', '.join(f'{table} WRITE' for table in _TABLES)}")
        yield looking


def _hanging(looking: Any, url: str) -> int:
    """How many statements wait for the tables."""
    cursor = looking.cursor(dictionary=True)
    cursor.execute("SHOW PROCESSLIST")
    rows = cursor.fetchall()
    name = address_of(url).database
    return sum(row["db"] == name and str(row["State"]).startswith("Waiting for table") for row in rows)


def _wait_for_hanging(looking: Any, url: str, count: int) -> None:
    wait_until(lambda: _hanging(looking, url) >= count, _TIMEOUT, "the calls to hang")


@pytest.fixture
def url(mysql_server: DatabaseServer) -> Iterator[str]:
    with fresh_database(mysql_server) as url:
        yield url


def test_calls_that_hang_do_not_keep_a_server_from_ending(url: str, tmp_path: Path) -> None:
    settings = _HANGING | {"PIXYPROXY_DATABASE_URL": url, "PIXYPROXY_WORKERS": "2"}
    with running_server(tmp_path, settings) as server:
        image = ImageClient(server, server.admin).create_public()
        with _locked(url) as looking:
            calls = [
                server.images.GetImage.future(pb.GetImageRequest(guid=image.guid)),
                server.images.ListImages.future(pb.ListImagesRequest()),
                server.images.GetImageContent(pb.GetImageContentRequest(guid=image.guid)),
            ]
            # Statements of the server's own hang, too, and are no calls.
            wait_until(lambda: server.log.count("REQUEST START") >= len(calls) + 1, _TIMEOUT, "the calls to begin")
            _wait_for_hanging(looking, url, len(calls))

            server.terminate()

            assert server.process.wait(_TIMEOUT) == 0
            assert {call.code() for call in calls} <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
        assert f"{len(calls)} calls are still running" in server.log


# As `pixyproxy serve` with short timeouts for storing images.
_SERVE_WITH_SHORT_TIMEOUTS = """
from pixyproxy.serving.logs import set_up_logging
from pixyproxy.serving.workers import EndLimits, serve_alone
from pixyproxy.settings import Settings

settings, limits = Settings(), EndLimits(close=1, store=1)
set_up_logging(settings.log_level)

def announce(address):
    print("listening on", address, flush=True)

serve_alone(settings, print, announce, limits)
"""


def test_a_generation_that_hangs_does_not_keep_a_server_for_ever(
    url: str, tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    settings = _HANGING | asking(stand_in) | {"PIXYPROXY_DATABASE_URL": url}
    command = [sys.executable, "-c", _SERVE_WITH_SHORT_TIMEOUTS]
    prompt += " [[fault:hold]]"
    with running_server(
        tmp_path, settings | {"PIXYPROXY_PROVIDER_TIMEOUT": "3"}, command=command, tracebacks=True
    ) as server:
        client = ImageClient(server, server.admin)
        call = client.stub.CreateImage.future(
            pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=client.metadata
        )
        wait_until(lambda: stand_in.count(prompt), _TIMEOUT, "the submission")
        with _locked(url):
            server.terminate()
            stand_in.release(prompt)

            assert server.process.wait(_TIMEOUT) == 1
            assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        # It says where it hangs.
        assert "Timeout (" in server.log
        assert "creation/worker.py" in server.log


def test_a_request_that_cannot_be_recorded_does_not_keep_a_server_from_ending(url: str, tmp_path: Path) -> None:
    settings = _HANGING | {"PIXYPROXY_DATABASE_URL": url, "PIXYPROXY_WORKERS": "2"}
    with running_server(tmp_path, settings) as server:
        client = ImageClient(server, server.admin)
        client.page()  # The credentials are known from now on.
        with _locked(url) as looking:
            hanging = _hanging(looking, url)
            call = client.stub.CreateImage.future(
                pb.CreateImageRequest(prompt="hanging", options=SMALL), metadata=client.metadata
            )
            _wait_for_hanging(looking, url, hanging + 1)

            server.terminate()

            assert server.process.wait(_TIMEOUT) == 0
            assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
