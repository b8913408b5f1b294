"""Generates images with the OpenAI Images API, with one submission per call."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, cast

import httpx2
import openai

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
from pixyproxy.core.request_context import trace_headers
from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, OnPartial, ignore_partial
from pixyproxy.generation.openai.answer import (
    MAX_BODY,
    NoImageError,
    image_url,
    kept_body,
    kept_events,
    take_apart,
    with_image,
)
from pixyproxy.generation.openai.deadline import DEADLINE_HOOKS, was_sent_in_full
from pixyproxy.generation.openai.errors import ErrorAnswer, explain_status, safe_name
from pixyproxy.generation.openai.fetching import FetchError, ImageFetcher
from pixyproxy.generation.openai.images import image_of, partial_of
from pixyproxy.generation.openai.parameters import parameters_of

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_OPENAI_DOMAIN = ".openai.com"
_CONNECT_TIMEOUT = 10.0
_WRITE_TIMEOUT = 60.0
_PARTIAL = ("image_generation.partial_image", "image_edit.partial_image")
_COMPLETED = ("image_generation.completed", "image_edit.completed")
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
        sent = parameters_of(request)
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
                return image_of(request, *take_apart(body, size))
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
                    on_partial(partial_of(answer, data, request.partial_images))
                elif answer.get("type") in _COMPLETED:
                    return image_of(request, answer, data)
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
                    return image_of(request, cast(Mapping[str, Any], answer), data)
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


# --- The answer ------------------------------------------------------------------------------------------------------


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
