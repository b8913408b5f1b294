"""The queue of requests: what waits in it, in which order it is claimed, and by whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import SMALL
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer, running_server
from tests.support.waiting import wait_until

if not hasattr(os, "memfd_create"):
    pytest.skip("a server has one process on this system", allow_module_level=True)


@pytest.fixture
def settings(mysql_server: DatabaseServer, stand_in: RunningStandIn, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of servers on one database and one image folder."""
    with fresh_database(mysql_server) as url:
        yield {
            **asking(stand_in),
            "PIXYPROXY_DATABASE_URL": url,
            "PIXYPROXY_IMAGE_STORE": str(tmp_path / "images"),
        }


@pytest.fixture
def recorder(settings: dict[str, str], tmp_path: Path) -> Iterator[RunningServer]:
    """A server that records requests, and whose generation worker is stopped."""
    with running_server(tmp_path / "recorder", settings | {"PIXYPROXY_WORKERS": "2"}) as server:
        worker = server.stop_generation_worker()
        yield server
        if server.process.poll() is None:
            os.kill(worker, signal.SIGCONT)


def _queue(server: RunningServer, login: Login, prompt: str) -> Any:
    """Ask for an image, and return the call when the request is queued."""
    call = server.images.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=login.metadata, timeout=TIMEOUT
    )
    wait_until(
        lambda: call.done() or server.generation_states(prompt) == ["queued"], TIMEOUT, "the request to be queued"
    )
    assert not call.done(), call.exception()
    return call


def _submitted(stand_in: RunningStandIn, prompts: list[str]) -> list[str]:
    """Those of the prompts that were submitted, in their order."""
    return [sent["prompt"] for sent in stand_in.all_submissions()["requests"] if sent["prompt"] in prompts]


def test_another_server_generates_what_one_has_recorded(
    recorder: RunningServer, settings: dict[str, str], stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    call = _queue(recorder, recorder.admin, prompt)
    assert stand_in.count(prompt) == 0
    with running_server(tmp_path / "other", settings):
        assert call.result().image.prompt == prompt
    assert stand_in.count(prompt) == 1


def test_authors_take_turns_whoever_has_recorded_more(
    recorder: RunningServer, settings: dict[str, str], stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    ann, bob = recorder.new_login(), recorder.new_login()
    authors = {f"{prompt} {number}": author for number, author in enumerate([ann, ann, ann, ann, bob, bob])}
    calls = [_queue(recorder, author, text) for text, author in authors.items()]
    with running_server(tmp_path / "other", settings | {"PIXYPROXY_MAX_GENERATIONS": "1"}):
        assert all(call.result() for call in calls)
    submitted = _submitted(stand_in, list(authors))
    assert [authors[text] for text in submitted] == [ann, bob, ann, bob, ann, ann]
    # And those of one author in the order in which they were recorded.
    assert submitted == [f"{prompt} {number}" for number in (0, 4, 1, 5, 2, 3)]


def test_what_is_recorded_waits_for_the_circuit_to_close(
    recorder: RunningServer, settings: dict[str, str], stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    failing, waiting = ([f"{prompt} {number} {end}" for number in range(5)] for end in ("[[fault:502]]", "good"))
    calls = [_queue(recorder, recorder.admin, text) for text in (*failing, *waiting)]
    # Nobody waits for them any more; those who do are told of the open circuit.
    processes = [recorder.process.pid, *recorder.rpc_workers, recorder.generation_worker]
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    recorder.process.wait(TIMEOUT)
    assert all(call.exception() for call in calls)
    with running_server(tmp_path / "other", settings | {"PIXYPROXY_MAX_GENERATIONS": "1"}) as server:
        wait_until(lambda: server.generation_states(failing[-1]) == ["unknown"], TIMEOUT, "the circuit to open")
        assert [server.generation_states(text) for text in waiting] == [["queued"]] * len(waiting)
        assert _submitted(stand_in, waiting) == []
        wait_until(lambda: server.generation_states(waiting[-1]) == ["stored"], TIMEOUT, "the circuit to close")
    assert _submitted(stand_in, waiting) == waiting
