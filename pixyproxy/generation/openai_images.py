"""Images from the OpenAI Images API, one submission per call and never a second one."""

from __future__ import annotations

import email.utils
import hashlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import openai

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConfigurationError,
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderQuotaError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.core.models import Usage
from pixyproxy.core.request_context import trace_headers
from pixyproxy.generation.answer import kept_body, take_apart
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.picture import inspect_picture

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_CONNECT_TIMEOUT = 10.0
_WRITE_TIMEOUT = 60.0
_LOOKUP_TIMEOUT = 5.0
_MAX_RETRY_AFTER = 24 * 60 * 60.0
_MAX_TOKENS = 2**63 - 1  # what a database's integer holds
_MAX_SHARED_TEXT = 300
_SHARED_RUN = 16  # characters of the prompt in a row that give it away

_MODERATION_CODES = {"moderation_blocked", "content_policy_violation"}
_QUOTA_CODES = {
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "insufficient_quota",
    "organization_usage_limit_exceeded",
}
_QUOTA_SUFFIX = "_spend_limit_exceeded"
_FIELDS = {
    "prompt": "prompt",
    "model": "options.model",
    "size": "options.size",
    "quality": "options.quality",
    "output_format": "options.output_format",
    "background": "options.background",
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]{1,64}")
_SECRET = re.compile(r"\b(sk|org|proj)[-_]")

# A 502, or a 52x from the network in front, says nothing of what became of the request behind it.
_GATEWAY_FAILURES = {502, 520, 521, 522, 523}
_GATEWAY_TIMEOUTS = {504, 524}

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_UNSENDABLE = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)

_logger = logging.getLogger(__name__)


