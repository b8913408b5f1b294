"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self, TypeVar, Unpack

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import calls
from pixyproxy.client.base import BaseClient
from pixyproxy.client.calls import Call, Changes, CreateOptions, Filters, GenerationFilters, ImportOptions
from pixyproxy.client.content import BaseContentStream
from pixyproxy.client.download import Download, OnProgress
from pixyproxy.client.errors import (
    ContentDamagedError,
    InvalidRequestError,
    PixyProxyClientError,
    UnavailableError,
    error_of,
)
from pixyproxy.client.generations import Generation, PartialImage, Watch
from pixyproxy.client.models import ContentInfo, ImageDetail, ImagePage, Rendition, Thumbnail
from pixyproxy.client.retry import Attempts
from pixyproxy.client.upload import Source, Upload
from pixyproxy.client.usage import Quota, UsageGrouping, UsageRow

Answer = TypeVar("Answer")


class AsyncContentStream(BaseContentStream["AsyncPixyProxyClient"]):
    """The same as ContentStream, for ``async for``.

    Attributes:
        info: the image.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive; see ContentStream."""
        while not self._is_complete:
            try:
                with self._client._translating():
                    async for message in self._messages:
                        yield self._take(message)
                break
            except PixyProxyClientError as error:
                if not self._is_complete:
                    await self._client._wait_after(error, self._attempts)
                    await self._open()
        self._check()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _open(self) -> Self:
        """Start the call, and wait for ``info``."""
        while True:
            self._ask()
            try:
                with self._client._translating():
                    first = await anext(aiter(self._messages), pb.GetImageContentResponse())
            except PixyProxyClientError as error:
                await self._client._wait_after(error, self._attempts)
            else:
                self._begin(first)
                return self


