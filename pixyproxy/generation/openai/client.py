"""Generates images with the OpenAI Images API, with one submission per call."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from typing import Any, cast

import httpx2
import openai
from pydantic import ValidationError

from pixyproxy.core.exceptions import (
    ConfigurationError,
    OutcomeUnknownError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnreadableAnswerError,
)
from pixyproxy.core.models import GenerationOptions, PartialImage, Usage
from pixyproxy.core.provider_limits import background_problem, compression_problem
from pixyproxy.core.request_context import trace_headers
from pixyproxy.generation.image_format import inspect_image
from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, InputFile, OnPartial, ignore_partial
from pixyproxy.generation.openai.answer import (
    MAX_BODY,
    NoImageError,
    image_url,
    images_of,
    kept_body,
    kept_events,
    take_apart,
    with_image,
)
from pixyproxy.generation.openai.deadline import DEADLINE_HOOKS, was_sent_in_full
from pixyproxy.generation.openai.errors import ErrorAnswer, explain_status, safe_name
from pixyproxy.generation.openai.fetching import FetchError, ImageFetcher

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_OPENAI_DOMAIN = ".openai.com"
_CONNECT_TIMEOUT = 10.0
_WRITE_TIMEOUT = 60.0
_PARTIAL = ("image_generation.partial_image", "image_edit.partial_image")
_COMPLETED = ("image_generation.completed", "image_edit.completed")
_MAX_TOKENS = 2**31 - 1  # more than any image takes, and few enough for sums in a database's integer
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_UNSENDABLE = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)

_logger = logging.getLogger(__name__)


def make_client(
    api_key: str, base_url: str | None, organization: str | None, project: str | None, timeout: float
) -> openai.OpenAI:
    """Make a client, which connects at the first request.

    Of the environment, it reads only OPENAI_CUSTOM_HEADERS and the usual variables for proxies and certificates.

    Args:
        api_key: the secret key.
        base_url: the API's address up to and including ``/v1``; None for OpenAI.
        organization: the organisation's id, or None for the key's default.
        project: the project's id, or None for the key's default.
        timeout: seconds without data after which a request fails. It is also the deadline of the whole answer, counted
            from the end of the request and checked when data arrives; so no answer takes much longer than twice the
            timeout.

    Raises:
        ConfigurationError: one of the arguments is invalid.
    """
    headers = {"OPENAI_API_KEY": api_key, "OPENAI_ORG_ID": organization or "-", "OPENAI_PROJECT_ID": project or "-"}
    for setting, value in headers.items():
        if not re.fullmatch(r"[!-~]+", value):
            raise ConfigurationError(f"{setting} must consist of visible ASCII characters without spaces.")
    connect_timeout = min(_CONNECT_TIMEOUT, timeout)
    http_client = httpx2.Client(
        # A redirected POST is submitted, and billed, a second time.
        follow_redirects=False,
        # A connection that breaks when it is used again does not show whether the provider has received the request.
        # So each request opens its own. The number of generations limits that of connections.
        limits=httpx2.Limits(max_keepalive_connections=0),
        event_hooks=DEADLINE_HOOKS,
    )
    try:
        client = openai.OpenAI(
            api_key=api_key,
            # The empty strings keep the client from reading the environment.
            admin_api_key="",
            webhook_secret="",
            base_url=base_url or _DEFAULT_BASE_URL,
            timeout=httpx2.Timeout(
                connect=connect_timeout, read=timeout, write=min(_WRITE_TIMEOUT, timeout), pool=connect_timeout
            ),
            max_retries=0,
            http_client=http_client,
        )
    except httpx2.InvalidURL as exc:
        raise ConfigurationError("OPENAI_BASE_URL is not a URL.") from exc
    # Here None is none, and not that of the environment.
    client.organization = organization or None
    client.project = project or None
    return client


@dataclass(frozen=True)
class ProviderModel:
    """A model that the provider's account offers, with the date of its shutdown, such as ``2026-12-01``, if any."""

    name: str
    shutdown_date: str | None