class OpenAIGenerator:
    """Makes images with the OpenAI Images API.

    The settings given here are the only ones: of the environment, the client reads nothing but OPENAI_CUSTOM_HEADERS
    and the usual variables for proxies and certificates.
    """

    def __init__(
        self, api_key: str, base_url: str | None, organization: str | None, project: str | None, timeout: float
    ) -> None:
        """Prepare the client; nothing connects yet.

        Args:
            api_key: the secret key.
            base_url: the API's address up to and including ``/v1``; None is OpenAI's own.
            organization: the organisation's id, or None for the key's default.
            project: the project's id, or None for the key's default.
            timeout: seconds to wait for an image once it was asked for. A silence of that length ends the wait,
                and so does an answer whose body is still incomplete then; no wait is much longer than twice that.

        Raises:
            ConfigurationError: one of these settings cannot be what it should be.
        """
        _check_header("OPENAI_API_KEY", api_key)
        _check_header("OPENAI_ORG_ID", organization or "none")
        _check_header("OPENAI_PROJECT_ID", project or "none")
        try:
            self._client = _make_client(api_key, base_url or _DEFAULT_BASE_URL, _timeouts(timeout))
        except httpx2.InvalidURL as exc:
            raise ConfigurationError("OPENAI_BASE_URL is not a URL.") from exc
        self._client.organization = organization or None
        self._client.project = project or None

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Submit one request and wait for its image.

        Raises:
            ProviderError: the provider did not deliver; ``may_have_billed`` says whether it may cost all the same.
        """
        if call.is_over:
            raise ProviderTimeoutError("The time was over before the image could be asked for.")
        try:
            with self._client.images.with_streaming_response.generate(
                **_parameters(request), extra_headers=trace_headers.get()
            ) as answer:
                return _read_image(request, answer.http_response)
        except openai.APIStatusError as exc:
            # Not chained: the provider's text may quote the prompt or a part of the key.
            raise self._explain_status(exc, request.prompt) from None
        except openai.APIConnectionError as exc:
            raise _explain_connection(exc.__cause__) from exc
        except (httpx2.HTTPError, httpx2.StreamError) as exc:
            # The connection broke after the answer's head.
            raise _explain_connection(exc) from exc

    def model_shutdown_date(self, model: str) -> str | None:
        """Ask when a model will be shut down.

        Returns:
            The date as the provider writes it, such as ``2026-12-01``, or None where none is announced or the
            provider does not say; a failure to ask is only logged.
        """
        try:
            date = self._client.models.retrieve(model, timeout=_LOOKUP_TIMEOUT).shutdown_date
        except Exception as exc:  # a warning for operators must never keep the server from starting
            _logger.warning("could not ask the image provider about its model: %s", type(exc).__name__)
            return None
        return date if isinstance(date, str) else None

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _explain_status(self, exc: openai.APIStatusError, prompt: str) -> ProviderError:
        status, codes = exc.status_code, {_safe_name(exc.code), _safe_name(exc.type)}
        retry_after = _retry_after(exc.response.headers)
        _log_failure("refused or failed", exc.response, " ".join(sorted(codes - {""})) or "no code")
        if status < 500 and codes & _MODERATION_CODES:
            return _explain_refusal(exc)
        if status == 402 or (status < 500 and any(map(_is_quota, codes))):
            return ProviderQuotaError("The image provider's account is out of money or over its spending limit.")
        if status == 429:
            return ProviderRateLimitedError("The image provider asks to slow down.", retry_after=retry_after)
        if status in {400, 413, 422}:
            return _explain_invalid(exc, prompt, self._client.api_key)
        if status in _GATEWAY_TIMEOUTS:
            return ProviderTimeoutError("The image provider took too long.", may_have_billed=True)
        if status >= 500 or status in {408, 409}:
            return ProviderUnavailableError(
                "The image provider has a problem of its own.",
                retry_after=retry_after,
                may_have_billed=status in _GATEWAY_FAILURES,
            )
        return _explain_misconfiguration(status)


# --- The request -----------------------------------------------------------------------------------------------------


def _check_header(setting: str, value: str) -> None:
    if not re.fullmatch(r"[!-~]+", value):
        raise ConfigurationError(f"{setting} must consist of visible ASCII characters without spaces.")


def _timeouts(timeout: float) -> httpx2.Timeout:
    connect = min(_CONNECT_TIMEOUT, timeout)
    return httpx2.Timeout(connect=connect, read=timeout, write=min(_WRITE_TIMEOUT, timeout), pool=connect)


def _make_client(api_key: str, base_url: str, timeouts: httpx2.Timeout) -> openai.OpenAI:
    http_client = httpx2.Client(
        # A redirected POST is submitted, and billed, a second time.
        follow_redirects=False,
        # A connection kept alive may die as the next request is sent on it, which cannot be told from a request that
        # was taken and not answered. A handshake is nothing beside a generation. How many there are at once is
        # limited where generations are.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        event_hooks={"request": [_set_deadline], "response": [_keep_deadline]},
    )
    # The empty strings keep the client from reading the environment.
    return openai.OpenAI(
        api_key=api_key,
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        base_url=base_url,
        timeout=timeouts,
        max_retries=0,
        http_client=http_client,
    )


def _parameters(request: GenerationRequest) -> dict[str, Any]:
    """Return the API's parameters; what is ``auto`` is left to the provider, whose default that is."""
    chosen = {"size": request.size, "quality": request.quality, "background": request.background}
    return {
        "model": request.model,
        "prompt": request.prompt,
        "n": 1,
        "output_format": request.output_format,
        "safety_identifier": hashlib.sha256(f"pixyproxy:{request.author_guid}".encode()).hexdigest(),
        **{name: value for name, value in chosen.items() if value != "auto"},
    }


def _set_deadline(request: httpx2.Request) -> None:
    request.extensions["deadline"] = time.monotonic() + request.extensions["timeout"]["read"]


def _keep_deadline(response: httpx2.Response) -> None:
    stream = cast(httpx2.SyncByteStream, response.stream)
    response.stream = _StreamWithDeadline(stream, response.request.extensions["deadline"])


