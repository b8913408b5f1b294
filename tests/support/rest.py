"""The REST API as tests call it: HTTP/1.1 requests, one connection each."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.rpc import TIMEOUT
from tests.support.servers import Login


@dataclass(frozen=True)
class Answer:
    """An HTTP response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body as JSON."""
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    @property
    def reason(self) -> str | None:
        """The reason in ErrorInfo, or None in an error of the proxy's own."""
        details = self.json.get("details", [])
        return next((detail["reason"] for detail in details if detail["@type"].endswith("/google.rpc.ErrorInfo")), None)


@dataclass(frozen=True)
class RestClient:
    """A caller, who signs in if there is a login, and uses TLS if there is a context for it."""

    address: str
    login: Login | None = None
    tls: ssl.SSLContext | None = None

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        credentials = dict(self.login.metadata) if self.login else {}
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        if self.tls is not None:
            connection = http.client.HTTPSConnection(self.address, timeout=TIMEOUT, context=self.tls)
        with contextlib.closing(connection):
            connection.request(method, path, data, {**credentials, **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET request; underscores in the names of headers stand for hyphens."""
        return self.send("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
