"""The synchronous client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar, Unpack

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import calls
from pixyproxy.client.base import BaseClient
from pixyproxy.client.calls import Call, Changes, CreateOptions, Filters, GenerationFilters, ImportOptions
from pixyproxy.client.content import BaseContentStream
from pixyproxy.client.download import Download, OnProgress
from pixyproxy.client.errors import ContentDamagedError, InvalidRequestError, PixyProxyClientError, error_of
from pixyproxy.client.generations import Generation, PartialImage, Watch
from pixyproxy.client.models import ContentInfo, ImageDetail, ImagePage, Rendition, Thumbnail
from pixyproxy.client.retry import Attempts
from pixyproxy.client.upload import Source, Upload
from pixyproxy.client.usage import Quota, UsageGrouping, UsageRow

Answer = TypeVar("Answer")


class ContentStream(BaseContentStream["PixyProxyClient"]):
    """The bytes of an image, or of a part of it; iterate over it once.

    After an interruption, it continues where it stopped. A whole image is verified with its SHA-256; if it does not
    match, the iteration raises an error at the end.

    Attributes:
        info: the image.
    """

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive.

        Raises:
            ContentDamagedError: the bytes are incomplete, or are not those of the image.
            PixyProxyClientError: the call failed.
        """
        while not self._is_complete:
            try:
                for message in self._messages:
                    yield self._take(message)
                break
            except grpc.RpcError as error:
                if not self._is_complete:
                    self._client._wait_after(error_of(error), self._attempts)
                    self._open()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Self:
        """Start the call, and wait for ``info``."""
        while True:
            try:
                self._ask()
                self._begin(next(self._messages, pb.GetImageContentResponse()))
            except grpc.RpcError as error:
                self._client._wait_after(error_of(error), self._attempts)
            else:
                return self