class OpenAIGenerator:
    """An ``ImageGenerator`` for the OpenAI Images API."""

    def __init__(
        self,
        client: openai.OpenAI,
        *,
        always_streams: bool = False,
        image_hosts: ImageHosts = ImageHosts(),
        max_answer_bytes: int = MAX_BODY,
    ) -> None:
        """Use a client.

        Args:
            client: one of ``make_client``, which is closed with this generator.
            always_streams: whether to ask for a stream of events even if no partial images are wanted.
            image_hosts: the hosts, besides the provider, from which images are fetched if the answer has a URL.
            max_answer_bytes: the largest answer, event of a stream, or image at a URL, that is read.
        """
        self._client = client
        self._fetcher = ImageFetcher(client, image_hosts, max_bytes=max_answer_bytes)
        self._always_streams = always_streams
        self._max_answer_bytes = max_answer_bytes

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        """Submit one request and wait for its image.

        Raises:
            ProviderError: there is no image; ``may_have_billed`` says whether the provider may bill for it.
            InputUnreadableError: an input could not be read, so that the request is incomplete.
        """
        sent = _parameters(request)
        if request.partial_images or self._always_streams:
            sent |= {"stream": True, "partial_images": request.partial_images}
        images = self._client.images.with_streaming_response
        submit = images.edit if request.inputs else images.generate
        try:
            with submit(**sent, extra_headers=trace_headers.get()) as answer:
                return self._read(request, answer.http_response, on_partial)
        except openai.APIStatusError as exc:
            # Not chained: the provider's text may quote the prompt or part of the key.
            raise self._explain_status(exc, sent) from None
        except openai.APIConnectionError as exc:
            raise _explain_connection(exc.__cause__, exc.request) from exc
        except (httpx2.HTTPError, httpx2.StreamError) as exc:
            # The connection broke after the headers of the answer.
            raise _explain_connection(exc) from exc

    def model_shutdown_date(self, model: str, timeout: float = 5.0) -> str | None:
        """Return the provider's date for the shutdown of a model, such as ``2026-12-01``, or None if there is none.

        A failed request is logged, and returns None.
        """
        try:
            date = self._client.models.retrieve(model, timeout=timeout).shutdown_date
        except Exception as exc:  # The start of the server must not depend on a warning.
            _logger.warning("The image provider did not describe its model: %s", type(exc).__name__)
            return None
        return date if isinstance(date, str) else None

    def models(self) -> list[ProviderModel]:
        """Return the models that the account offers, by name.

        Raises:
            ProviderError: the provider refuses, or cannot be reached, or sends no list of models.
        """
        try:
            page = self._client.models.list()
            # Of other servers' lists, nothing but the names is certain.
            if not isinstance(page.data, list):
                raise TypeError("no list")
            names = {model.id: model.shutdown_date for model in page if isinstance(getattr(model, "id", None), str)}
        except openai.APIStatusError as exc:
            error = self._explain_status(exc, {"prompt": ""})
            if isinstance(error, ProviderModelUnknownError):
                error = ProviderMisconfiguredError("The image provider's address has no list of models.")
            raise error from None
        except openai.APIConnectionError as exc:
            error = _explain_connection(exc.__cause__)
            raise (_unreadable_list() if isinstance(error, OutcomeUnknownError) else error) from exc
        except (AttributeError, TypeError, ValueError, openai.OpenAIError) as exc:
            raise _unreadable_list() from exc
        return [ProviderModel(name, date if isinstance(date, str) else None) for name, date in sorted(names.items())]

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _read(self, request: GenerationRequest, response: httpx2.Response, on_partial: OnPartial) -> GeneratedImage:
        try:
            # A compatible server may ignore the wish for a stream.
            if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                return self._read_stream(request, response, on_partial)
            return self._read_image(request, response)
        except ValueError as exc:  # The answer, or an event of the stream, is too large.
            raise self._explain_success(exc, request, response, b"") from exc

    def _read_image(self, request: GenerationRequest, response: httpx2.Response) -> GeneratedImage:
        with kept_body(response.iter_bytes(), self._max_answer_bytes) as (body, size):
            try:
                return _image_of(request, *take_apart(body, size))
            except (ValueError, RecursionError) as exc:
                return self._fetch_image(exc, request, response, body[:size])

    def _read_stream(
        self, request: GenerationRequest, response: httpx2.Response, on_partial: OnPartial
    ) -> GeneratedImage:
        """Return the image of the event that completes a stream of events; nothing else is the image."""
        has_begun = False
        for body, size in kept_events(response.iter_bytes(), self._max_answer_bytes):
            has_begun = has_begun or _names_any(_PARTIAL, body, size)
            try:
                answer, data = take_apart(body, size)
                if answer.get("type") in _PARTIAL:
                    on_partial(_partial_of(answer, data, request.partial_images))
                elif answer.get("type") in _COMPLETED:
                    return _image_of(request, answer, data)
            except (ValueError, RecursionError) as exc:
                if _is_the_end(exc, body, size):
                    return self._fetch_image(exc, request, response, body[:size], has_begun=has_begun)
        raise OutcomeUnknownError.after("The image provider ended its answer before the image.")

    def _fetch_image(
        self,
        problem: Exception,
        request: GenerationRequest,
        response: httpx2.Response,
        body: bytes,
        *,
        has_begun: bool = False,
    ) -> GeneratedImage:
        """Return the image at the URL that a successful answer has in place of the image.

        The other arguments are those of ``_explain_success``.

        Raises:
            ProviderError: there is no URL, or no image at it.
        """
        answer = problem.answer if isinstance(problem, NoImageError) else None
        url = "" if _error_in(answer) else image_url(answer)
        if url:
            try:
                data = self._fetcher.fetch(url)
            except FetchError as exc:
                problem = exc
            else:
                try:
                    return _image_of(request, cast(Mapping[str, Any], answer), data)
                except ValueError as exc:
                    problem, body = exc, with_image(answer, data)
        raise self._explain_success(problem, request, response, body, has_begun=has_begun) from problem

    def _explain_success(
        self,
        problem: Exception,
        request: GenerationRequest,
        response: httpx2.Response,
        body: bytes,
        *,
        has_begun: bool = False,
    ) -> ProviderError:
        """Return the error for a successful answer without an image.

        Args:
            problem: why no image can be read from it.
            request: what was submitted.
            response: the head of the answer.
            body: the answer, or the event of a stream.
            has_begun: whether partial images came before, so that even a refusal may have been billed.
        """
        said = _error_in(problem.answer) if isinstance(problem, NoImageError) else None
        if said:
            error = ErrorAnswer.of(said)
            _log_failure(
                "sent an error with a status of success", response, error.for_log(request.prompt, self._client.api_key)
            )
            if error.is_moderation(request.prompt) and not has_begun:
                return error.explain_moderation()
        else:
            _log_failure("sent no usable image", response, f"{type(problem).__name__}: {problem}")
        if not body:
            return ProviderUnavailableError("The image provider sent no usable image.", may_have_billed=True)
        return UnreadableAnswerError("The image provider sent no usable image.", body=body)

    def _explain_status(self, exc: openai.APIStatusError, sent: Mapping[str, Any]) -> ProviderError:
        error, api_key = ErrorAnswer.of(exc.body), self._client.api_key
        _log_failure("refused or failed", exc.response, error.for_log(sent["prompt"], api_key))
        is_openai = self._client.base_url.host.endswith(_OPENAI_DOMAIN)
        return explain_status(exc.status_code, exc.response.headers, error, sent, api_key, is_openai=is_openai)


