"""What the client for asyncio does beside what both clients do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import AsyncContentStream, AsyncPixyProxyClient, ContentStream, PixyProxyClient
from tests.support.scripted_server import Rpc, ScriptedServer, scripted_server
from tests.support.waiting import wait_until
from tests.unit.client.test_client import DATA, DETAIL, INFO, TIMEOUT, answer, part_of, send
from tests.unit.resource.fakes import GUID


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


async def taken(server: ScriptedServer, method: str) -> Rpc:
    return await asyncio.to_thread(server.take, method, TIMEOUT)


@pytest.mark.parametrize(
    ("blocking", "twin"),
    [(PixyProxyClient, AsyncPixyProxyClient), (ContentStream, AsyncContentStream)],
    ids=["client", "stream"],
)
def test_the_twins_have_the_same_methods_with_the_same_arguments(blocking: Any, twin: Any) -> None:
    def methods(kind: Any) -> dict[str, Any]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [str(parameter) for parameter in inspect.signature(method).parameters.values()]
            for name, method in found
            if not name.startswith("_")
        }

    assert methods(blocking) == methods(twin)


def test_calls_run_at_the_same_time(server: ScriptedServer) -> None:
    async def run() -> None:
        async with AsyncPixyProxyClient(server.address, timeout=TIMEOUT) as client:
            calls = [asyncio.create_task(client.get_image(GUID)) for _ in range(10)]
            for rpc in [await taken(server, "GetImage") for _ in calls]:
                answer(rpc, pb.GetImageResponse(image=DETAIL))
            assert {image.guid for image in await asyncio.gather(*calls)} == {GUID}

    asyncio.run(run())


def test_a_cancelled_task_ends_its_call(server: ScriptedServer) -> None:
    async def run() -> None:
        async with AsyncPixyProxyClient(server.address, timeout=TIMEOUT) as client:
            task = asyncio.create_task(client.create_image("a castle"))
            rpc = await taken(server, "CreateImage")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_until, lambda: not rpc.is_active, TIMEOUT, "the call to end")

    asyncio.run(run())


def test_a_cancelled_download_is_gone_on_with(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"

    async def run() -> None:
        async with AsyncPixyProxyClient(server.address, timeout=TIMEOUT) as client:
            written = asyncio.Event()
            task = asyncio.create_task(client.fetch_content(GUID, path, on_progress=lambda *_: written.set()))
            send(await taken(server, "GetImageContent"), DATA[:1000])
            await asyncio.wait_for(written.wait(), TIMEOUT)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert part_of(tmp_path).read_bytes() == DATA[:1000]

            task = asyncio.create_task(client.fetch_content(GUID, path))
            rpc = await taken(server, "GetImageContent")
            assert rpc.request.read_offset == 1000
            send(rpc, DATA[1000:])
            rpc.end()
            assert (await task).sha256 == INFO.sha256

    asyncio.run(run())
    assert path.read_bytes() == DATA


def test_a_download_that_is_cancelled_at_its_end_is_there_whole_or_not_at_all(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not closed while a thread still works on it."""
    path = tmp_path / "picture.png"

    async def run() -> None:
        async with AsyncPixyProxyClient(server.address, timeout=TIMEOUT) as client:
            task = asyncio.create_task(client.fetch_content(GUID, path))
            loop, synced = asyncio.get_running_loop(), asyncio.Event()

            def sync(descriptor: int) -> None:
                loop.call_soon_threadsafe(task.cancel)
                asyncio.run_coroutine_threadsafe(_wait_for_cancel(task), loop).result(TIMEOUT)
                loop.call_soon_threadsafe(synced.set)

            monkeypatch.setattr("os.fsync", sync)
            rpc = await taken(server, "GetImageContent")
            send(rpc, DATA)
            rpc.end()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert synced.is_set()

    asyncio.run(run())
    assert path.read_bytes() == DATA


async def _wait_for_cancel(task: asyncio.Task[Any]) -> None:
    while not task.cancelling():
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_client_may_be_made_before_there_is_an_event_loop(server: ScriptedServer) -> None:
    client = AsyncPixyProxyClient(server.address, timeout=TIMEOUT)

    async def run() -> None:
        task = asyncio.create_task(client.get_image(GUID))
        answer(await taken(server, "GetImage"), pb.GetImageResponse(image=DETAIL))
        assert (await task).guid == GUID
        await client.close()

    asyncio.run(run())