class AsyncPixyProxyClient(BaseClient[grpc.aio.Channel]):
    """The same as PixyProxyClient, for the tasks of one event loop.

    The methods have the same names, arguments and errors. They are coroutines or asynchronous iterators. Cancelling a
    task cancels its call, but not a generation that the server has submitted to the provider. The client may be created
    outside of the event loop.
    """

    _module = grpc.aio
    _closed: asyncio.Event
    _event_kind = asyncio.Event
    _watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel all calls, and close the connection; see PixyProxyClient."""
        channel = self._closing()
        if self._watching is not None:
            self._watching.cancel()
        if channel is not None:
            await channel.close()

    # --- Create, import, change, delete ---------------------------------------------------------------------------

    async def create_image(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[CreateOptions]
    ) -> ImageDetail:
        """Generate an image; see PixyProxyClient."""
        return await self._send(calls.create_image(prompt, **options), timeout)

    async def import_image(
        self,
        source: Source,
        description: str = "",
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **options: Unpack[ImportOptions],
    ) -> ImageDetail:
        """Store an image of your own; see PixyProxyClient."""
        call = calls.import_image(description, **options)
        with Upload(source, on_progress) as upload:
            return await self._send(call, timeout, upload)

    async def update_image(self, guid: str, *, timeout: float | None = None, **changes: Unpack[Changes]) -> ImageDetail:
        """Change an image; see Changes."""
        return await self._send(calls.update_image(guid, **changes), timeout)

    async def delete_image(self, guid: str, *, timeout: float | None = None) -> None:
        """Delete an image for good; see PixyProxyClient."""
        await self._send(calls.delete_image(guid), timeout)

    # --- Read ----------------------------------------------------------------------------------------------------

    async def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether the server is serving. Needs no credentials."""
        return await self._send(calls.is_serving(), timeout)

    async def get_image(self, guid: str, *, timeout: float | None = None) -> ImageDetail:
        """Get the details of an image."""
        return await self._send(calls.get_image(guid), timeout)

    async def list_page(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None, **filters: Unpack[Filters]
    ) -> ImagePage:
        """Get a page of images, newest first; see PixyProxyClient."""
        return await self._send(calls.list_images(page_size, page_token, **filters), timeout)

    async def list_images(
        self, *, page_size: int = 0, timeout: float | None = None, **filters: Unpack[Filters]
    ) -> AsyncIterator[ImageDetail]:
        """Yield all images that match the filters, newest first; see PixyProxyClient."""
        page = ImagePage((), "")
        while True:
            page = await self.list_page(
                page_size=page_size, page_token=page.next_page_token, timeout=timeout, **filters
            )
            for image in page.images:
                yield image
            if not page.next_page_token:
                return

    def search_images(self, words: str, **filters: Unpack[Filters]) -> AsyncIterator[ImageDetail]:
        """Yield all images whose prompts have these words, newest first; the last one may be the start of a word."""
        return self.list_images(**(filters | Filters(prompt=words)))

    # --- Content -------------------------------------------------------------------------------------------------

    async def stream_content(
        self,
        guid: str,
        *,
        read_offset: int = 0,
        read_limit: int = 0,
        if_none_match: str = "",
        rendition: Rendition | None = None,
        timeout: float | None = None,
    ) -> AsyncContentStream:
        """Read an image's bytes as they arrive; see PixyProxyClient."""
        call = calls.get_content(
            guid, read_offset=read_offset, read_limit=read_limit, if_none_match=if_none_match, rendition=rendition
        )
        return await AsyncContentStream(self, call, self._attempts(call, timeout))._open()

    async def fetch_content(
        self,
        guid: str,
        path: str | Path,
        *,
        overwrite: bool = False,
        rendition: Rendition | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> ContentInfo:
        """Save an image's bytes as a file, atomically and verified; see PixyProxyClient."""
        with Download(guid, path, overwrite=overwrite, rendition=rendition) as download:
            while True:
                try:
                    async with await self.stream_content(
                        guid, read_offset=download.held, rendition=rendition, timeout=timeout
                    ) as stream:
                        await _in_thread(download.begin)
                        async for data in stream:
                            # Faster than in a thread, because it only writes to the system's cache.
                            download.write(data)
                            if on_progress is not None:
                                on_progress(download.held, stream.info.size_bytes)
                    await _in_thread(partial(download.finish, stream.info))
                except (InvalidRequestError, ContentDamagedError) as error:
                    download.start_over(error)
                else:
                    return stream.info

    async def get_thumbnails(
        self, guids: Iterable[str], *, rendition: Rendition = 256, timeout: float | None = None
    ) -> AsyncIterator[Thumbnail]:
        """Yield small WebP copies of images; see PixyProxyClient."""
        calls.check(guids=guids)
        rest = list(guids)
        while rest:
            thumbnails, rest = await self._send(calls.get_thumbnails(rest, rendition), timeout)
            for thumbnail in thumbnails:
                yield thumbnail

    # --- Generations ---------------------------------------------------------------------------------------------

    async def create_generation(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[CreateOptions]
    ) -> Generation:
        """Record a request for an image and return at once; see PixyProxyClient."""
        return await self._send(calls.create_generation(prompt, **options), timeout)

    async def get_generation(self, guid: str = "", *, request_id: str = "", timeout: float | None = None) -> Generation:
        """Get a generation by its guid or by the ``request_id`` of its request."""
        return await self._send(calls.get_generation(guid, request_id), timeout)

    async def list_generations(
        self, *, page_size: int = 0, timeout: float | None = None, **filters: Unpack[GenerationFilters]
    ) -> AsyncIterator[Generation]:
        """Yield all generations that match the filters, newest first; see PixyProxyClient."""
        page_token = ""
        while True:
            call = calls.list_generations(page_size, page_token, **filters)
            generations, page_token = await self._send(call, timeout)
            for generation in generations:
                yield generation
            if not page_token:
                return

    def watch_generation(
        self, guid: str = "", *, request_id: str = "", timeout: float | None = None
    ) -> AsyncIterator[Generation | PartialImage]:
        """Yield a generation now and after each change, and its partial images, until it ends; see PixyProxyClient."""
        call = calls.watch_generation(guid, request_id)
        return self._events(call, self._attempts(call, timeout))

    async def wait_for_generation(
        self, guid: str = "", *, request_id: str = "", timeout: float | None = None
    ) -> ImageDetail:
        """Return the image of a generation once that has ended; see PixyProxyClient."""
        events = self.watch_generation(guid, request_id=request_id, timeout=timeout)
        return [event async for event in events if isinstance(event, Generation)][-1].result()

    async def cancel_generation(self, guid: str, *, timeout: float | None = None) -> Generation:
        """Cancel a generation that is queued, which costs nothing; see PixyProxyClient."""
        return await self._send(calls.cancel_generation(guid), timeout)

    # --- Usage ---------------------------------------------------------------------------------------------------

    async def summarize_usage(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        group_by: Sequence[UsageGrouping] = (),
        author: str = "",
        timeout: float | None = None,
    ) -> list[UsageRow]:
        """Sum up what was spent in a period; see PixyProxyClient."""
        return await self._send(calls.summarize_usage(start, end, group_by, author), timeout)

    async def get_quotas(self, author: str = "", *, timeout: float | None = None) -> list[Quota]:
        """Return what is limited for an author, and what is used of it; see PixyProxyClient."""
        return await self._send(calls.get_quotas(author), timeout)

    # --- Calls ---------------------------------------------------------------------------------------------------

    async def _send(self, call: Call[Answer], timeout: float | None, upload: Upload | None = None) -> Answer:
        attempts = self._attempts(call, timeout, is_single=upload is not None and not upload.is_seekable)
        while True:
            request = call.request if upload is None else _from_thread(upload.messages(call.request))
            try:
                with self._translating():
                    answer = await self._invoke(call, request, attempts)
            except PixyProxyClientError as error:
                if upload is not None:
                    upload.check()
                await self._wait_after(error, attempts)
            else:
                attempts.succeeded()
                return call.read(answer)

    async def _events(self, call: Call[None], attempts: Attempts) -> AsyncIterator[Generation | PartialImage]:
        watch = Watch()
        while not watch.is_over:
            messages = self._invoke(call, call.request, attempts)
            try:
                with self._translating():
                    async for message in messages:
                        attempts.succeeded()
                        event = watch.read(message)
                        if event is not None:
                            yield event
                error: PixyProxyClientError = watch.broken_off()
            except PixyProxyClientError as failure:
                error = failure
            finally:
                messages.cancel()
            if not watch.is_over:
                await self._wait_after(error, attempts)

    async def _wait_after(self, error: PixyProxyClientError, attempts: Attempts) -> None:
        """Wait until the next attempt; raise ``error`` if there is none."""
        pause = attempts.pause_after(error)
        try:
            await asyncio.wait_for(self._closed.wait(), pause)
        except TimeoutError:
            return
        raise error

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise gRPC's errors as those of the client, and its cancellation of calls when the client is closed."""
        try:
            yield
        except grpc.RpcError as error:
            raise error_of(error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._closed.is_set() or task is None or task.cancelling():
                raise
            raise UnavailableError("The client was closed.", code="CANCELLED") from error

    def _watch(self, channel: grpc.aio.Channel, on_failure: Callable[[], object]) -> None:
        async def watch() -> None:
            while (state := channel.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await channel.wait_for_state_change(state)
            on_failure()

        self._watching = asyncio.create_task(watch())


async def _from_thread(messages: Iterator[pb.ImportImageRequest]) -> AsyncIterator[pb.ImportImageRequest]:
    """Yield messages from an iterator that may block, because it reads a file."""
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


async def _in_thread(function: Callable[[], object]) -> None:
    """Run a blocking function in a thread. Wait for it even if the task is cancelled, because it uses an open file."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
