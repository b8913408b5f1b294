"""Several RPC workers on one port: who serves, what they share, and what becomes of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.integration.windows import SMALL_WINDOW, begin_to_read
from tests.support.addresses import free_port
from tests.support.connections import Connections
from tests.support.database_servers import fresh_database
from tests.support.generation_client import generation_stub
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.processes import ask_threads, has_ended
from tests.support.rpc import TIMEOUT, refusal, refusal_of
from tests.support.servers import RunningServer, environment, image_stub, run_command, running_server
from tests.support.stored_images import store_image
from tests.support.waiting import wait_until

_WORKERS = 3
_SEVERAL = {"PIXYPROXY_WORKERS": str(_WORKERS)}
_MOST_CALLS = 2

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("a server has one process on this system", allow_module_level=True)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with several workers, which all live on."""
    with running_server(tmp_path_factory.mktemp("several"), _SEVERAL) as server:
        yield server


@pytest.fixture(params=["sqlite", "mysql", "mariadb"])
def several_on_any(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    """A server with several workers on each kind of database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("several")
        return
    with (
        fresh_database(request.getfixturevalue(f"{request.param}_server")) as url,
        running_server(tmp_path, _SEVERAL | {"PIXYPROXY_DATABASE_URL": url}) as server,
    ):
        yield server


def _wait_for_another(server: RunningServer, gone: int) -> None:
    """Wait until there are as many workers without one that goes as there were with it."""
    before = int(server.env["PIXYPROXY_WORKERS"])
    wait_until(lambda: len(server.rpc_workers - {gone}) == before, TIMEOUT, "another worker")


def _begin(server: RunningServer, stub: Any, prompt: str, stand_in: RunningStandIn) -> Any:
    """Begin a generation, and return the call when the provider is at work on it."""
    call = stub.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=server.admin.metadata, timeout=TIMEOUT
    )
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    return call


# --- Serving ---------------------------------------------------------------------------------------------------------


def test_each_worker_serves_on_a_core_of_its_own(several: RunningServer) -> None:
    assert several.output.count("listening on ") == 1
    with Connections(several) as connections:
        assert connections.one_to_each().keys() == several.rpc_workers
    assert len(several.rpc_workers) == _WORKERS
    cores = [core for pid in several.rpc_workers for core in os.sched_getaffinity(pid)]
    assert len(cores) == _WORKERS
    assert len(set(cores)) == min(_WORKERS, len(os.sched_getaffinity(0)))


def test_woken_threads_let_the_running_one_finish(several: RunningServer) -> None:
    policies = [policy for pid in several.rpc_workers for policy in ask_threads(pid, os.sched_getscheduler)]
    assert len(policies) > _WORKERS
    assert {*policies} == {os.SCHED_BATCH}


def test_what_one_worker_makes_all_the_others_find(several_on_any: RunningServer) -> None:
    author = several_on_any.new_login()
    with Connections(several_on_any) as connections:
        stubs = connections.one_to_each()
        made = {
            stub.CreateImage(
                pb.CreateImageRequest(prompt=f"by {worker}", options=SMALL), metadata=author.metadata, timeout=TIMEOUT
            ).image.guid
            for worker, stub in stubs.items()
        }
        for stub in stubs.values():
            # A page's token, too, is good at every worker.
            first = stub.ListImages(pb.ListImagesRequest(page_size=1), metadata=author.metadata, timeout=TIMEOUT)
            rest = [
                other.ListImages(
                    pb.ListImagesRequest(page_token=first.next_page_token), metadata=author.metadata, timeout=TIMEOUT
                )
                for other in stubs.values()
            ]
            for page in rest:
                assert {image.guid for image in (*first.images, *page.images)} == made


def test_the_supervisor_has_a_single_thread(several: RunningServer) -> None:
    # Else what it forks after a worker has died might hang on a lock that nobody holds.
    assert len(list(Path(f"/proc/{several.process.pid}/task").iterdir())) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_server_on_the_port_does_not_start(several: RunningServer, tmp_path: Path, workers: str) -> None:
    settings = {"PIXYPROXY_LISTEN": several.address, "PIXYPROXY_WORKERS": workers}
    done = run_command("serve", env=environment(tmp_path, settings))
    assert done.status == 1
    assert done.stderr.count(f"pixyproxy: PIXYPROXY_LISTEN: cannot listen on {several.address}") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_several_workers_do_not_share_the_port_of_another_server(server: RunningServer, tmp_path: Path) -> None:
    done = run_command("serve", "--workers", "2", env=environment(tmp_path, {"PIXYPROXY_LISTEN": server.address}))
    assert done.status == 1
    assert done.stderr.count(f"pixyproxy: PIXYPROXY_LISTEN: cannot listen on {server.address}") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PIXYPROXY_IMAGE_STORE": "/dev/null/images"}, "PIXYPROXY_IMAGE_STORE"),
        ({"OPENAI_API_KEY": "x y"}, "OPENAI_API_KEY"),
        ({"PIXYPROXY_LISTEN": "no-such-host.invalid:50051", "PIXYPROXY_ALLOW_PLAINTEXT": "true"}, "PIXYPROXY_LISTEN"),
    ],
    ids=str,
)
def test_what_keeps_all_workers_from_serving_is_said_once(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    done = run_command("serve", env=environment(tmp_path, _SEVERAL | settings))
    assert done.status == 1
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_workers_on_ipv6(tmp_path: Path) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with running_server(tmp_path, _SEVERAL | {"PIXYPROXY_LISTEN": "[::1]:0"}) as server:
        assert server.address.startswith("[::1]:")
        assert ImageClient(server, server.admin).create().author == "admin"


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_streams_are_counted_together(tmp_path: Path) -> None:
    with running_server(tmp_path, _SEVERAL | {"PIXYPROXY_MAX_STREAMS": "2"}) as server:
        image = store_image(server, server.admin, bytes(4 * 1024 * 1024))
        with Connections(server, *SMALL_WINDOW) as connections:
            first, second, third = connections.one_to_each().values()
            readers = [begin_to_read(stub, image.guid, server.admin) for stub in (first, second)]
            request = pb.GetImageContentRequest(guid=image.guid)
            refused = refusal(third.GetImageContent, request, server.admin.metadata)
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
            assert refused.retry_after
            start, *_, end = server.wait_for_end_of(refused.call_id)
            assert start.endswith("REQUEST START")
            assert "REQUEST END RESOURCE_EXHAUSTED" in end
            # Other calls go on, and so do streams when there is room again.
            third.GetImage(pb.GetImageRequest(guid=image.guid), metadata=server.admin.metadata, timeout=TIMEOUT)
            readers[0].cancel()
            wait_until(lambda: _can_read(third, image.guid, server), TIMEOUT, "the slot to be given back")
            readers[1].cancel()


def _can_read(stub: Any, guid: str, server: RunningServer) -> bool:
    call = stub.GetImageContent(pb.GetImageContentRequest(guid=guid), metadata=server.admin.metadata, timeout=TIMEOUT)
    try:
        return len(list(call)) > 1
    except grpc.RpcError:
        reason = refusal_of(call).reason
    assert reason == "TOO_BUSY"
    return False


def test_a_killed_worker_gives_its_calls_back_and_is_replaced(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    # One generation at a time makes two calls that may wait for one.
    settings = asking(stand_in) | {"PIXYPROXY_WORKERS": "2", "PIXYPROXY_MAX_GENERATIONS": "1"}
    with running_server(tmp_path, settings) as server, Connections(server) as connections:
        (killed, its), (other, others) = connections.one_to_each().items()
        request = pb.CreateImageRequest(prompt=f"{prompt} [[fault:hold]]", options=SMALL, request_id=str(uuid4()))
        calls = []
        for number in range(1, _MOST_CALLS + 1):
            calls.append(its.CreateImage.future(request, metadata=server.admin.metadata, timeout=TIMEOUT))
            wait_until(lambda n=number: server.log.count("[CreateImage:") == n, TIMEOUT, "the call to begin")  # type: ignore[misc]
            # The next one finds the generation of this one, and does not race it for the slot.
            wait_until(lambda: stand_in.count(request.prompt), TIMEOUT, "the submission")
        # A call is logged before it takes a slot. What is wrong is refused with the slot that it takes.
        wrong = pb.CreateImageRequest()
        wait_until(
            lambda: refusal(others.CreateImage, wrong, server.admin.metadata).reason == "TOO_BUSY",
            TIMEOUT,
            "all slots to be taken",
        )
        refused = refusal(others.CreateImage, request, server.admin.metadata)
        assert refused.message == f"Too many calls wait for a generation (limit {_MOST_CALLS}); try again."

        os.kill(killed, signal.SIGKILL)
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        others.ListImages(pb.ListImagesRequest(), timeout=TIMEOUT)
        _wait_for_another(server, killed)
        stand_in.release(request.prompt)
        assert others.CreateImage(request, metadata=server.admin.metadata, timeout=TIMEOUT).image.author == "admin"
        assert other in server.rpc_workers
        # The new one serves as well.
        assert connections.one_to_each().keys() == server.rpc_workers
        assert f"(process {killed}) has died. Signal 9" in server.log
    assert stand_in.count(request.prompt) == 1


def test_a_killed_generation_worker_gives_its_slots_back_and_is_replaced(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    settings = asking(stand_in) | {"PIXYPROXY_WORKERS": "2", "PIXYPROXY_MAX_GENERATIONS": "1"}
    with running_server(tmp_path, settings) as server, Connections(server) as connections:
        one, another = connections.one_to_each().values()
        workers = server.rpc_workers
        call = _begin(server, one, f"{prompt} [[fault:hang:times=1]]", stand_in)
        queued = another.CreateImage.future(
            pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=server.admin.metadata, timeout=TIMEOUT
        )
        wait_until(lambda: server.generation_states(prompt) == ["queued"], TIMEOUT, "the second request to be queued")

        os.kill(server.generation_worker, signal.SIGKILL)
        assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert queued.result().image.author == "admin"
        assert server.rpc_workers == workers
    assert stand_in.count(prompt) == 1


def test_workers_are_replaced_while_others_are_at_work(tmp_path: Path) -> None:
    with running_server(tmp_path, _SEVERAL) as server, Connections(server) as connections, ExitStack() as stack:
        guid = ImageClient(server, server.admin).create_public().guid
        pool = stack.enter_context(ThreadPoolExecutor(8))
        is_over = threading.Event()
        stack.callback(is_over.set)
        callers = [pool.submit(_call_until, is_over, server, guid) for _ in range(8)]
        for killed in server.rpc_workers:
            os.kill(killed, signal.SIGKILL)
            _wait_for_another(server, killed)
            assert connections.one_to_each().keys() == server.rpc_workers
        is_over.set()
        answered = [caller.result() for caller in callers]
        assert all(answered)


def _call_until(is_over: threading.Event, server: RunningServer, guid: str) -> int:
    """Ask for a detail over one connection after the other, and return how often it was answered."""
    answered = 0
    while not is_over.is_set():
        with server.new_channel() as channel:
            stub = image_stub(channel)
            for _ in range(20):
                try:
                    answered += stub.GetImage(pb.GetImageRequest(guid=guid), timeout=TIMEOUT).image.guid == guid
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    break  # This connection was to the one that was killed.
    return answered


def test_a_worker_that_is_told_to_end_finishes_and_is_replaced(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    settings = asking(stand_in) | {"PIXYPROXY_WORKERS": "2"}
    with running_server(tmp_path, settings) as server, Connections(server) as connections:
        worker, stub = connections.another()
        call = _begin(server, stub, f"{prompt} [[fault:slow=1.2]]", stand_in)
        os.kill(worker, signal.SIGTERM)
        assert call.result().image.prompt.startswith(prompt)
        _wait_for_another(server, worker)


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_for_the_group", [False, True], ids=["supervisor", "group"])
def test_all_workers_finish_what_they_do(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path, is_for_the_group: bool
) -> None:
    with (
        running_server(tmp_path, asking(stand_in) | _SEVERAL) as server,
        Connections(server) as connections,
    ):
        workers = server.rpc_workers | {server.generation_worker}
        calls = [
            _begin(server, stub, f"{prompt} {worker} [[fault:slow=1.2]]", stand_in)
            for worker, stub in connections.one_to_each().items()
        ]
        # A terminal, or a service manager, may tell all of them.
        for pid in workers if is_for_the_group else ():
            os.kill(pid, signal.SIGINT)
        server.terminate()
        assert all(call.result().image.prompt.startswith(prompt) for call in calls)
        assert server.process.wait(TIMEOUT) == 0
        assert all(has_ended(pid) for pid in workers)
        assert server.log_lines[-1].endswith("Stopped.")
        assert server.log.count("Draining") == 1


def test_a_second_signal_ends_all_at_once(stand_in: RunningStandIn, prompt: str, tmp_path: Path) -> None:
    with running_server(tmp_path, asking(stand_in) | _SEVERAL) as server, Connections(server) as connections:
        workers = server.rpc_workers | {server.generation_worker}
        _, stub = connections.another()
        call = _begin(server, stub, f"{prompt} [[fault:hang:times=1]]", stand_in)
        server.terminate()
        wait_until(lambda: "Draining" in server.log, TIMEOUT, "the first signal to be heard")
        server.terminate()
        assert server.process.wait(TIMEOUT) == -signal.SIGTERM
        assert all(has_ended(pid) for pid in workers)
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_workers_finish_and_end_when_their_supervisor_is_killed(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    # Not a port that the system chooses, which might be somebody's connection before the second server has it.
    settings = asking(stand_in) | _SEVERAL | {"PIXYPROXY_LISTEN": f"127.0.0.1:{free_port()}"}
    with running_server(tmp_path, settings) as server, Connections(server) as connections:
        workers = server.rpc_workers | {server.generation_worker}
        _, stub = connections.another()
        held = f"{prompt} [[fault:hold]]"
        call = _begin(server, stub, held, stand_in)
        server.kill()
        stand_in.release(held)
        assert call.result().image.prompt.startswith(prompt)
        wait_until(lambda: all(has_ended(pid) for pid in workers), TIMEOUT, "the workers to end")
    with running_server(tmp_path, settings) as server:
        assert len(ImageClient(server, server.admin).page().images) == 1


def test_the_port_of_the_metrics_is_free_while_a_generation_worker_finishes(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    settings = asking(stand_in) | _SEVERAL | {"PIXYPROXY_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
    wanted = f"{prompt} [[fault:hold]]"
    with running_server(tmp_path, settings) as server, grpc.insecure_channel(server.address) as channel:
        rpc_workers, generation_worker = server.rpc_workers, server.generation_worker
        request = gpb.CreateGenerationRequest(request=pb.CreateImageRequest(prompt=wanted, options=SMALL))
        generation_stub(channel).CreateGeneration(request, metadata=server.admin.metadata, timeout=TIMEOUT)
        wait_until(lambda: stand_in.count(wanted), TIMEOUT, "the submission")
        server.kill()
        wait_until(lambda: all(has_ended(pid) for pid in rpc_workers), TIMEOUT, "the RPC workers to end")
    with running_server(tmp_path, settings):
        assert not has_ended(generation_worker)
        stand_in.release(wanted)
        wait_until(lambda: has_ended(generation_worker), TIMEOUT, "the generation worker to finish")