class PixyProxyClient(BaseClient[grpc.Channel]):
    """A client for a server. Threads may share it.

    Every method has a ``timeout`` in seconds for all its attempts, by default the client's. Calls are retried if that
    cannot do or cost anything twice. All methods raise PixyProxyClientError.
    """

    _module = grpc
    _closed: threading.Event
    _event_kind = threading.Event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all calls, and close the connection.

        Calls in progress end with UnavailableError, and those that wait for another attempt with their last error.
        """
        channel = self._closing()
        if channel is not None:
            channel.close()

    # --- Create, import, change, delete ---------------------------------------------------------------------------

    def create_image(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[CreateOptions]
    ) -> ImageDetail:
        """Generate an image.

        If the connection breaks or the server is busy, the call is retried with the same ``request_id``, so that the
        image is generated and billed once. To repeat it later, use the ``creation_request_id`` of the error.

        Args:
            prompt: the description of the image.
            timeout: in seconds; by default the client's ``long_timeout``.
            **options: tags, visibility, filename, request_id, and how to generate, such as size; see CreateOptions.
        """
        return self._send(calls.create_image(prompt, **options), timeout)

    def import_image(
        self,
        source: Source,
        description: str = "",
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **options: Unpack[ImportOptions],
    ) -> ImageDetail:
        """Store an image of your own: a PNG, WebP or JPEG of at most 64 MiB.

        If the connection breaks or the server is busy, the call is retried with the same ``request_id``, so that the
        image is stored once; but not if ``source`` cannot be read again. To repeat it later, use the
        ``creation_request_id`` of the error.

        Args:
            source: a path, bytes, or a binary file, which is read from its current position to its end.
            description: what is found by searches for prompts; may be empty.
            on_progress: called with the number of sent bytes and of all bytes, which is 0 if it is unknown; from
                another thread.
            timeout: for all bytes, in seconds; by default the client's ``long_timeout``.
            **options: tags, visibility, filename, request_id and sha256; see ImportOptions.

        Raises:
            OSError: the file cannot be read.
        """
        call = calls.import_image(description, **options)
        with Upload(source, on_progress) as upload:
            return self._send(call, timeout, upload)

    def update_image(self, guid: str, *, timeout: float | None = None, **changes: Unpack[Changes]) -> ImageDetail:
        """Change an image; see Changes."""
        return self._send(calls.update_image(guid, **changes), timeout)

    def delete_image(self, guid: str, *, timeout: float | None = None) -> None:
        """Delete an image permanently.

        The call is not retried if the connection breaks: a second call would fail with NotFoundError.
        """
        self._send(calls.delete_image(guid), timeout)

    # --- Read ----------------------------------------------------------------------------------------------------

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether the server is serving. Needs no credentials."""
        return self._send(calls.is_serving(), timeout)

    def get_image(self, guid: str, *, timeout: float | None = None) -> ImageDetail:
        """Get the details of an image."""
        return self._send(calls.get_image(guid), timeout)

    def list_page(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None, **filters: Unpack[Filters]
    ) -> ImagePage:
        """Get a page of images, newest first.

        Args:
            page_size: the most images on the page, up to 200; 0 for 50. Long prompts make a page shorter, and a search
                of hardly any matches may give an empty page that is not the last.
            page_token: the ``next_page_token`` of the page before, with the same filters; empty for the first page.
            timeout: in seconds.
            **filters: see Filters.
        """
        return self._send(calls.list_images(page_size, page_token, **filters), timeout)

    def list_images(
        self, *, page_size: int = 0, timeout: float | None = None, **filters: Unpack[Filters]
    ) -> Iterator[ImageDetail]:
        """Yield all images that match the filters, newest first. Pages are requested as needed.

        Args:
            page_size: images a page, at most 200; 0 for 50.
            timeout: for each page.
            **filters: see Filters.
        """
        page = self.list_page(page_size=page_size, timeout=timeout, **filters)
        yield from page.images
        while page.next_page_token:
            page = self.list_page(page_size=page_size, page_token=page.next_page_token, timeout=timeout, **filters)
            yield from page.images

    def search_images(self, words: str, **filters: Unpack[Filters]) -> Iterator[ImageDetail]:
        """Yield all images whose prompts have these words, newest first; the last one may be the start of a word."""
        return self.list_images(**(filters | Filters(prompt=words)))

    # --- Content -------------------------------------------------------------------------------------------------

    def stream_content(
        self,
        guid: str,
        *,
        read_offset: int = 0,
        read_limit: int = 0,
        if_none_match: str = "",
        rendition: Rendition | None = None,
        timeout: float | None = None,
    ) -> ContentStream:
        """Read an image's bytes as they arrive.

        Args:
            guid: the image's guid.
            read_offset: the first byte.
            read_limit: the most bytes; 0 for all to the end.
            if_none_match: the SHA-256 of bytes that you have. If they are those asked for, no bytes are sent.
            rendition: the most pixels across and down of a small WebP copy, 256, 512, 1024 or 2048; by default, the
                original is read.
            timeout: for all bytes, in seconds; by default the client's ``long_timeout``.
        """
        call = calls.get_content(
            guid, read_offset=read_offset, read_limit=read_limit, if_none_match=if_none_match, rendition=rendition
        )
        return ContentStream(self, call, self._attempts(call, timeout))._open()

    def fetch_content(
        self,
        guid: str,
        path: str | Path,
        *,
        overwrite: bool = False,
        rendition: Rendition | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> ContentInfo:
        """Save an image's bytes as a file, atomically and verified.

        After an interruption, the next call continues where it stopped.

        Args:
            guid: the image's guid.
            path: the file, in an existing folder.
            overwrite: whether to replace an existing regular file, or that which a symbolic link names.
            rendition: as for ``stream_content``.
            on_progress: called with the number of received bytes and of all bytes.
            timeout: for all bytes, in seconds; by default the client's ``long_timeout``.

        Raises:
            FileExistsError: the file exists, and ``overwrite`` is not set or it is not a regular file.
            OSError: the file cannot be written.
        """
        with Download(guid, path, overwrite=overwrite, rendition=rendition) as download:
            while True:
                try:
                    with self.stream_content(
                        guid, read_offset=download.held, rendition=rendition, timeout=timeout
                    ) as stream:
                        download.begin()
                        for data in stream:
                            download.write(data)
                            if on_progress is not None:
                                on_progress(download.held, stream.info.size_bytes)
                    download.finish(stream.info)
                except (InvalidRequestError, ContentDamagedError) as error:
                    download.start_over(error)
                else:
                    return stream.info

    def get_thumbnails(
        self, guids: Iterable[str], *, rendition: Rendition = 256, timeout: float | None = None
    ) -> Iterator[Thumbnail]:
        """Yield small WebP copies of images; calls are made as needed.

        Thumbnails that the server has not made yet may come after those of later guids. An image that cannot be shown
        has a thumbnail with an error.

        Args:
            guids: the images.
            rendition: the most pixels across and down, 256 or 512.
            timeout: for each call.
        """
        calls.check(guids=guids)
        rest = list(guids)
        while rest:
            thumbnails, rest = self._send(calls.get_thumbnails(rest, rendition), timeout)
            yield from thumbnails

    # --- Generations ---------------------------------------------------------------------------------------------

    def create_generation(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[CreateOptions]
    ) -> Generation:
        """Record a request for an image and return at once; a generation worker of any server runs it.

        Under a ``request_id`` that was used before, the answer is the generation of that request, as it is now.

        Args:
            prompt: what to generate.
            timeout: in seconds; by default the client's ``timeout``.
            **options: as for ``create_image``.
        """
        return self._send(calls.create_generation(prompt, **options), timeout)

    def get_generation(self, guid: str = "", *, request_id: str = "", timeout: float | None = None) -> Generation:
        """Get a generation by its guid or by the ``request_id`` of its request.

        Raises:
            ValueError: both are given, or neither.
        """
        return self._send(calls.get_generation(guid, request_id), timeout)

    def list_generations(
        self, *, page_size: int = 0, timeout: float | None = None, **filters: Unpack[GenerationFilters]
    ) -> Iterator[Generation]:
        """Yield all generations that match the filters, newest first; pages are requested as they are needed.

        Args:
            page_size: generations a page, at most 200; 0 for 50.
            timeout: for each page.
            **filters: which generations; see GenerationFilters.
        """
        page_token = ""
        while True:
            generations, page_token = self._send(calls.list_generations(page_size, page_token, **filters), timeout)
            yield from generations
            if not page_token:
                return

    def watch_generation(
        self, guid: str = "", *, request_id: str = "", timeout: float | None = None
    ) -> Iterator[Generation | PartialImage]:
        """Yield a generation now and after each change of its state, and its partial images, until it has ended.

        A stream that breaks is requested again, from any server; no state and no partial image is yielded twice. The
        last item is the generation in its final state; its ``result()`` is the image.

        Args:
            guid: the generation's guid.
            request_id: in place of that, the ``request_id`` of its request.
            timeout: in seconds for the whole watch; by default the client's ``long_timeout``.

        Raises:
            ValueError: both keys are given, or neither.
        """
        call = calls.watch_generation(guid, request_id)
        return self._events(call, self._attempts(call, timeout))

    def wait_for_generation(self, guid: str = "", *, request_id: str = "", timeout: float | None = None) -> ImageDetail:
        """Return the image of a generation once that has ended; see ``watch_generation`` and ``Generation.result``."""
        events = self.watch_generation(guid, request_id=request_id, timeout=timeout)
        return [event for event in events if isinstance(event, Generation)][-1].result()

    def cancel_generation(self, guid: str, *, timeout: float | None = None) -> Generation:
        """Cancel a generation that is queued, which costs nothing.

        Raises:
            InvalidRequestError: it was submitted already (``ALREADY_SUBMITTED``).
        """
        return self._send(calls.cancel_generation(guid), timeout)

    # --- Usage ---------------------------------------------------------------------------------------------------

    def summarize_usage(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        group_by: Sequence[UsageGrouping] = (),
        author: str = "",
        timeout: float | None = None,
    ) -> list[UsageRow]:
        """Sum up what was spent in a period, in whole days in UTC.

        Args:
            start: the beginning of the period, aware; by default that of the month of its last day.
            end: its end, exclusive and aware; by default the present.
            group_by: what to group the rows by; empty for a single row.
            author: the username of an author; empty for the caller, for an admin everybody.
            timeout: in seconds.
        """
        return self._send(calls.summarize_usage(start, end, group_by, author), timeout)

    def get_quotas(self, author: str = "", *, timeout: float | None = None) -> list[Quota]:
        """Return what is limited for an author, and what is used of it; empty if nothing is limited.

        Args:
            author: the username; empty for the caller. Only an admin sees the quotas of others.
            timeout: in seconds.
        """
        return self._send(calls.get_quotas(author), timeout)

    # --- Calls ---------------------------------------------------------------------------------------------------

    def _send(self, call: Call[Answer], timeout: float | None, upload: Upload | None = None) -> Answer:
        attempts = self._attempts(call, timeout, is_single=upload is not None and not upload.is_seekable)
        while True:
            try:
                request = call.request if upload is None else upload.messages(call.request)
                answer = self._invoke(call, request, attempts)
            except grpc.RpcError as error:
                if upload is not None:
                    upload.check()
                self._wait_after(error_of(error), attempts)
            else:
                attempts.succeeded()
                return call.read(answer)

    def _events(self, call: Call[None], attempts: Attempts) -> Iterator[Generation | PartialImage]:
        watch = Watch()
        while not watch.is_over:
            messages = self._invoke(call, call.request, attempts)
            try:
                for message in messages:
                    attempts.succeeded()
                    event = watch.read(message)
                    if event is not None:
                        yield event
                error: PixyProxyClientError = watch.broken_off()
            except grpc.RpcError as failure:
                error = error_of(failure)
            finally:
                messages.cancel()
            if not watch.is_over:
                self._wait_after(error, attempts)

    def _wait_after(self, error: PixyProxyClientError, attempts: Attempts) -> None:
        """Wait until the next attempt; raise ``error`` if there is none."""
        if self._closed.wait(attempts.pause_after(error)):
            raise error

    def _watch(self, channel: grpc.Channel, on_failure: Callable[[], object]) -> None:
        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                channel.unsubscribe(changed)
                on_failure()

        channel.subscribe(changed)