class _StreamWithDeadline(httpx2.SyncByteStream):
    """A response's bytes up to a deadline: the client's own timeout starts anew with every byte that drips in."""

    def __init__(self, stream: httpx2.SyncByteStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the answer was still incomplete at the deadline")
            yield chunk

    def close(self) -> None:
        self._stream.close()


# --- The answer ------------------------------------------------------------------------------------------------------


def _read_image(request: GenerationRequest, response: httpx2.Response) -> GeneratedImage:
    try:
        with kept_body(response.iter_bytes()) as (body, size):
            answer, data = take_apart(body, size)
        picture = inspect_picture(data)
    except (ValueError, RecursionError) as exc:
        _log_failure("sent no usable image", response, f"{type(exc).__name__}: {exc}")
        raise ProviderUnavailableError("The image provider sent no usable image.", may_have_billed=True) from exc
    return GeneratedImage(
        data=memoryview(data).toreadonly(),
        content_type=picture.content_type,
        width=picture.width,
        height=picture.height,
        model=request.model,
        usage=_read_usage(answer.get("usage")),
    )


def _read_usage(usage: object) -> Usage | None:
    """Return the token counts, or None where they are not three plain numbers: an image is not lost for that."""
    if not isinstance(usage, dict):
        return None
    counts = {name: usage.get(name) for name in Usage.model_fields}
    if not all(isinstance(count, int) and 0 <= count <= _MAX_TOKENS for count in counts.values()):
        return None
    return Usage.model_validate(counts)


# --- Errors ----------------------------------------------------------------------------------------------------------


def _log_failure(what: str, response: httpx2.Response, detail: str) -> None:
    """Log one line that helps OpenAI's support; the detail must hold nothing of the prompt."""
    request_id = _safe_name(response.headers.get("x-request-id")) or "none"
    _logger.warning(
        "the image provider %s: status %d, provider's request id %s: %s", what, response.status_code, request_id, detail
    )


def _explain_connection(cause: BaseException | None) -> ProviderError:
    _logger.warning(
        "the image provider did not answer: status none, provider's request id none: %s", type(cause).__name__
    )
    if isinstance(cause, _UNSENDABLE):
        return ProviderMisconfiguredError("The image provider's address or key cannot be used.")
    if isinstance(cause, _NEVER_SENT):
        return ProviderUnavailableError("The image provider cannot be reached.")
    if isinstance(cause, httpx2.TimeoutException):
        return ProviderTimeoutError("The image provider took too long.", may_have_billed=True)
    return OutcomeUnknownError(
        "The connection to the image provider broke after the request was sent; whether an image was made is unknown."
    )


def _explain_refusal(exc: openai.APIStatusError) -> PromptRefusedError:
    details = exc.body.get("moderation_details") if isinstance(exc.body, dict) else None
    details = details if isinstance(details, dict) else {}
    categories = details.get("categories")
    return PromptRefusedError(
        "The image provider's moderation refuses the prompt.",
        stage=_safe_name(details.get("moderation_stage")) or _safe_name(details.get("stage")),
        categories=[name for name in map(_safe_name, categories) if name] if isinstance(categories, list) else (),
    )


def _explain_invalid(exc: openai.APIStatusError, prompt: str, api_key: str) -> ProviderRequestInvalidError:
    field = _FIELDS.get(_safe_name(exc.param), "options")
    text = exc.body.get("message") if isinstance(exc.body, dict) else None
    # Of the prompt, or of nothing in particular, the provider's text could quote anything.
    if field not in {"prompt", "options"} and isinstance(text, str) and _may_be_shared(text, prompt, api_key):
        return ProviderRequestInvalidError(field, f"The image provider refuses it: {text[:_MAX_SHARED_TEXT]}")
    return ProviderRequestInvalidError(field, "The image provider refuses it.")


def _may_be_shared(text: str, prompt: str, api_key: str) -> bool:
    """Return whether the text holds no part of the prompt and no secret."""
    if not text.isprintable() or api_key in text or _SECRET.search(text):
        return False
    text, prompt = text.casefold(), prompt.strip().casefold()
    runs = (text[start : start + _SHARED_RUN] for start in range(len(text) - _SHARED_RUN + 1))
    return prompt not in text and not any(run in prompt for run in runs)


def _explain_misconfiguration(status: int) -> ProviderMisconfiguredError:
    if status in {401, 403}:
        return ProviderMisconfiguredError("The image provider refuses the server's key, organisation or project.")
    if status == 404:
        return ProviderModelUnknownError("The image provider does not have this model for the server's account.")
    return ProviderMisconfiguredError("The image provider's address does not take requests for images.")


def _is_quota(code: str) -> bool:
    return code in _QUOTA_CODES or code.endswith(_QUOTA_SUFFIX)


def _safe_name(value: object) -> str:
    """Return a provider's identifier, or an empty string for anything that is not one."""
    return value if isinstance(value, str) and _SAFE_NAME.fullmatch(value) else ""


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Return the seconds to wait that the provider names, more than 0 and up to a day, or None."""
    seconds = _number(headers.get("retry-after-ms")) / 1000
    if not seconds > 0:
        seconds = _number(headers.get("retry-after"))
    if not seconds > 0:
        seconds = _seconds_until(headers.get("retry-after"))
    return seconds if 0 < seconds <= _MAX_RETRY_AFTER else None


def _number(text: str | None) -> float:
    return float(text) if text is not None and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()) else 0.0


def _seconds_until(http_date: str | None) -> float:
    try:
        date = email.utils.parsedate_tz(http_date)
        return email.utils.mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        return 0.0
