"""Fetches an image that the provider's answer names by a URL.

The server may reach what outsiders must not reach, and whoever writes the answer chooses the URL. So only hosts that
the operator has named are asked, and redirects are not followed.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Sequence
from functools import cache
from typing import cast

import httpx2
import openai

from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.generation.openai.answer import kept_body
from pixyproxy.generation.openai.deadline import DEADLINE_HOOKS

_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 30.0
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_logger = logging.getLogger(__name__)


class FetchError(ValueError):
    """An image cannot be fetched. The message is for the log, and has nothing of the URL but its host."""


class _TemporaryError(FetchError):
    """A later attempt may succeed."""


class ImageFetcher:
    """Fetches images from the provider's own origin, and from the hosts that a setting names."""

    def __init__(
        self, client: openai.OpenAI, hosts: ImageHosts, *, max_bytes: int, pauses: Sequence[float] = _PAUSES
    ) -> None:
        """Initialize without fetching anything.

        Args:
            client: one of ``make_client``, whose address, headers and timeout are used.
            hosts: further hosts to fetch from; they get none of the client's headers.
            max_bytes: the size of the largest image.
            pauses: the seconds between attempts, of which there is one more.
        """
        self._client = client
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._pauses = pauses

    def fetch(self, text: str) -> bytes:
        """Return the bytes at a URL; retry temporary failures until the client's read timeout is over.

        Raises:
            FetchError: the URL is refused, or the bytes cannot be fetched.
        """
        url = self._checked(text)
        deadline = time.monotonic() + cast(float, cast(httpx2.Timeout, self._client.timeout).read)
        for attempt, pause in enumerate(self._pauses):
            try:
                return self._get(url, attempt, deadline)
            except _TemporaryError as exc:
                if time.monotonic() + pause >= deadline:
                    raise
                _logger.info("Attempt %d to fetch the image failed: %s; retrying in %.1f s.", attempt + 1, exc, pause)
                time.sleep(pause)
        return self._get(url, len(self._pauses), deadline)

    def _checked(self, text: str) -> httpx2.URL:
        try:
            url = httpx2.URL(text)
            origin = url.origin
        except (httpx2.InvalidURL, ValueError):
            # Not chained: it may quote the URL.
            raise FetchError("the image's URL is invalid or has no host") from None
        if origin.scheme not in ("http", "https"):
            raise FetchError("the image's URL has a scheme other than http and https")
        if url.userinfo:
            raise FetchError("the image's URL contains credentials")
        if not self._is_own(url) and not self._hosts.includes(_host(url), cast(int, origin.port)):
            raise FetchError(
                f"the image's URL names the host {_host(url)}, port {origin.port}, which is not the provider's own "
                "and not listed in PIXYPROXY_PROVIDER_IMAGE_HOSTS"
            )
        return url

    def _is_own(self, url: httpx2.URL) -> bool:
        return url.origin == self._client.base_url.origin

    def _get(self, url: httpx2.URL, attempt: int, deadline: float) -> bytes:
        """Send one request to the provider's own origin, or to a checked address of another host."""
        left = deadline - time.monotonic()
        timeout = httpx2.Timeout(min(_READ_TIMEOUT, left), connect=min(_CONNECT_TIMEOUT, left))
        host, is_own = _host(url), self._is_own(url)
        extensions: dict[str, object] = {"deadline": deadline}
        try:
            if is_own:
                headers = self._own_headers()
            else:
                headers = httpx2.Headers({"Host": url.netloc.decode()})
                extensions["sni_hostname"] = host
                addresses = self._hosts.resolve(host, cast(int, url.origin.port))
                # The client does not resolve the name again, which may have another address by now.
                url = url.copy_with(host=addresses[attempt % len(addresses)])
            with (
                # A proxy of the environment would connect to an address of its own choice.
                httpx2.Client(
                    verify=_tls(),
                    trust_env=is_own,
                    follow_redirects=False,
                    timeout=timeout,
                    event_hooks=DEADLINE_HOOKS,
                ) as http,
                http.stream("GET", url, headers=headers, extensions=extensions) as response,
            ):
                status = response.status_code
                if status == httpx2.codes.OK:
                    with kept_body(response.iter_bytes(), self._max_bytes) as (body, size):
                        return body[:size]
        except (httpx2.RequestError, OSError) as exc:
            # Other texts may quote what the host has sent.
            reason = f": {exc}" if isinstance(exc, (httpx2.ConnectError, OSError)) else ""
            raise _TemporaryError(f"{host}: {type(exc).__name__}{reason}") from exc
        except ValueError as exc:
            raise FetchError(f"{host}: {exc}") from exc
        is_temporary = status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR
        raise (_TemporaryError if is_temporary else FetchError)(f"{host} answered with status {status}")

    def _own_headers(self) -> httpx2.Headers:
        """Return the credentials, and the headers that OPENAI_CUSTOM_HEADERS adds."""
        headers = httpx2.Headers(self._client.auth_headers)
        headers.update({name: value for name, value in self._client.default_headers.items() if isinstance(value, str)})
        headers["Accept"] = "*/*"
        del headers["Content-Type"]
        return headers


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode()


@cache
def _tls() -> ssl.SSLContext:
    """Return the TLS settings for all requests: making them takes 50 ms, because all authorities are loaded."""
    return httpx2.create_ssl_context()