# --- The request -----------------------------------------------------------------------------------------------------


def _parameters(request: GenerationRequest) -> dict[str, Any]:
    """Return the API's parameters. The provider's default is ``auto``, so that it is not sent."""
    chosen = {
        "size": request.size,
        "quality": request.quality,
        "background": request.background,
        "moderation": request.moderation or "auto",
    }
    optional = {"output_compression": request.output_compression, "input_fidelity": request.input_fidelity}
    return {
        "model": request.model,
        "prompt": request.prompt,
        "n": 1,
        "output_format": request.output_format,
        "safety_identifier": hashlib.sha256(f"pixyproxy:{request.author_guid}".encode()).hexdigest(),
        **{name: value for name, value in chosen.items() if value != "auto"},
        **{name: value for name, value in optional.items() if value is not None},
        **_files_of(request),
    }


def _files_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the API's parameters for images to edit, as the client takes files."""
    files = [(file.name, _Upload(file), file.content_type) for file in (*request.inputs, request.mask) if file]
    masks = {"mask": files.pop()} if request.mask else {}
    # The API takes one or several; compatible servers are used with one.
    return masks | ({"image": files[0] if len(files) == 1 else files} if files else {})


class _Upload(io.RawIOBase):
    """An input as a file object. The HTTP client seeks only to find out the size; the bytes can be read once."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._file.size if whence == io.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._file.size if size < 0 else size)


# --- The answer ------------------------------------------------------------------------------------------------------


def _read_usage(usage: object) -> Usage | None:
    """Return the token counts, or None if they are not three integers: the image is kept nevertheless."""
    if not isinstance(usage, dict):
        return None
    counts = {name: _token_count(usage.get(name)) for name in ("input_tokens", "output_tokens", "total_tokens")}
    if None in counts.values():
        return None
    for direction in ("input", "output"):
        parts = usage.get(f"{direction}_tokens_details")
        for kind in ("text", "image"):
            count = parts.get(f"{kind}_tokens") if isinstance(parts, dict) else None
            counts[f"{direction}_{kind}_tokens"] = _token_count(count)
    return Usage.model_validate(counts)


def _token_count(count: object) -> int | None:
    # Some servers write integers as 11.0.
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    # True is an int, too.
    return count if type(count) is int and 0 <= count <= _MAX_TOKENS else None


def _options_used(request: GenerationRequest, answer: Mapping[str, Any]) -> GenerationOptions:
    """Return the options that the answer names, and those of the request in place of others."""
    options = dict(request.options)
    for name in ("size", "quality", "output_format", "background"):
        with suppress(ValidationError):  # A compatible server may write anything.
            named = GenerationOptions.model_validate({name: answer.get(name)})
            # A stream may repeat "auto", which does not tell what was used.
            options |= {name: value for name, value in named if value not in (None, "auto")}
    # A server that chose another format than it was asked for did not use what that format does not have. Options that
    # contradict each other would be invalid, and the image lost.
    if compression_problem(options["output_compression"], options["output_format"]) is not None:
        options["output_compression"] = None
    if background_problem(options["background"], options["output_format"]) is not None:
        options["background"] = None
    return GenerationOptions.of_checked(options)


def _image_of(request: GenerationRequest, answer: Mapping[str, Any], data: bytes | mmap) -> GeneratedImage:
    image_format = inspect_image(data)
    count = len(images_of(answer))
    if count > 1:
        _logger.warning("The image provider sent %d images for one request; all but the first are dropped.", count)
    return GeneratedImage(
        data=memoryview(data).toreadonly(),
        content_type=image_format.content_type,
        width=image_format.width,
        height=image_format.height,
        model=request.model,
        options=_options_used(request, answer),
        usage=_read_usage(answer.get("usage")),
    )


def _partial_of(answer: Mapping[str, Any], data: bytes | mmap, wanted: int) -> PartialImage:
    index = answer.get("partial_image_index")
    if not isinstance(index, int) or not 0 <= index < wanted:
        raise ValueError("a partial image that nobody wants")
    content_type = inspect_image(data).content_type
    return PartialImage.model_construct(index=index, content_type=content_type, data=bytes(memoryview(data)))


def _error_in(said: object) -> object:
    """Return the error that an answer or an event tells of; some events are errors themselves."""
    if not isinstance(said, dict):
        return None
    return said.get("error") or (said if said.get("type") == "error" else None)


def _is_the_end(problem: Exception, body: mmap, size: int) -> bool:
    """Tell whether an event from which no image can be read is an error, or the one that has the image."""
    if isinstance(problem, NoImageError):
        said = problem.answer
        return bool(_error_in(said)) or (isinstance(said, dict) and said.get("type") in _COMPLETED)
    return _names_any(_COMPLETED, body, size)


def _names_any(types: Iterable[str], body: mmap, size: int) -> bool:
    """Tell whether an event, which may be damaged, names one of these types."""
    return any(body.find(name.encode(), 0, size) >= 0 for name in types)


# --- Errors ----------------------------------------------------------------------------------------------------------


def _log_failure(what: str, response: httpx2.Response, detail: str) -> None:
    """Log a line for OpenAI's support. The detail must not quote the prompt."""
    request_id = safe_name(response.headers.get("x-request-id")) or "none"
    _logger.warning(
        "The image provider %s: status %d, provider's request id %s: %s", what, response.status_code, request_id, detail
    )


def _unreadable_list() -> ProviderUnavailableError:
    return ProviderUnavailableError("The image provider's list of models cannot be read.")


def _explain_connection(cause: BaseException | None, request: httpx2.Request | None = None) -> ProviderError:
    """Return the error for a connection that failed; ``request`` is given if the head of the answer has not come."""
    _logger.warning(
        "The image provider did not answer: status none, provider's request id none: %s", type(cause).__name__
    )
    if isinstance(cause, _UNSENDABLE):
        return ProviderMisconfiguredError("The image provider's address or key cannot be used.")
    if isinstance(cause, _NEVER_SENT):
        return ProviderUnavailableError("The image provider cannot be reached.")
    if request is not None and not was_sent_in_full(request):
        return ProviderUnavailableError("The connection to the image provider broke while the inputs were sent.")
    if isinstance(cause, httpx2.TimeoutException):
        return ProviderTimeoutError("The image provider took too long.", may_have_billed=True)
    return OutcomeUnknownError.after("The connection to the image provider broke after the request was sent.")
